"""The tables of a job `patch`.

They hold the strongest cells of each map, ranked on validation and measured on test.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from iit.result import Cell, Metrics, where
from iit.result.table import Table

HEADER = ("cell", "validation", "test", "95% interval", "n")


def map_tables(metrics: Metrics, brief: bool = False) -> list[Table]:
    """A line for each cell that was measured on test, ranked as on validation.

    The runs without an edit follow. Other runs have no such table.

    brief: a table for each map, instead of one for all.
    """
    maps = metrics.facts.get("maps")
    if not maps:
        return []
    tables, joined = [], []
    for name, about in maps.items():
        lines = _lines(metrics, name, about)
        tables.append(Table(f"{name}: the strongest cells", HEADER, lines))
        joined += [(name, *line) for line in lines]

    caption = _caption(maps, metrics.facts.get("estimates", {}))
    if not brief:
        return [Table("", ("map", *HEADER), joined, caption, n_words=2)]
    # The caption is of all maps, so it stands below the last one.
    tables[-1] = replace(tables[-1], caption=caption)
    return tables


def _lines(metrics: Metrics, name: str, about: Mapping[str, Any]) -> list[list[str]]:
    # A job names the rows of each map EXPERIMENT/MAP.
    rows = [row for row in metrics.rows if str(row.experiment).endswith(f"/{name}")]
    rows = where(rows, metric=about["metric"])
    ranked = {}
    for row in where(rows, split="validation"):
        ranked[Cell.of(row), row.control] = row.value
    test = where(rows, split="test")
    edited = {row.site_text(): row for row in where(test, control=None)}
    shown = [edited[cell] for cell in about["top"]]
    shown += [row for row in test if row.control is not None]

    lines = []
    for row in shown:
        cell = row.site_text()
        if row.control is not None:
            cell = row.control.replace("_", " ")
        validation = ranked[Cell.of(row), row.control]
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
