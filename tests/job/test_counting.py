"""How often the main job tokenizes a text, and how often it runs a prompt from the first block on.

What is resumed at a later block does not count.
"""

from collections import Counter
from functools import wraps

import pytest

from iit.intervened import IntervenedModel
from iit.network.tokens import TokenizedTexts
from iit.run import run
from tests.conftest import SMALL, composing

OVERRIDES = ("data.n_train=16", "data.n_val=16", "data.n_test=16", "data.right_only=false")


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_is_tokenized_once_and_run_once(narrow, tmp_path, monkeypatch):
    tokenized, runs, compared, prompts = Counter(), Counter(), Counter(), []
    model, first = narrow.model.model, narrow.model.model.layers[0].mlp
    kind = type(narrow.tokenizer)
    read, enter, begin = kind.__call__, type(model).forward, type(first).forward
    answer_logits, whole = IntervenedModel.answer_logits, []

    def counted(self, texts, **options):
        # With and without special tokens, a text is read in two ways.
        tokenized.update((text, *options) for text in texts)
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
            (compared if whole else runs).update(prompts)
        return begin(self, x)

    def told_apart(self, *args):
        # Without a store, a model runs the first examples whole: a resumed run is compared so.
        whole.extend([self] if self.store is None else [])
        try:
            return answer_logits(self, *args)
        finally:
            whole.clear()

    # Other tests have read texts with this network, too.
    monkeypatch.setattr(narrow, "_texts", TokenizedTexts())
    monkeypatch.setattr(kind, "__call__", counted)
    monkeypatch.setattr(type(model), "forward", entered)
    monkeypatch.setattr(type(first), "forward", begun)
    monkeypatch.setattr(IntervenedModel, "answer_logits", told_apart)
    configured = composing(narrow, tmp_path, monkeypatch)
    run(configured("+experiment=das_ioi", *SMALL, *OVERRIDES))
    assert set(tokenized.values()) == {1}
    assert set(runs.values()) == {1}
    assert len(runs) > 40
    # The first four examples, as bases and as sources: once with edits, once without.
    assert 0 < compared.total() <= 2 * 2 * 4
