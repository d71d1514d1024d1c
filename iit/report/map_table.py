"""The tables of a job `patch`.

They hold the strongest cells of each map, ranked on validation and measured on test.
"""

from collections.abc import Mapping
from typing import Any

from iit.report.table import Table
from iit.result import Cell, Metrics, where

HEADER = ("cell", "validation", "test", "95% interval", "n")


def map_tables(metrics: Metrics, brief: bool = False) -> list[Table]:
    """A line for each cell that was measured on test, ranked as on validation.

    The runs without an edit follow. Other runs have no such table.

    brief: a table for each map, instead of one for all.
    """
    maps = metrics.facts.get("maps")
    if not maps:
        return []
    lines = {name: _lines(metrics, name, about) for name, about in maps.items()}
    caption = _caption(maps, metrics.facts.get("estimates", {}))
    if not brief:
        joined = [(name, *line) for name in maps for line in lines[name]]
        return [Table("", ("map", *HEADER), joined, caption, n_words=2)]
    # The caption is of all maps, so it stands below the last one.
    captions = {list(maps)[-1]: caption}
    return [
        Table(f"{name}: the strongest cells", HEADER, lines[name], captions.get(name, ""))
        for name in maps
    ]


def _lines(metrics: Metrics, name: str, about: Mapping[str, Any]) -> list[list[str]]:
    # A job names the rows of each map EXPERIMENT/MAP.
    rows = [row for row in metrics.rows if str(row.experiment).endswith(f"/{name}")]
    rows = where(rows, metric=about["metric"])
    validation_rows = where(rows, split="validation")
    before = {(Cell.of(row), row.control): row for row in validation_rows}
    edited = {row.site_text(): row for row in where(rows, split="test", control=None)}
    test = [edited[cell] for cell in about["top"]]
    test += [row for row in where(rows, split="test") if row.control is not None]
    lines = []
    for row in test:
        cell = row.site_text() if row.control is None else row.control.replace("_", " ")
        validation = before[Cell.of(row), row.control].value
        interval = f"{row.low:+.3f} to {row.high:+.3f}"
        lines.append([cell, f"{validation:+.3f}", f"{row.value:+.3f}", interval, str(row.n)])
    return lines


def _caption(maps: Mapping[str, Any], estimates: Mapping[str, Any]) -> str:
    """What the figures are, how many cells each map has, and how far estimates agree."""
    metrics = sorted({about["metric"].replace("_", " ") for about in maps.values()})
    cells = ", ".join(f"{name} {about['n_cells']}" for name, about in maps.items())
    caption = (
        f"Figures: {', '.join(metrics)}. The highest of many validation figures is too high by "
        f"chance; test figures are not. Cells: {cells}."
    )
    for name, about in estimates.items():
        exact, top = about["of"], about["top"]
        caption += (
            f"\n{name} in {maps[name]['seconds']:g} s, {exact} in {maps[exact]['seconds']:g} s: "
            f"rank correlation {about['rank_correlation']:.3f} over {about['n']} cells "
            "(validation), "
            f"and {about['recall'] * top:.0f} of the {top} strongest cells are the same."
        )
    return caption
