"""How often the main job tokenizes a text, and how often it runs a prompt from the first block on.

What is resumed at a later block does not count.
"""

from collections import Counter
from functools import wraps

import pytest

from iit.network import LanguageModel
from iit.run import run
from tests.conftest import SMALL, composing

TOKENIZED = 8  # one text, at most; the aim: 1
RUN = 6  # one prompt, at most; the aim: 1
OVERRIDES = ("data.n_train=16", "data.n_val=16", "data.n_test=16", "data.right_only=false")


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_is_seldom_tokenized_and_run(narrow, tmp_path, monkeypatch):
    tokenized, runs, prompts = Counter(), Counter(), []
    model, first = narrow.model.model, narrow.model.model.layers[0].mlp
    read, enter, begin = LanguageModel._read, type(model).forward, type(first).forward

    def counted(self, texts, **options):
        tokenized.update([texts] if isinstance(texts, str) else texts)
        return read(self, texts, **options)

    # Patched on the classes: no run is resumed where a hook is not the engine's.
    @wraps(enter)
    def entered(self, input_ids, attention_mask, **kwargs):
        if self is model:
            # In a resumed run the mask also has the tokens before.
            mask = attention_mask[:, -input_ids.shape[1] :].bool()
            rows = zip(input_ids, mask, strict=True)
            prompts[:] = [tuple(row[is_real].tolist()) for row, is_real in rows]
        return enter(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def begun(self, x):
        # The blocks that a resumed run passes over do not call their parts.
        if self is first:
            runs.update(prompts)
        return begin(self, x)

    monkeypatch.setattr(LanguageModel, "_read", counted)
    monkeypatch.setattr(type(model), "forward", entered)
    monkeypatch.setattr(type(first), "forward", begun)
    configured = composing(narrow, tmp_path, monkeypatch)
    run(configured("+experiment=das_ioi", *SMALL, *OVERRIDES))
    assert max(tokenized.values()) <= TOKENIZED
    assert max(runs.values()) <= RUN
