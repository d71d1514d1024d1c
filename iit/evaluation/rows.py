"""From outcomes of pairs to rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.outcomes import edits_of
from iit.result import TRAINED, Arm, Cell, Interval, Row, clustered_interval
from iit.result.vocabulary import COMPARED, KIND


def describe(alignment: Alignment, pairs: Pairs, variables: Sequence[str]) -> dict[str, Any]:
    """The columns of a row that say which cell it belongs to; the seed is left to the caller.

    Of several variables the first one's edit is described. Without variables all columns but
    network and task are None.
    """
    studied, task = alignment.studied, pairs.task
    columns: dict[str, Any] = dict.fromkeys(Cell._fields) | {
        "network": studied.name if studied else type(alignment.network).__name__,
        "task": task.name if task else "file",
    }
    if not variables:
        return columns
    edit = edits_of(alignment)[variables[0]]
    columns |= {
        "variable": "+".join(variables),
        "method": edit.intervention.name,
        "rank": edit.intervention.learned_rank(),
    }
    site, *others = edit.sites
    if others:
        # Several sites have no one layer, head or position.
        return columns | {"component": "+".join(map(str, edit.sites))}
    return columns | site.coordinates()


def row_of(
    cell_columns: Mapping[str, Any],
    interval: Interval,
    metric: str,
    subset: str = "all",
    arm: Arm = TRAINED,
) -> Row:
    """The row of one figure; `cell_columns` say which cell it belongs to."""
    return Row(**cell_columns, subset=subset, **arm._asdict(), metric=metric, **interval._asdict())


@dataclass(frozen=True)
class Group:
    """The pairs of one set of variables, whose figures are rows of one cell.

    encoded: all pairs of the split, n of them.
    among: bool[n], the pairs of the group.
    cell_columns: the columns that say which cell the rows belong to.
    resamples: of the bootstrap behind every interval.
    """

    encoded: EncodedPairs
    among: np.ndarray
    cell_columns: Mapping[str, Any]
    resamples: int

    @property
    def changing(self) -> np.ndarray:
        """bool[n], the changing pairs of the group."""
        return self.among & self.encoded.changing.numpy()

    @property
    def unchanging(self) -> np.ndarray:
        """bool[n], the other pairs of the group."""
        return self.among & ~self.encoded.changing.numpy()

    @property
    def kinds(self) -> np.ndarray:
        """str[n], the kinds of all pairs; "" where they have none."""
        return np.array(self.encoded.kinds or [""] * len(self.among))

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
        return row_of(self.cell_columns, interval, metric, subset, arm)

    def rows(self, metric: str, values: np.ndarray, arm: Arm = TRAINED) -> list[Row]:
        """The mean of a figure over all and over changing pairs, where there are any."""
        rows = []
        for subset, chosen in (("all", self.among), ("changing", self.changing)):
            if chosen.any():
                rows.append(self.row(metric, values, chosen, subset, arm))
        return rows


def scores(arms: Mapping[Arm, np.ndarray], group: Group, metric: str = "iia") -> list[Row]:
    """The IIA of each arm, and how the alignment differs from its controls.

    IIA is given on all, on changing and on unchanging pairs. Of the alignment itself it is also
    given on pairs of each kind (`kind/NAME`), where there are several kinds. Where pairs know what
    their bases ask for, its unchanging pairs are given in two parts, too: another variable is asked
    for, or the value is the same.

    `disentangle` is the mean of the IIA on changing pairs (cause) and the IIA on the others
    (isolate), where there are both.

    Arguments:
        arms: bool[n] of each, or bool[n, draws] whose mean over draws counts. A rival has NaN in
            pairs of which it says nothing. Pairs do not count where the alignment itself has NaN.
        metric: the name of what is scored, where it is not IIA. The differences' name is that with
            `_difference`; only IIA has `disentangle`.

    References:
        The disentangle score: arXiv 2402.17700.
    """
    rows = []
    group = replace(group, among=group.among & ~np.isnan(arms[TRAINED]))
    for name, chosen in _parts(group).items():
        if chosen.any():
            rows.append(group.row(metric, arms[TRAINED], chosen, name))
    subsets = {"all": group.among, "changing": group.changing, "unchanging": group.unchanging}
    for subset, chosen in subsets.items():
        if not chosen.any():
            continue
        for arm, right in arms.items():
            # A rival that says nothing of some pair of the group has no figure there.
            if np.isnan(right[group.among]).any():
                continue
            # Single draws, rivals and controls that are only shown are not compared.
            is_compared = arm.control in COMPARED and arm.draw is None
            if subset != "unchanging" or is_compared or arm == TRAINED:
                # The figure of the seeds is about other seeds, so its interval resamples them.
                over_draws = arm == Arm("seeds")
                rows.append(group.row(metric, right, chosen, subset, arm, over_draws=over_draws))
            # On unchanging pairs an edit has to do nothing: no control is to be beaten there.
            if subset != "unchanging" and is_compared:
                # An averaged control, [n, draws], stands for a pair by its mean over draws.
                gap = arms[TRAINED] - right.reshape(len(right), -1).mean(1)
                name = f"{metric}_difference"
                rows.append(group.row(name, gap, chosen, subset, arm, paired=True))
    if metric != "iia" or not (group.changing.any() and group.unchanging.any()):
        return rows
    # Changing and unchanging pairs weigh the same.
    kinds = group.changing[group.among]
    for arm in (TRAINED, Arm("vanilla"), Arm("random_subspace")):
        if arm in arms:
            rows.append(group.row("disentangle", arms[arm], group.among, "all", arm, groups=kinds))
    return rows


def _parts(group: Group) -> dict[str, np.ndarray]:
    """Parts of the pairs in which only the alignment itself is scored, {subset: bool[n]}."""
    parts = {}
    if group.encoded.asked is not None:
        asked = np.array(group.encoded.asked)
        parts = {
            "unchanging/another_asked": group.unchanging & ~asked,
            "unchanging/same_value": group.unchanging & asked,
        }
    names = np.unique(group.kinds[group.among])
    if len(names) > 1:
        parts |= {f"{KIND}{kind}": group.among & (group.kinds == kind) for kind in names}
    return parts


def mean_rows(
    arms: Mapping[Arm, np.ndarray], group: Group, metric: str = "logit_difference"
) -> list[Row]:
    """The mean of a figure over the changing pairs (`cut`: all pairs) in which it is known.

    Arguments:
        arms: float[n] or float[n, draws] of each; NaN where the figure is not known. Arms of which
            it is never known are left out.
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
        if not np.isnan(values).all()
    ]
