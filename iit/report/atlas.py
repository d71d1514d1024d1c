"""Many cells at once: validation IIA by layer and position, beside the whole vector's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from iit.report.maps import heatmap
from iit.result import Row

PANELS: dict[str | None, str] = {"vanilla": "whole vector", None: "trained"}


def is_atlas(rows: Sequence[Row]) -> bool:
    """Whether there are figures of several layers or positions for one variable on validation."""
    places = {(row.variable, row.layer, str(row.position)) for row in _shown(rows, None)}
    return len(places) > len({variable for variable, _, _ in places})


def _shown(rows: Sequence[Row], control: str | None) -> list[Row]:
    wanted = ("validation", "changing", "iia", control)
    return [row for row in rows if (row.split, row.subset, row.metric, row.control) == wanted]


def grid(rows: Sequence[Row], control: str | None) -> tuple[list[int], list[str], np.ndarray]:
    """(layers, positions, float[layer, position]) of validation IIA on changing pairs; NaN where there is none.

    Of several ranks and seeds at a place the highest is taken.
    """
    every = [row for name in PANELS for row in _shown(rows, name)]
    layers = sorted({row.layer for row in every if row.layer is not None})
    positions = list(dict.fromkeys(str(row.position) for row in every))
    values = np.full((len(layers), len(positions)), np.nan)
    for row in _shown(rows, control):
        if row.layer is not None:
            place = layers.index(row.layer), positions.index(str(row.position))
            values[place] = np.fmax(values[place], row.value)
    return layers, positions, values


def atlas_cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each place, of the whole vector and of what was trained: its validation IIA on changing pairs; NaN where nothing was trained."""
    n = max((row.n for row in _shown(rows, "vanilla") or _shown(rows, None)), default=0)
    return [
        {"metric": "iia", "panel": title, "layer": layer, "position": position, "value": value, "n": n}
        for (layers, positions, values), title in ((grid(rows, control), title) for control, title in PANELS.items())
        for layer, here in zip(layers, values, strict=True)
        for position, value in zip(positions, here, strict=True)
    ]


def atlas_figure(rows: Sequence[Row]) -> Figure:
    """Two heatmaps, layer × position: the whole vector's validation IIA on changing pairs, and the trained cells'.

    Cells that were not trained are hatched. Raises ValueError without validation rows.
    """
    lines = atlas_cells(rows)
    if not lines:
        raise ValueError("There is no validation row of a cell with a layer to show.")
    return heatmap(lines, metric="iia", panel="panel", title="validation, changing pairs")


def atlas_lines(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """(header, lines), a line for each layer in which anything was trained: trained IIA, the whole vector's in brackets."""
    layers, positions, trained = grid(rows, None)
    whole = grid(rows, "vanilla")[2]

    def told(value: float, beside: float) -> str:
        return f"{'—' if np.isnan(value) else f'{value:.3f}'} ({beside:.3f})"

    body = [
        [str(layer), *(told(*pair) for pair in zip(trained[i], whole[i], strict=True))]
        for i, layer in enumerate(layers)
        if not np.isnan(trained[i]).all()
    ]
    return ["layer", *positions], body


def compared(rows: Sequence[Row]) -> str:
    """A word on choosing the best of many."""
    n = len(_shown(rows, None))
    return f"The highest of {n} figures is too high by chance, and no interval here makes up for that; the chosen cell's test figure is not."


def atlas_table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    header, body = atlas_lines(rows)
    table = Table(
        title="Validation IIA on changing pairs: trained (whole vector); the choice is made here", caption=compared(rows)
    )
    for name in header:
        table.add_column(escape(name), justify="right")
    for line in body:
        table.add_row(*line)
    return table
