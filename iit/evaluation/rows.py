"""From outcomes of pairs to rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.result import TRAINED, Arm, Interval, Row, clustered_interval
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


def row_of(
    facts: Mapping[str, Any],
    interval: Interval,
    metric: str,
    subset: str = "all",
    arm: Arm = TRAINED,
) -> Row:
    """The row of one figure; `facts` are the columns that say which cell it belongs to."""
    return Row(**facts, subset=subset, **arm._asdict(), metric=metric, **interval._asdict())


@dataclass(frozen=True)
class Group:
    """The pairs of one set of variables, whose figures are rows of one cell.

    encoded: all pairs of the split, n of them.
    among: bool[n], the pairs of the group.
    facts: the columns that say which cell the rows belong to.
    resamples: of the bootstrap behind every interval.
    """

    encoded: EncodedPairs
    among: np.ndarray
    facts: Mapping[str, Any]
    resamples: int

    @property
    def changing(self) -> np.ndarray:
        """bool[n], the changing pairs of the group."""
        return self.among & self.encoded.changing.numpy()

    @property
    def unchanging(self) -> np.ndarray:
        """bool[n], the other pairs of the group."""
        return self.among & ~self.encoded.changing.numpy()

    def row(
        self,
        metric: str,
        values: np.ndarray,
        chosen: np.ndarray,
        subset: str = "all",
        arm: Arm = TRAINED,
        **options: Any,
    ) -> Row:
        """The mean of a figure over some pairs.

        Arguments:
            values: [n], or [n, draws] whose mean over draws counts.
            chosen: bool[n], the pairs of the subset.
            options: as `clustered_interval` takes them.
        """
        clusters = self.encoded.clusters[chosen]
        figures = values[chosen].astype(float)
        interval = clustered_interval(figures, clusters, resamples=self.resamples, **options)
        return row_of(self.facts, interval, metric, subset, arm)


def scores(arms: Mapping[Arm, np.ndarray], group: Group) -> list[Row]:
    """The IIA of each arm, and how the alignment differs from its controls.

    IIA is given on all, on changing and on unchanging pairs. Of the alignment itself it is also
    given on pairs of each kind (`kind/NAME`), where there are several kinds. Where pairs know what
    their bases ask for, its unchanging pairs are given in two parts, too: another variable is asked
    for, or the value is the same.

    `disentangle` is the mean of the IIA on changing pairs (cause) and the IIA on the others
    (isolate), where there are both.

    Arguments:
        arms: bool[n] of each, or bool[n, draws] whose mean over draws counts.

    References:
        The disentangle score: arXiv 2402.17700.
    """
    subsets = {"all": group.among, "changing": group.changing, "unchanging": group.unchanging}
    rows = []
    for name, chosen in _parts(group).items():
        if chosen.any():
            rows.append(group.row("iia", arms[TRAINED], chosen, name))
    for subset, chosen in subsets.items():
        if not chosen.any():
            continue
        for arm, right in arms.items():
            # Single draws, rivals and controls that are only shown have no row on unchanging pairs.
            has_row = arm.draw is None and arm.control in (None, *COMPARED)
            if subset != "unchanging" or has_row:
                # The figure of the seeds is about other seeds, so its interval resamples them.
                over_draws = arm == Arm("seeds")
                rows.append(group.row("iia", right, chosen, subset, arm, over_draws=over_draws))
        # On unchanging pairs an edit has to do nothing: no control is to be beaten there.
        for control in COMPARED if subset != "unchanging" else ():
            arm = Arm(control)
            if arm in arms:
                right = arms[arm].astype(float)
                # [n, draws]: a pooled control stands for a pair by its mean over draws.
                mean = right if right.ndim == 1 else right.mean(1)
                rows.append(
                    group.row(
                        "iia_difference", arms[TRAINED] - mean, chosen, subset, arm, paired=True
                    )
                )
    if not (group.changing.any() and group.unchanging.any()):
        return rows
    # There are changing and unchanging pairs; as groups they weigh the same.
    kinds = group.changing[group.among]
    for arm in (TRAINED, Arm("vanilla"), Arm("random_subspace")):
        if arm in arms:
            rows.append(group.row("disentangle", arms[arm], group.among, "all", arm, groups=kinds))
    return rows


def _parts(group: Group) -> dict[str, np.ndarray]:
    """Parts of the pairs in which only the alignment itself is scored, {subset: bool[n]}."""
    encoded = group.encoded
    parts = {}
    if encoded.asked is not None:
        asked = np.array(encoded.asked)
        parts = {
            "unchanging/another_asked": group.unchanging & ~asked,
            "unchanging/same_value": group.unchanging & asked,
        }
    kinds = np.array(encoded.kinds or [""] * len(encoded))
    names = np.unique(kinds[group.among])
    if len(names) > 1:
        parts |= {f"{KIND}{kind}": group.among & (kinds == kind) for kind in names}
    return parts


def readout(
    arms: Mapping[Arm, np.ndarray], group: Group, metric: str = "logit_difference"
) -> list[Row]:
    """The mean of a figure over the changing pairs (`cut`: all pairs) in which it is known.

    Arguments:
        arms: float[n] or float[n, draws] of each; NaN where the figure is not known.
    """
    subset, pairs = ("all", group.among) if metric == "cut" else ("changing", group.changing)
    chosen = pairs & ~np.isnan(arms[TRAINED])
    if not chosen.any():
        return []
    # All metrics but this one are shares.
    bounded = metric != "logit_difference"
    return [
        group.row(metric, values, chosen, subset, arm, bounded=bounded)
        for arm, values in arms.items()
    ]


def task_accuracy(right: np.ndarray, facts: Mapping[str, Any]) -> Row:
    """The share of prompts that are answered rightly, as a row. Each prompt is its own cluster."""
    return row_of(facts, clustered_interval(right, np.arange(len(right))), "task_accuracy")
