"""Accuracy against the capacity of the map: a rung for each rank and depth."""

from collections.abc import Sequence

import numpy as np

from iit.result import Row, where
from iit.result.figure import Figure
from iit.result.maps import styled
from iit.result.table import Table, with_interval

# Split → (its name, colour, marker). Okabe and Ito's colours, which colour-blind readers can tell
# apart.
_STYLES = {"train": ("seen", "#D55E00", "o"), "test": ("unseen", "#0072B2", "s")}


def _panels(rows: Sequence[Row]) -> list[tuple[str | None, str, str]]:
    """(control, metric, title) of the three figures of each rung."""
    # "iia" or "iia_forced": a ladder has one metric.
    metric = where(rows, control=None)[0].metric
    return [
        (None, metric, "in the network"),
        ("untrained_network", metric, "in untrained networks"),
        ("untrained_network", f"{metric}_difference", "difference"),
    ]


def rungs(rows: Sequence[Row]) -> dict[str | None, str]:
    """{method: its name on the axis, such as "rank 4" or "depth 2"}, in the rows' order."""
    # The rung's name is what follows the last comma of the method.
    return {row.method: str(row.method).rpartition(", ")[2] for row in rows}


def ladder_tables(rows: Sequence[Row]) -> list[Table]:
    """A table of IIA on changing pairs, with a line for each rung.

    The columns are the network, the untrained networks and the difference, on seen and on unseen
    pairs.

    Returns:
        One table; none for a single rung.
    """
    rows = where(rows, subset="changing")
    names = rungs(where(rows, split="validation", control="untrained_network"))
    if len(names) < 2:
        return []
    header = ["rung"]
    for label, _, _ in _STYLES.values():
        header += [f"{label}: network", "untrained", "difference"]
    lines = []
    for method, name in names.items():
        line = [name]
        for split in _STYLES:
            for control, metric, _ in _panels(rows):
                (row,) = where(rows, method=method, split=split, control=control, metric=metric)
                line.append(
                    with_interval(row) if metric.endswith("_difference") else f"{row.value:.3f}"
                )
        lines.append(line)
    return [
        Table(
            "IIA on changing pairs by capacity", header, lines, _caption(where(rows, split="test"))
        )
    ]


def _caption(rows: Sequence[Row]) -> str:
    """The number of unseen pairs and, where pairs are scored among their own answers, the chance.

    The chance is the accuracy without an edit.

    Arguments:
        rows: those on changing test pairs.
    """
    metric = _panels(rows)[0][1]
    caption = f"Unseen: n = {where(rows, control=None)[0].n} changing test pairs."
    words = {
        "no_intervention": "the network",
        "untrained_network/no_intervention": "untrained networks",
    }
    chance = []
    for control, network in words.items():
        # The chance stands in the rows of every rung; all of them say the same.
        for row in where(rows, control=control, metric=metric)[:1]:
            chance.append(f"{row.value:.3f} in {network}")
    return f"{caption} Without an edit (chance): {', '.join(chance)}." if chance else caption


@styled
def ladder_figure(rows: Sequence[Row]) -> Figure:
    """Three panels of IIA on changing pairs: in the network, in untrained ones, and the difference.

    Bars are 95% intervals. A line joins the rungs of one family: ranks of linear subspaces, or
    depths of reversible maps.
    """
    names = rungs(rows)
    order = list(names)
    figure = Figure(figsize=(11, 3.6))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (control, metric, title) in zip(panels, _panels(rows), strict=True):
        for number, (split, (label, colour, marker)) in enumerate(_STYLES.items()):
            figures = where(rows, split=split, subset="changing", control=control, metric=metric)
            for family in ("rank", "depth"):
                line = [row for row in figures if names[row.method].startswith(family)]
                if not line:
                    continue
                # Seen and unseen stand side by side, so that their bars do not cover each other.
                x = [order.index(row.method) + 0.12 * number for row in line]
                bars = [(row.value, row.low, row.high) for row in line]
                value, low, high = np.array(bars).T
                # Both families look alike, and the legend names a style once.
                legend = label if family == "rank" else None
                reach = [value - low, high - value]
                axes.errorbar(x, value, reach, color=colour, marker=marker, label=legend)
        axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_xticks(range(len(names)), names.values(), rotation=60, ha="right")
        axes.set_title(title)
    labels = {"iia": "IIA on changing pairs", "iia_forced": "right among the pair's answers"}
    panels[0].set_ylabel(labels[_panels(rows)[0][1]])
    # The panels share this axis. Its lower end follows the figures.
    panels[0].set_ylim(top=1.02)
    panels[0].legend(loc="lower right")
    return figure
