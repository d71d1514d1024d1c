"""The names of controls, metrics and subsets: as rows have them, and in words for people.

This file only names them. `iit.evaluation.controls` makes the controls, and says what each is.
`iit.evaluation.evaluate` says what the metrics are. Maps, and the job `ground_truth`, have metrics
of their own.
"""

from collections.abc import Mapping
from itertools import count, product
from typing import Any, NamedTuple

from iit.result.row import Arm


class Control(NamedTuple):
    """What is scored in an alignment's place, on the same pairs.

    Arguments:
        words: what people read for its IIA; {} stands for the draw, where it names something.
        short: its name in the words of other metrics. Without one, people are not shown these.
        standing: "null" lacks what the hypothesis claims: an accuracy that it also reaches says
            nothing. "other" may well have it. "shown" is printed, and not compared with the
            alignment pair by pair.
    """

    words: str
    short: str = ""
    standing: str = "other"


CONTROLS: Mapping[str | None, Control] = {
    None: Control("trained intervention", "trained", "shown"),
    "vanilla": Control("vanilla patching (whole vector)", "vanilla"),
    "pca_subspace": Control("principal components of equal rank"),
    "random_subspace": Control("random subspaces of equal rank", "random subspaces", "null"),
    "majority": Control("majority answer of the training pairs", standing="null"),
    "no_intervention": Control("no intervention", "no intervention", "null"),
    "inert_resampled": Control("trained, inert parts from a third input"),
    "shuffled_label": Control("trained on shuffled labels", standing="null"),
    "untrained_network": Control("trained in an untrained network", "untrained network", "null"),
    "untrained_network/no_intervention": Control(
        "no intervention in the untrained network", "the untrained network itself", "shown"
    ),
    "wrong_site": Control("trained at a wrong site", standing="null"),
    "least_rank": Control("trained at the least rank that the variable's values need"),
    "lower_rank": Control("trained at rank {}", standing="shown"),
    "placebo_direction": Control("moved as far in a random direction"),
    "placebo_pair": Control("moved by another pair's difference"),
    "seeds": Control("all seeds", "the seeds' subspaces", "shown"),
    "read_part": Control("the part that downstream reads"),
    "read_part/vanilla": Control("what downstream reads of the whole vector", standing="shown"),
    "read_part/random_subspace": Control(
        "the part of random subspaces that downstream reads", standing="shown"
    ),
    # The null space of what downstream reads; no null control.
    "null_part": Control("the part that downstream does not read", standing="shown"),
    "rival": Control("trained, scored by the rival {!r}", standing="shown"),
    "off_target": Control("the edit of {!r} instead (off target)", standing="shown"),
}
"""{control: its words}, in the order of tables; None is the alignment itself."""
METRIC_WORDS = {
    "iia": "{}",
    "iia_generated": "{}, as written",
    "abstraction_error/down": "error as an abstraction, interventions from the causal model",
    "abstraction_error/up": "error as an abstraction, interventions from the network",
    "divergence": "edited activations farther from natural than 95% of unedited",
    "principal_angle": "degrees between {}",
    "principal_angle/natural": "degrees between {}, where natural activations vary",
    "principal_angle/read": "degrees between {}, in what downstream reads",
    "iia_difference": "trained − {}, paired",
    "iia_generated_difference": "trained − {}, as written, paired",
    "iia_forced_difference": "right among the pair's own answers, trained − {}, paired",
    "iia_forced": "right among the pair's own answers, {}",
    "cut": "the source's own answer, of all that the sites hold",
    "disentangle": "disentangle score, {}",
    "logit_difference": "logit(label) − logit(own answer), {}",
    "answer_agreement": "label and source's answer agree up to the site",
    "task_accuracy": "task accuracy, before filtering",
}
"""{metric: its words}, in the order of tables; {} stands for the control."""
SUBSETS = {
    "changing": "changing",
    "unchanging": "unchanging",
    "unchanging/another_asked": "unchanging, another variable asked for",
    "unchanging/same_value": "unchanging, of the same value",
    "all": "all",
}
"""{subset: its words}, in the order of tables; kinds of pairs come after them."""
NULLS = [
    name for name, control in CONTROLS.items() if name is not None and control.standing == "null"
]
COMPARED = [name for name, control in CONTROLS.items() if control.standing != "shown"]
"""The controls that the alignment is compared with, pair by pair."""

KIND = "kind/"
"""Subset `kind/NAMES`: the pairs whose source differs from the base in exactly these variables."""
AVERAGED = ("random_subspace", "read_part/random_subspace", "seeds")
"""Controls that are drawn several times. Their figure averages the draws; each has a row, too."""
# (metric, control) → its number in the order of a table.
_ORDER = dict(zip(product(METRIC_WORDS, CONTROLS), count()))


def is_single_draw(arm: Arm) -> bool:
    """Whether an arm is one draw of a control whose figure averages them."""
    return arm.control in AVERAGED and arm.draw is not None


def of_single_draws(scored: Mapping[Arm, Any], control: str) -> list[Any]:
    """What the single draws of an averaged control have in `scored`."""
    return [
        value for arm, value in scored.items() if arm.control == control and is_single_draw(arm)
    ]


def figure_words(arm: Arm, metric: str) -> str | None:
    """The words that people read for a figure; None for a figure that only `metrics.json` has."""
    if is_single_draw(arm):
        return None
    if (metric, arm.control) not in _ORDER:
        return f"{metric}, {arm.control or 'trained'}"
    control = CONTROLS[arm.control]
    name = control.short
    if metric in ("iia", "iia_generated"):
        name = control.words.format(arm.draw)
    return METRIC_WORDS[metric].format(name) if name else None


def table_order(arm: Arm, metric: str) -> int:
    """Where a figure stands in a table; one without words of its own comes last."""
    return _ORDER.get((metric, arm.control), len(_ORDER))
