"""How often the main job tokenizes a prompt, and how often it runs one from its first block on."""

from collections import Counter

import pytest

from iit.network import LanguageModel
from iit.run import run
from tests.conftest import SMALL, composing

TOKENIZED = 8  # of one prompt, at most; the aim: 1
RUN = 6  # of one prompt, at most; the aim: 1
OVERRIDES = ("data.n_train=16", "data.n_val=16", "data.n_test=16", "data.right_only=false")


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_is_seldom_tokenized_and_run(narrow, tmp_path, monkeypatch):
    tokenized, runs = Counter(), Counter()
    read = LanguageModel._read

    def counted(self, texts, **options):
        tokenized.update([texts] if isinstance(texts, str) else texts)
        return read(self, texts, **options)

    def entered(module, args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if ids.shape == mask.shape:
            rows = zip(ids, mask.bool(), strict=True)
            runs.update(tuple(row[is_real].tolist()) for row, is_real in rows)

    monkeypatch.setattr(LanguageModel, "_read", counted)
    handle = narrow.model.model.register_forward_pre_hook(entered, with_kwargs=True)
    configured = composing(narrow, tmp_path, monkeypatch)
    run(configured("+experiment=das_ioi", *SMALL, *OVERRIDES))
    handle.remove()
    print(tokenized.most_common(5), runs.most_common(5))
    assert max(tokenized.values()) <= TOKENIZED
    assert max(runs.values()) <= RUN
