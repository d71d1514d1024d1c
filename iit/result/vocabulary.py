"""The names of controls, metrics and subsets: as rows have them, and in words for people.

This file only names them. `iit.evaluation.controls` makes the controls, and says what each is;
`iit.evaluation.evaluate` lists the metrics.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple


class Control(NamedTuple):
    """What is scored in an alignment's place, on the same pairs.

    Arguments:
        label: what people read for its IIA.
        short: its name in the labels of other metrics. People are shown these only where it has a
            short name.
        kind: "null" lacks what the hypothesis claims. An accuracy that it reaches, too, says
            nothing. "reference" may well have it. "shown" is printed, and not compared with
            the alignment pair by pair.
    """

    label: str
    short: str = ""
    kind: str = "reference"


CONTROLS: Mapping[str | None, Control] = {
    None: Control("trained intervention", "trained", "shown"),
    "vanilla": Control("vanilla patching (whole vector)", "vanilla"),
    "pca_subspace": Control("principal components of equal rank"),
    "random_subspace": Control("random subspaces of equal rank", "random subspaces", "null"),
    "majority": Control("majority answer of the training pairs", kind="null"),
    "no_intervention": Control("no intervention", "no intervention", "null"),
    "inert_resampled": Control("trained, inert parts from a third input"),
    "shuffled_label": Control("trained on shuffled labels", kind="null"),
    "untrained_network": Control("trained in an untrained network", "untrained network", "null"),
    "wrong_site": Control("trained at a wrong site", kind="null"),
    "least_rank": Control("trained at the least rank that the variable's values need"),
    "placebo_direction": Control("moved as far in a random direction"),
    "placebo_pair": Control("moved by another pair's difference"),
    "seeds": Control("all seeds", "the seeds' subspaces", "shown"),
    "read_part": Control("the part that downstream reads"),
    "read_part/vanilla": Control("what downstream reads of the whole vector", kind="shown"),
    "read_part/random_subspace": Control(
        "the part of random subspaces that downstream reads", kind="shown"
    ),
    "null_part": Control("the part that downstream does not read", kind="shown"),
}
"""{control: its words}, in the order of tables; None is the alignment itself."""
METRIC_LABELS = {
    "iia": "",
    "abstraction_error/down": "error as an abstraction, interventions from the causal model",
    "abstraction_error/up": "error as an abstraction, interventions from the network",
    "divergence": "edited activations farther from natural than 95% of unedited",
    "principal_angle": "degrees between {}",
    "principal_angle/natural": "degrees between {}, where natural activations vary",
    "principal_angle/read": "degrees between {}, in what downstream reads",
    "iia_difference": "trained − {}, paired",
    "iia_forced": "right among the pair's own answers, {}",
    "cut": "the source's own answer, of all that the sites hold",
    "disentangle": "disentangle score, {}",
    "logit_difference": "logit(label) − logit(own answer), {}",
    "answer_agreement": "label and source's answer agree up to the site",
    "task_accuracy": "task accuracy, before filtering",
}
"""{metric: its words}, in the order of tables; {} stands for the short name of the control."""
SUBSETS = {
    "changing": "changing",
    "unchanging": "unchanging",
    "unchanging/another_asked": "unchanging, another variable asked for",
    "unchanging/same_value": "unchanging, of the same value",
    "all": "all",
}
"""{subset: its words}, in the order of tables; kinds of pairs come after them."""
NULLS = [name for name, control in CONTROLS.items() if name is not None and control.kind == "null"]
COMPARED = [name for name, control in CONTROLS.items() if control.kind != "shown"]
"""The controls that the alignment is compared with, pair by pair."""

RIVAL = "rival/"
"""Control `rival/NAME`: the alignment, scored by the label that a rival gives."""
OFF_TARGET = "off_target/"
"""Control `off_target/VARIABLE`: the edit of that variable, where the row's variable is swapped."""
RANK = "rank/"
"""Control `rank/K`: the same claim, trained with K dimensions."""
KIND = "kind/"
"""Subset `kind/NAMES`: the pairs whose source differs from the base in exactly these variables."""
DRAW_PREFIXES = {
    "random_subspace": "random_subspace/",
    "read_part/random_subspace": "read_part/random_subspace/",
    "seeds": "seed/",
}
"""{pooled control: how the names of its single draws begin}.

A pooled control is drawn several times, and a pair counts with the mean over the draws.
"""
# (metric, control) → its number in the order of a table.
_ORDER = {pair: number for number, pair in enumerate(product(METRIC_LABELS, CONTROLS))}


def pool_of(control: str | None) -> str | None:
    """The pooled control that a single draw belongs to; None for a control that is no draw."""
    return next(
        (
            pool
            for pool, start in DRAW_PREFIXES.items()
            if control is not None and control.startswith(start)
        ),
        None,
    )


def draw(pool: str, number: int) -> str:
    """The name of a pooled control's single draw."""
    return f"{DRAW_PREFIXES[pool]}{number}"


def draws_of(scored: Mapping[Any, Any], pool: str) -> list[Any]:
    """The figures of a pooled control's single draws, from {control: figure}."""
    return [figure for control, figure in scored.items() if pool_of(control) == pool]


def figure_label(control: str | None, metric: str) -> str | None:
    """The words that people read for a figure; None for a figure that only `metrics.json` has."""
    # None is the alignment itself; its name would begin with none of the prefixes.
    name = control or ""
    if pool_of(control) is not None:
        return None
    if name.startswith(RIVAL):
        return f"trained, scored by the rival {name.removeprefix(RIVAL)!r}"
    if name.startswith(OFF_TARGET):
        return f"the edit of {name.removeprefix(OFF_TARGET)!r} instead (off target)"
    if name.startswith(RANK) and metric == "iia":
        return f"trained at rank {name.removeprefix(RANK)}"
    if (metric, control) not in _ORDER:
        return f"{metric}, {control or 'trained'}"
    if metric == "iia":
        return CONTROLS[control].label
    short = CONTROLS[control].short
    return METRIC_LABELS[metric].format(short) if short else None


def table_order(control: str | None, metric: str) -> int:
    """Where a figure stands in a table; one without a label of its own comes last."""
    return _ORDER.get((metric, control), len(_ORDER))
