"""Which layer's attention turns IOI's answer to the other name?

`python experiments/quickstart/patch_attention_outputs.py`
"""

from pathlib import Path
from typing import Any

import iit
from iit.patching import Contrast, patch
from iit.report import curves, save_figure

folder = Path("outputs/quickstart")
folder.mkdir(parents=True, exist_ok=True)
lm = iit.load_network("smollm2")
assert isinstance(lm, iit.LanguageModel)
names = [("John", "Mary"), ("Peter", "Anna"), ("Tom", "Sarah"), ("Jack", "Emma")]


def encode(repeated: int) -> dict[str, Any]:
    """The prompts in which the first (0) or second (1) name is repeated, the other being the
    answer.
    """
    subjects, answers = ([f" {pair[i]}" for pair in names] for i in (repeated, 1 - repeated))
    texts = [
        f"When {a} and {b} went to the store,{s} gave a drink to"
        for (a, b), s in zip(names, subjects, strict=True)
    ]
    assert isinstance(lm, iit.LanguageModel)
    return lm.encode(texts, positions={"s2": subjects}, answers=answers)


# The source repeats the other name. The logit difference is that of each pair's own two names.
effects = patch(
    lm,
    Contrast.of_batches(lm, encode(repeated=1), encode(repeated=0)),
    components="attention_output",
    positions=["s2", "last"],
    metric=["normalised_logit_difference", "logit_difference"],
)
# Normalised, 1 is all the way to the source.
print(effects)
table = effects.table()
save_figure(
    curves(table, x="layer", metrics=["normalised_logit_difference"], series="position"),
    folder / "attention",
    table,
)
