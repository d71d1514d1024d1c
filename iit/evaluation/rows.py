"""From outcomes of pairs to rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.result import Row, clustered_interval
from iit.result.vocabulary import COMPARED, KIND


def describe(alignment: Alignment, pairs: Pairs, variables: Sequence[str]) -> dict[str, Any]:
    """The columns of a row that say which cell it belongs to.

    Of several variables the first one's edit is described. Without variables all columns but
    network and task are None.
    """
    common = {
        "network": alignment.studied.name
        if alignment.studied
        else type(alignment.network).__name__,
        "task": pairs.task.name if pairs.task else "file",
    }
    if not variables:
        return (
            dict.fromkeys(("variable", "method", "component", "layer", "head", "position", "rank"))
            | common
        )
    edit = next(
        e
        for key, e in alignment.edits.items()
        # A variable is an edit's key, or one of its blocks.
        if variables[0] in (key, *(e.intervention.blocks or ()))
    )
    site = edit.sites[0]
    # Several sites have no one layer, head or position.
    has_several = len(edit.sites) > 1
    return common | {
        "variable": "+".join(variables),
        "method": edit.intervention.name,
        "component": "+".join(str(s) for s in edit.sites)
        if has_several
        else site.component or f"{site.module}:{site.side}",
        "layer": None if has_several else site.layer,
        "head": None if has_several else _plain(site.head),
        "position": None if has_several else _plain(site.position),
        "rank": edit.intervention.learned_rank(),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def scores(
    arms: Mapping[str | None, np.ndarray],
    encoded: EncodedPairs,
    among: np.ndarray,
    facts: Mapping[str, Any],
    resamples: int,
) -> list[Row]:
    """The IIA of each arm, and how the alignment differs from its controls.

    IIA is given on all, on changing and on unchanging pairs. Of the alignment itself it is also
    given on pairs of each kind (`kind/NAME`), where there are several kinds. Where pairs know what
    their bases ask for, its unchanging pairs are given in two parts, too: another variable is asked
    for, or the value is the same.

    `disentangle` is the mean of the IIA on changing pairs (cause) and the IIA on the others
    (isolate), where there are both.

    Arguments:
        arms: control → bool[n], or bool[n, draws] whose mean over draws counts.
        among: bool[n], the pairs that count.
        facts: the columns that say which cell the rows belong to.
        resamples: of the bootstrap behind every interval.

    References:
        The disentangle score: arXiv 2402.17700.
    """
    changing, clusters = encoded.changing.numpy(), encoded.clusters
    rows = []

    def add(
        subset: str,
        chosen: np.ndarray,
        control: str | None,
        metric: str,
        values: np.ndarray,
        **options: Any,
    ) -> None:
        interval = clustered_interval(values, clusters[chosen], resamples=resamples, **options)
        rows.append(
            Row(**facts, subset=subset, control=control, metric=metric, **interval._asdict())
        )

    parts = {}
    if encoded.asked is not None:
        asked = np.array(encoded.asked)
        parts = {
            "unchanging/another_asked": ~changing & ~asked,
            "unchanging/same_value": ~changing & asked,
        }
    kinds = np.array(encoded.kinds or [""] * len(encoded))
    if len(set(kinds[among])) > 1:
        parts |= {f"{KIND}{kind}": kinds == kind for kind in np.unique(kinds[among])}
    for name, part in parts.items():
        chosen = among & part
        if chosen.any():
            add(name, chosen, None, "iia", arms[None][chosen].astype(float))
    for subset, chosen in (
        ("all", among),
        ("changing", among & changing),
        ("unchanging", among & ~changing),
    ):
        if not chosen.any():
            continue
        scored = {control: right[chosen].astype(float) for control, right in arms.items()}
        for control, values in scored.items():
            # Single draws, rivals and controls that are only shown have no row on unchanging pairs.
            if subset != "unchanging" or control in (None, *COMPARED):
                # The figure of the seeds is about other seeds, so its interval resamples them.
                add(subset, chosen, control, "iia", values, over_draws=control == "seeds")
        # On unchanging pairs an edit has to do nothing: no control is to be beaten there.
        for control in COMPARED if subset != "unchanging" else ():
            if control in scored:
                values = scored[control]
                # [n, draws]: a pooled control stands for a pair by its mean over draws.
                difference = scored[None] - (values if values.ndim == 1 else values.mean(1))
                add(subset, chosen, control, "iia_difference", difference, paired=True)
    # There are changing and unchanging pairs; as groups they weigh the same.
    if len(set(changing[among].tolist())) == 2:
        for control in (None, "vanilla", "random_subspace"):
            if control in arms:
                add(
                    "all",
                    among,
                    control,
                    "disentangle",
                    arms[control][among].astype(float),
                    groups=changing[among],
                )
    return rows


def readout(
    arms: Mapping[str | None, np.ndarray],
    encoded: EncodedPairs,
    among: np.ndarray,
    facts: Mapping[str, Any],
    resamples: int,
    metric: str = "logit_difference",
) -> list[Row]:
    """The mean of a figure over the changing pairs (`cut`: all pairs) in which it is known.

    Arguments:
        arms: control → float[n] or float[n, draws]; NaN where the figure is not known.
    """
    subset = "all" if metric == "cut" else "changing"
    chosen = among & ~np.isnan(arms[None]) & (encoded.changing.numpy() | (subset == "all"))
    if not chosen.any():
        return []
    # All metrics but this one are shares.
    bounded, clusters = metric != "logit_difference", encoded.clusters[chosen]
    rows = []
    for control, values in arms.items():
        interval = clustered_interval(
            values[chosen], clusters, bounded=bounded, resamples=resamples
        )
        rows.append(
            Row(**facts, subset=subset, control=control, metric=metric, **interval._asdict())
        )
    return rows


def task_accuracy(right: np.ndarray, facts: Mapping[str, Any]) -> Row:
    """The share of prompts that are answered rightly, as a row. Each prompt is its own cluster."""
    interval = clustered_interval(right, np.arange(len(right)))
    return Row(**facts, subset="all", control=None, metric="task_accuracy", **interval._asdict())
