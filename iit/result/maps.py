"""Figures of a map: heatmaps over layers, heads and positions, and curves with intervals."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from iit.result.figure import Figure
from iit.result.row import Row

Line = Row | Mapping[str, Any]
"""A line of a table: a row, or a mapping of its columns."""
Labels = Mapping[Any, str] | None
"""{role or token index: an example of its token}, which stands below the name."""
MetricLines = list[dict[str, Any]]
"""The lines of one metric, as mappings of their columns."""

# Okabe and Ito's colours, which colour-blind readers can tell apart. Markers and dashes tell curves
# apart in print, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")
styled = rc_context(
    {
        "figure.constrained_layout.use": True,
        "figure.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "image.aspect": "auto",
        "image.interpolation": "nearest",
        "image.origin": "lower",
        "legend.frameon": False,
        "errorbar.capsize": 2,
    }
)
"""The style of all figures, as a decorator of the functions that draw them."""
SHARES = ("iia", "probability", "attention", "task_accuracy", "accuracy")
"""Metrics that lie between 0 and 1."""


@styled
def heatmap(
    lines: Any,
    *,
    metric: str | None = None,
    x: str | None = None,
    y: str = "layer",
    panel: str | None = None,
    labels: Labels = None,
    centre: float = 0.0,
    title: str | None = None,
) -> Figure:
    """A heatmap for each value of the column `panel`, all on one scale.

    Cells without a figure are hatched. The cell farthest from the centre is outlined in each panel.
    Colours reach from 0 to 1 for shares (`SHARES`), and 1 to either side of the centre for
    normalised metrics. These do not depend on the figures, so pictures can be compared. For others
    they reach as far below the centre as above, so that white is the centre. The colour bar has a
    pointed end where figures lie beyond.

    Arguments:
        lines: of a table; or `Effects`, which have a metric (their first), labels and a centre of
            their own. Without x, what varies among their cells is drawn, as `map_figure` does.
        metric: has to be named for lines of a table.
        x, y: columns of the lines; x is the position by default.
        labels: value of x → an example of its token, which stands below the name.
        centre: the value of a cell where nothing happens.

    Raises:
        ValueError: where no line has the metric, and where several stand for one cell.
    """
    if hasattr(lines, "baseline"):
        metric, labels = metric or next(iter(lines.values)), labels or lines.labels
        centre, lines = lines.baseline(metric), lines.table()
        if x is None:
            return map_figure(lines, metric=metric, labels=labels, centre=centre, title=title)
    metric, x = f"{metric}", x or "position"
    table = _table(lines, metric)
    columns, rows = distinct(table, x), distinct(table, y)
    panel_lines = split_by(table, panel)
    # [panel, row, column]; NaN where a cell has no figure.
    grids = np.array([_grid(part, x, y, columns, rows) for part in panel_lines.values()])
    low, high, colours = colour_range(grids, metric, centre)
    texts = [label_of(value, labels) for value in columns]
    longest = max(map(len, "\n".join(texts).split("\n")))

    # In inches: room for the longest label of each column.
    width = max(1.4, max(0.34, 0.075 * longest) * len(columns))
    height = max(1.6, 0.2 * len(rows))
    figure = Figure(figsize=(1.8 + width * len(grids), 1.3 + height))
    panels = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]

    # At most about a dozen labels on the y axis.
    step = max(1, len(rows) // 12)
    for axes, name, grid in zip(panels, panel_lines, grids, strict=True):
        hatch(axes)
        axes.imshow(grid, vmin=low, vmax=high, cmap=colours)
        axes.set_xticks(range(len(columns)), texts, fontsize=8)
        axes.set_yticks(range(0, len(rows), step), list(map(str, rows[::step])))
        axes.set_xlabel(x)
        if name is not None:
            axes.set_title(label_of(name, labels))
        axes.spines[:].set_visible(False)
        if not np.isnan(grid).all():
            # The outline of the cell farthest from the centre.
            farthest = np.nanargmax(np.abs(grid - centre))
            row, column = np.unravel_index(farthest, grid.shape)
            axes.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6
                )
            )

    panels[0].set_ylabel(y)
    beyond = bool(np.nanmin(grids) < low), bool(np.nanmax(grids) > high)
    pointed_ends = {(True, True): "both", (True, False): "min", (False, True): "max"}
    extend = pointed_ends.get(beyond, "neither")
    n = max(map(itemgetter("n"), table))
    bar_label = f"{metric.replace('_', ' ')} (n = {n})"
    figure.colorbar(panels[-1].images[0], ax=figure.axes, label=bar_label, extend=extend)
    if title:
        figure.suptitle(title)
    return figure


@styled
def curves(
    lines: Sequence[Line],
    *,
    x: str,
    metrics: Sequence[str],
    series: str = "method",
    title: str | None = None,
) -> Figure:
    """A panel for each metric: its value against the column x, with a band for the interval.

    There is a curve for each value of `series`.

    Raises:
        ValueError: for a metric that no line has.
    """
    figure = Figure(figsize=(3.6 * len(metrics) + 0.6, 3.2))
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        table = _table(lines, metric)
        marks = distinct(table, x)
        places = marks
        if not are_numbers(marks):
            # Values that are no numbers stand side by side.
            places = range(len(marks))
            texts = [str(mark).replace("_", "\n", 1) for mark in marks]
            axes.set_xticks(places, texts, fontsize=8)
        place_of = dict(zip(marks, places, strict=True))

        for number, (name, part) in enumerate(split_by(table, series).items()):
            points = [
                (place_of[line[x]], line["value"], line["low"], line["high"]) for line in part
            ]
            at, value, low, high = zip(*sorted(points), strict=True)
            # Beyond the six colours the dashes change.
            turn, kind = divmod(number, len(COLOURS))
            colour = COLOURS[kind]
            axes.plot(
                at,
                value,
                DASHES[turn % len(DASHES)],
                color=colour,
                marker=MARKERS[kind],
                markersize=4,
                linewidth=1.2,
                label=str(name),
            )
            axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)

        axes.set(xlabel=x.replace("_", " "), ylabel=metric.replace("_", " "))
        if metric in SHARES:
            axes.set_ylim(-0.02, 1.02)

    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(len(names), 2 * len(metrics)),
        fontsize=8,
    )
    if title:
        figure.suptitle(title)
    return figure


class Layout(NamedTuple):
    """What a figure of a map has on its axes.

    Arguments:
        table: the lines of the metric, with the columns that are shown.
        x: the column of the horizontal axis.
        y: that of the vertical axis of a heatmap; None of curves.
        panel: the column that has a panel, or a curve, for each of its values.
        position: the position of all cells, in words, where it is one and no axis shows it.
    """

    table: MetricLines
    x: str
    y: str | None
    panel: str | None
    position: str = ""


def map_layout(lines: Sequence[Line], *, metric: str, labels: Labels = None) -> Layout:
    """The axes that suit what varies among the lines (see `map_figure`).

    Raises:
        ValueError: where no line has the metric.
    """
    table = _table(lines, metric)
    varying = [
        name
        for name in ("component", "layer", "head", "position", "unit")
        if len(split_by(table, name)) > 1
    ]
    position = ""
    if "position" not in varying and table[0]["position"] is not None:
        position = label_of(table[0]["position"], labels)
    if "unit" in varying:
        for line in table:
            place = [f"{name} {label_of(line[name])}" for name in varying if name != "unit"]
            line["place"] = ", ".join(place) or line["component"]
        return Layout(table, "unit", None, "place", position)

    for line in table:
        if line["layer"] is None:
            line["layer"] = line["component"]

    panel = "component" if "component" in varying else None
    if "head" in varying and "position" in varying and "layer" not in varying:
        return Layout(table, "position", "head", panel)
    if "head" in varying:
        panel = _head_panel(table, varying, labels)
        return Layout(table, "head", "layer", panel, position)
    if "position" in varying:
        return Layout(table, "position", "layer", panel)
    return Layout(table, "layer", None, "component", position)


def map_figure(
    lines: Sequence[Line],
    *,
    metric: str,
    labels: Labels = None,
    centre: float = 0.0,
    title: str | None = None,
) -> Figure:
    """The figure that suits what varies among the lines.

    It is layer × head, head × position of one layer, layer × position, or a curve over layers or
    units. A site without a layer stands at its component's name in place of one. Where all cells
    have one position, the title says which.
    """
    table, x, y, panel, position = map_layout(lines, metric=metric, labels=labels)
    if position:
        title = f"{title or ''} @ {position}".replace("\n", " ").strip()
    if y is None:
        assert panel is not None
        return curves(table, x=x, metrics=[metric], series=panel, title=title)
    axes = {"x": x, "y": y, "panel": panel}
    return heatmap(table, metric=metric, labels=labels, centre=centre, title=title, **axes)


def _head_panel(table: MetricLines, several: Sequence[str], labels: Labels) -> str | None:
    """The column that has a panel for each value, in a figure of layer × head.

    A component without heads, beside one that has them, becomes a column of its own among the
    heads.
    """
    with_heads = {line["component"] for line in table if line["head"] is not None}
    # Such a component shares the panel, so the panels need not tell components apart.
    joins = "component" in several and len(with_heads) == 1
    for line in table:
        line["place"] = f"{line['component']} @ {label_of(line['position'], labels)}"
        if joins and line["head"] is None:
            line["head"] = line["component"].replace("_", "\n", 1)
    if "position" in several:
        return "position" if len(with_heads) == 1 else "place"
    return None if joins else "component"


def colour_range(values: Any, metric: str, centre: float) -> tuple[float, float, str]:
    """The ends of the colours of a heatmap, and the name of the colour map (see `heatmap`)."""
    if metric in SHARES:
        return 0.0, 1.0, "viridis"
    # A map without any effect would have no range of colours.
    reach = float(np.nanmax(np.abs(np.asarray(values) - centre))) or 1.0
    if metric.startswith("normalised_"):
        reach = 1.0
    return centre - reach, centre + reach, "PuOr_r"


def _table(lines: Sequence[Line], metric: str) -> MetricLines:
    """The lines of a metric, as mappings.

    Lists, as several heads or positions are written, become tuples, which can be keys.
    """
    table, metrics = [], set()
    for line in lines:
        columns = dict(columns_of(line))
        metrics.add(columns["metric"])
        if columns["metric"] != metric:
            continue
        for name, value in columns.items():
            if isinstance(value, list):
                columns[name] = tuple(value)
        table.append(columns)
    if not table:
        raise ValueError(f"No line has the metric {metric!r}; there are {sorted(metrics)}.")
    return table


def columns_of(line: Line) -> Mapping[str, Any]:
    """The line of a table as a mapping of its columns."""
    return line.to_dict() if isinstance(line, Row) else line


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are numbers."""
    return all(isinstance(value, int | float) for value in values)


