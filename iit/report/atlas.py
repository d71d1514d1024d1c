"""Many cells at once: validation IIA by layer and position, beside the whole vector's."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

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


def atlas_figure(rows: Sequence[Row]) -> Figure:
    """Two heatmaps, layer × position: the whole vector's validation IIA on changing pairs, and the trained cells'.

    Cells that were not trained are hatched. Raises ValueError without validation rows.
    """
    layers, positions, values = grid(rows, None)
    if not layers:
        raise ValueError("There is no validation row of a cell with a layer to show.")
    size = (1.6 + 1.1 * len(positions) * len(PANELS), 1.2 + 0.2 * max(len(layers), 8))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    image = None
    for axes, (control, title) in zip(panels, PANELS.items(), strict=True):
        values = grid(rows, control)[2]
        axes.set_facecolor("0.92")
        axes.patch.set(hatch="////", edgecolor="0.75")
        image = axes.imshow(values, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        axes.set_xticks(range(len(positions)), positions)
        step = max(1, len(layers) // 10)
        axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        axes.set(title=title, xlabel="position")
        axes.spines[:].set_visible(False)
    panels[0].set_ylabel("layer")
    assert image is not None
    n = max(row.n for row in _shown(rows, "vanilla") or _shown(rows, None))
    figure.colorbar(image, ax=list(panels), label=f"validation IIA, changing pairs (n = {n})")
    return figure


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
