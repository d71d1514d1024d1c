"""Many cells at once: validation IIA by layer and position, beside that of the whole vector."""

from collections import defaultdict
from collections.abc import Sequence
from math import nan
from typing import Any

from iit.result import SCORE, Row, where
from iit.result.figure import Figure
from iit.result.maps import heatmap
from iit.result.table import Table

PANELS: dict[str | None, str] = {"vanilla": "whole vector", None: "trained"}
"""Control → the name of its panel."""


def atlas_cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each layer and position, with its validation IIA on changing pairs.

    The lines are of the whole vector and of the trained cells. A line has the highest figure of all
    ranks and seeds at its layer and position.
    """
    cells = []
    for control, panel in PANELS.items():
        best: dict[Any, Row] = {}
        for row in where(rows, **{**SCORE, "control": control}):
            place = row.layer, str(row.position)
            so_far = best.get(place, row)
            best[place] = max(so_far, row, key=lambda row: row.value)
        for (layer, position), row in best.items():
            if layer is not None:
                place = {"layer": layer, "position": position}
                cells.append(
                    {"metric": "iia", "panel": panel, **place, "value": row.value, "n": row.n}
                )
    return cells


def atlas_figure(rows: Sequence[Row]) -> Figure:
    """Two heatmaps, layer × position, of validation IIA on changing pairs.

    One is of the whole vector, the other of the trained cells. Cells that were not trained are
    hatched.

    Raises:
        ValueError: without validation rows.
    """
    cells = atlas_cells(rows)
    if not cells:
        raise ValueError("There is no validation row of a cell with a layer to show.")
    return heatmap(cells, metric="iia", panel="panel", title="validation, changing pairs")


def atlas_tables(rows: Sequence[Row]) -> list[Table]:
    """A line for each layer in which anything was trained.

    It holds the trained IIA at each position, and that of the whole vector in brackets. There is no
    table where each variable has figures of one layer and position alone.
    """
    scores = where(rows, **SCORE)
    # As many places as variables: each variable was trained at one place.
    places = {(row.variable, row.layer, str(row.position)) for row in scores}
    if len(places) == len({variable for variable, _, _ in places}):
        return []
    # {panel: {(layer, position): value}}
    panels: dict[str, dict[Any, float]] = defaultdict(dict)
    positions = []
    for cell in atlas_cells(rows):
        panels[cell["panel"]][cell["layer"], cell["position"]] = cell["value"]
        if cell["position"] not in positions:
            positions.append(cell["position"])
    whole, trained = panels["whole vector"], panels["trained"]

    lines = []
    for layer in sorted({layer for layer, _ in trained}):
        line = [str(layer)]
        for position in positions:
            place = layer, position
            text = f"{trained.get(place, nan):.3f} ({whole.get(place, nan):.3f})"
            # A figure that was not measured is a dash.
            line.append(text.replace("nan", "—"))
        lines.append(line)

    title = (
        f"Validation IIA on changing pairs (n = {scores[0].n}), by layer and position; the whole "
        "vector's in brackets:"
    )
    caption = (
        f"The highest of {len(scores)} figures is too high by chance, and no interval here makes "
        "up for that; the chosen cell's test figure is not."
    )
    return [Table(title, ["layer", *positions], lines, caption)]