def distinct(table: MetricLines, column: str) -> list[Any]:
    """The values of a column: numbers in ascending order, others as they come."""
    values = list(dict.fromkeys(map(itemgetter(column), table)))
    if are_numbers(values):
        values.sort()
    return values


def split_by(table: MetricLines, column: str | None) -> dict[Any, MetricLines]:
    """Value of the column → its lines; without a column all lines, at None."""
    if column is None:
        return {None: table}
    parts = {value: [] for value in distinct(table, column)}
    for line in table:
        parts[line[column]].append(line)
    return parts


def _grid(
    table: MetricLines, x: str, y: str, columns: Sequence[Any], rows: Sequence[Any]
) -> np.ndarray:
    grid = np.full((len(rows), len(columns)), np.nan)
    for line in table:
        place = rows.index(line[y]), columns.index(line[x])
        if not np.isnan(grid[place]):
            raise ValueError(
                f"Several lines stand for {y}={line[y]}, {x}={line[x]}: choose among them, "
                "or give `panel`."
            )
        grid[place] = line["value"]
    return grid


def label_of(value: Any, labels: Labels = None) -> str:
    """The text of a value on an axis, with an example of its token below."""
    name = str(value)
    if value is None:
        name = "all"
    elif isinstance(value, tuple):
        name = " ".join(map(str, value))
    if labels and value in labels:
        name += f"\n{labels[value]!r}"
    return name


def hatch(axes: Axes) -> None:
    """Hatch the background, so that a cell without a figure does not look like a 0."""
    axes.set_facecolor("0.92")
    axes.patch.set(hatch="////", edgecolor="0.75")
