"""Rows from what an alignment did on pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.result import Row, clustered_interval
from iit.result.vocabulary import COMPARED, KIND


def describe(alignment: Alignment, pairs: Pairs, variables: Sequence[str]) -> dict[str, Any]:
    """The columns of a row that tell which cell it belongs to; of several variables the first one's
    edit is described.
    """
    what = {
        "network": alignment.studied.name
        if alignment.studied
        else type(alignment.network).__name__,
        "task": pairs.task.name if pairs.task else "file",
    }
    if not variables:
        return (
            dict.fromkeys(("variable", "method", "component", "layer", "head", "position", "rank"))
            | what
        )
    edit = next(
        e
        for key, e in alignment.edits.items()
        if variables[0] in (key, *(e.intervention.blocks or ()))
    )
    site = edit.sites[0]
    several = len(edit.sites) > 1
    return what | {
        "variable": "+".join(variables),
        "method": edit.intervention.name,
        "component": "+".join(str(s) for s in edit.sites)
        if several
        else site.component or f"{site.module}:{site.side}",
        "layer": None if several else site.layer,
        "head": None if several else _plain(site.head),
        "position": None if several else _plain(site.position),
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
    """IIA of the arms {control: bool[n]} on all, on changing and on the other pairs, and how the
    trained one differs from its controls;
    of the trained one also on pairs of each kind (`kind/NAME`), where there are several. Where
    pairs know what their bases ask for, the unchanging pairs are also given in two parts: another
    variable is asked for, or the value is the same.

    `disentangle` is the mean of the IIA on changing pairs (cause) and on the others (isolate; arXiv
    2402.17700), where there are both.

    among: bool[n], the pairs that count. facts: the columns that tell whose rows they are.
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
            if subset != "unchanging" or control in (None, *COMPARED):
                add(subset, chosen, control, "iia", values, over_draws=control == "seeds")
        for control in COMPARED if subset != "unchanging" else ():
            if control in scored:
                values = scored[control]
                difference = scored[None] - (values if values.ndim == 1 else values.mean(1))
                add(subset, chosen, control, "iia_difference", difference, paired=True)
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
    """The mean figure of the changing pairs (`cut`: all) in which it is known (not NaN)."""
    subset = "all" if metric == "cut" else "changing"
    chosen = among & ~np.isnan(arms[None]) & (encoded.changing.numpy() | (subset == "all"))
    if not chosen.any():
        return []
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
    """The share of prompts that are answered rightly."""
    interval = clustered_interval(right, np.arange(len(right)))
    return Row(**facts, subset="all", control=None, metric="task_accuracy", **interval._asdict())
