"""Figures of a map: heatmaps over layers, heads and positions, and curves with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from iit.result import Row

Line = Row | Mapping[str, Any]
"""A line of a table: a row, or a mapping of its columns."""

# Okabe and Ito's colours: told apart by colour-blind eyes; markers and dashes tell them apart in print, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")
SHARES = ("iia", "probability", "attention", "task_accuracy", "accuracy")
"""Metrics that lie between 0 and 1."""


def heatmap(
    lines: Sequence[Line],
    *,
    metric: str,
    x: str = "position",
    y: str = "layer",
    panel: str | None = None,
    labels: Mapping[Any, str] | None = None,
    limits: tuple[float, float] | None = None,
    centre: float = 0.0,
    title: str | None = None,
) -> Figure:
    """A panel's heatmap for each value of the column `panel`, on one scale; cells without a figure are hatched.

    The cell farthest from the centre is outlined in each panel.

    x, y: columns of the lines. labels: what stands for a value of x, an example of its token below the name. limits: of the
    colours; by default 0 to 1 for shares (`SHARES`) and −1 to 1 for normalised metrics, whatever the figures, so that pictures can be
    compared; else as far below the centre as above, so that white is the centre. centre: what a cell has where nothing happens. The colour bar has a pointed end where figures lie beyond.

    Raises ValueError where no line has the metric, and where several stand for one cell.
    """
    table = [line for line in _mappings(lines) if line["metric"] == metric]
    if not table:
        raise ValueError(f"No line has the metric {metric!r}; there are {sorted({line['metric'] for line in _mappings(lines)})}.")
    columns, rows = (_values(table, name) for name in (x, y))
    panels = _values(table, panel) if panel else [None]
    grids = [_grid([line for line in table if not panel or line[panel] == name], x, y, columns, rows) for name in panels]
    reach = 1.0 if metric.startswith("normalised_") else float(np.nanmax(np.abs(np.array(grids) - centre))) or 1.0
    low, high = limits or ((0.0, 1.0) if metric in SHARES else (centre - reach, centre + reach))
    beyond = np.nanmin(grids) < low, np.nanmax(grids) > high
    texts = [_label(value, labels or {}) for value in columns]
    wide = max(0.34, 0.075 * max(len(line) for text in texts for line in text.split("\n")))
    size = (1.8 + max(1.4, wide * len(columns)) * len(panels), 1.3 + max(1.6, 0.2 * len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    image = None
    for axes, grid, name in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], grids, panels, strict=True):
        hatch(axes)
        colours = "PuOr_r" if low < centre < high and metric not in SHARES else "viridis"
        image = axes.imshow(grid, origin="lower", aspect="auto", vmin=low, vmax=high, cmap=colours, interpolation="nearest")
        axes.set_xticks(range(len(columns)), texts, fontsize=8)
        step = max(1, len(rows) // 12)
        axes.set_yticks(range(0, len(rows), step), [str(value) for value in rows[::step]])
        axes.set(xlabel=x, title="" if name is None else _label(name, labels or {}))
        axes.spines[:].set_visible(False)
        if np.isnan(grid).all():
            continue
        row, column = np.unravel_index(np.nanargmax(np.abs(grid - centre)), grid.shape)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6))
    figure.axes[0].set_ylabel(y)
    assert image is not None
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    what = f"{metric.replace('_', ' ')} (n = {max(line['n'] for line in table)})"
    figure.colorbar(image, ax=figure.axes, label=what, extend=extend)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def curves(lines: Sequence[Line], *, x: str, metrics: Sequence[str], series: str = "method", title: str | None = None) -> Figure:
    """A panel for each metric: its value against the column x with a band for the interval, a curve for each value of `series`.

    Raises ValueError for a metric no line has.
    """
    table = _mappings(lines)
    figure = Figure(figsize=(3.6 * len(metrics) + 0.6, 3.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        here = [line for line in table if line["metric"] == metric]
        if not here:
            raise ValueError(f"No line has the metric {metric!r}; there are {sorted({line['metric'] for line in table})}.")
        marks = _values(here, x)
        numbers = all(isinstance(mark, int | float) for mark in marks)
        at = {mark: mark if numbers else number for number, mark in enumerate(marks)}
        if not numbers:
            axes.set_xticks(range(len(marks)), [str(mark).replace("_", "\n", 1) for mark in marks], fontsize=8)
        for number, name in enumerate(_values(here, series)):
            own = sorted((line for line in here if line[series] == name), key=lambda line: at[line[x]])
            places = [at[line[x]] for line in own]
            values, low, high = ([line[key] for line in own] for key in ("value", "low", "high"))
            turn, kind = divmod(number, len(COLOURS))
            colour, marker, dashes = COLOURS[kind], MARKERS[kind], DASHES[turn % len(DASHES)]
            axes.plot(places, values, dashes, color=colour, marker=marker, markersize=4, linewidth=1.2, label=str(name))
            axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set(xlabel=x.replace("_", " "), ylabel=metric.replace("_", " "))
        if metric in SHARES:
            axes.set_ylim(-0.02, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 2 * len(metrics)), frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def map_figure(
    lines: Sequence[Line], *, metric: str, labels: Mapping[Any, str] | None = None, centre: float = 0.0, title: str | None = None
) -> Figure:
    """The figure that suits what varies: layer × head, head × position of one layer, layer × position, or a curve over layers or units.

    A site of no layer stands at its component's name in place of one. Where all cells have one position, the title says which.
    """
    table = [line for line in _mappings(lines) if line["metric"] == metric]
    several = {name: len({line[name] for line in table}) > 1 for name in ("component", "layer", "head", "position", "unit")}
    if not several["position"] and table and table[0]["position"] is not None:
        title = f"{title or ''} @ {_label(table[0]['position'], labels or {})}".replace("\n", " ").strip()
    if several["unit"]:
        told = ("component", "layer", "head", "position")
        named = [
            line | {"place": ", ".join(f"{name} {_label(line[name], {})}" for name in told if several[name]) or line["component"]}
            for line in table
        ]
        return curves(named, x="unit", metrics=[metric], series="place", title=title)
    table = [line | {"layer": line["component"] if line["layer"] is None else line["layer"]} for line in table]
    if several["head"] and several["position"] and not several["layer"]:
        panel = "component" if several["component"] else None
        return heatmap(table, metric=metric, x="position", y="head", panel=panel, labels=labels, centre=centre, title=title)
    if several["head"]:
        by_head = {line["component"] for line in table if line["head"] is not None}
        whole = several["component"] and len(by_head) == 1
        # A component without heads is a column of its own.
        named = [
            line
            | {"head": line["component"].replace("_", "\n", 1) if whole and line["head"] is None else line["head"]}
            | {"place": f"{line['component']} @ {_label(line['position'], labels or {})}"}
            for line in table
        ]
        panel = ("position" if len(by_head) == 1 else "place") if several["position"] else None if whole else "component"
        return heatmap(named, metric=metric, x="head", panel=panel, labels=labels, centre=centre, title=title)
    if several["position"]:
        return heatmap(
            table, metric=metric, panel="component" if several["component"] else None, labels=labels, centre=centre, title=title
        )
    return curves(table, x="layer", metrics=[metric], series="component", title=title)


def _mappings(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Lists, as several heads or positions are written, become tuples: they can be told apart."""
    plain = [line.to_dict() if isinstance(line, Row) else line for line in lines]
    return [{key: tuple(value) if isinstance(value, list) else value for key, value in line.items()} for line in plain]


def _values(table: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
    """A column's values: numbers in order, others as they come."""
    found = list(dict.fromkeys(line[column] for line in table))
    return sorted(found) if all(isinstance(value, int | float) for value in found) else found


def _grid(table: Sequence[Mapping[str, Any]], x: str, y: str, columns: Sequence[Any], rows: Sequence[Any]) -> np.ndarray:
    grid = np.full((len(rows), len(columns)), np.nan)
    for line in table:
        place = rows.index(line[y]), columns.index(line[x])
        if not np.isnan(grid[place]):
            raise ValueError(f"Several lines stand for {y}={line[y]}, {x}={line[x]}: choose among them, or give `panel`.")
        grid[place] = line["value"]
    return grid


def _label(value: Any, labels: Mapping[Any, str]) -> str:
    name = "all" if value is None else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{name}\n{labels[value]!r}" if value in labels else name


def hatch(axes: Axes) -> None:
    """What has no figure is not 0."""
    axes.set_facecolor("0.92")
    axes.patch.set(hatch="////", edgecolor="0.75")
