"""Accuracy against the capacity of the map: a rung for each rank and depth."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from rich.table import Table

from iit.result import Row

_STYLES = {"train": ("seen", "#D55E00", "o"), "test": ("unseen", "#0072B2", "s")}


def _panels(rows: Sequence[Row]) -> list[tuple[str | None, str, str]]:
    """(control, metric, title) of the three figures of each rung."""
    metric = next(row.metric for row in rows if row.control is None)
    return [
        (None, metric, "in the network"),
        ("untrained_network", metric, "in untrained networks"),
        ("untrained_network", f"{metric}_difference", "difference"),
    ]


def rungs(rows: Sequence[Row]) -> dict[str, str]:
    """Method → what it is called on the axis, in the rows' order: "rank 4", "depth 2"."""
    return {row.method: row.method.rpartition(", ")[2] for row in rows if row.method is not None}


def is_ladder(rows: Sequence[Row]) -> bool:
    """Whether several methods stand beside an untrained network on validation, as only a ladder's do."""
    beside = {row.method for row in rows if (row.split, row.control) == ("validation", "untrained_network")}
    return len(beside) > 1


def ladder_lines(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(header, a line for each rung): IIA on changing pairs in the network and in the untrained one, and their difference with its
    interval, on seen and on unseen prompts."""
    header, body = ["rung"], []
    for label, _, _ in _STYLES.values():
        header += [f"{label}: network", "untrained", "difference"]
    for method, name in rungs(rows).items():
        line = [name]
        for split in _STYLES:
            of = [row for row in rows if (row.method, row.split, row.subset) == (method, split, "changing")]
            for control, metric, _ in _panels(rows):
                (row,) = (row for row in of if (row.control, row.metric) == (control, metric))
                line.append(
                    f"{row.value:.3f}" + (f" ({row.low:.3f} to {row.high:.3f})" if metric.endswith("_difference") else "")
                )
        body.append(line)
    return header, body


def ladder_caption(rows: Sequence[Row]) -> str:
    """The number of unseen pairs, and where pairs are scored among their own answers, what no edit reaches there."""
    of = {
        row.control: row for row in rows if (row.split, row.subset) == ("test", "changing") and row.metric == _panels(rows)[0][1]
    }
    caption = f"Unseen: n = {of[None].n} changing test pairs."
    words = {"no_intervention": "the network", "untrained_network/no_intervention": "untrained networks"}
    chance = [f"{of[name].value:.3f} in {where}" for name, where in words.items() if name in of]
    return f"{caption} Without an edit (chance): {', '.join(chance)}." if chance else caption


def ladder_table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    header, body = ladder_lines(rows)
    table = Table(title="IIA on changing pairs by capacity", caption=ladder_caption(rows))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in body:
        table.add_row(*line)
    return table


def ladder_figure(rows: Sequence[Row]) -> Figure:
    """Three panels: IIA on changing pairs in the network, in an untrained one, and the difference, with 95% intervals. Lines join what is
    one family: ranks of linear subspaces, depths of reversible maps."""
    names = rungs(rows)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (control, metric, title) in zip(panels, _panels(rows), strict=True):
        for number, (split, (label, colour, marker)) in enumerate(_STYLES.items()):
            found = {
                row.method: row
                for row in rows
                if (row.split, row.subset, row.control, row.metric) == (split, "changing", control, metric)
            }
            for family in ("rank", "depth"):
                here = [(i, found[m]) for i, (m, told) in enumerate(names.items()) if told.startswith(family) and m in found]
                if not here:
                    continue
                x = [i + 0.12 * number for i, _ in here]
                y = [row.value for _, row in here]
                reach = [[row.value - row.low for _, row in here], [row.high - row.value for _, row in here]]
                axes.errorbar(x, y, reach, color=colour, marker=marker, label=label if family == "rank" else None, capsize=2)
        axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_xticks(range(len(names)), list(names.values()), rotation=60, ha="right")
        axes.set(title=title, ylim=(-0.1 if metric.endswith("_difference") else -0.02, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    forced = _panels(rows)[0][1] == "iia_forced"
    panels[0].set_ylabel(f"IIA on changing pairs{', among their own answers' if forced else ''}")
    panels[0].legend(frameon=False, loc="lower right")
    return figure
