"""The table of a job `patch`: the strongest cells of each map, ranked on validation and measured on test."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from iit.result import Cell, Row

HEADER = ["map", "cell", "validation", "test", "95% interval", "n"]


def is_maps(facts: Mapping[str, Any]) -> bool:
    """Whether a run's facts are of maps."""
    return "maps" in facts


def map_lines(rows: Sequence[Row], facts: Mapping[str, Any]) -> list[list[str]]:
    """A line for each cell that was measured on test, ranked as on validation; then the runs without an edit."""
    body = []
    for name, about in facts["maps"].items():
        here = [row for row in rows if str(row.experiment).endswith(f"/{name}") and row.metric == about["metric"]]
        before = {(Cell.of(row), row.control): row for row in here if row.split == "validation"}
        test = [row for row in here if row.split == "test"]
        ranks = {cell: rank for rank, cell in enumerate(about["top"])}
        for row in sorted(test, key=lambda row: len(ranks) if row.control else ranks[place(row)]):
            what = place(row) if row.control is None else row.control.replace("_", " ")
            figures = f"{before[Cell.of(row), row.control].value:+.3f}", f"{row.value:+.3f}", f"{row.low:+.3f} to {row.high:+.3f}"
            body.append([name, what, *figures, str(row.n)])
    return body


def map_captions(facts: Mapping[str, Any]) -> list[str]:
    """What the figures are, and how many cells the best were chosen from."""
    many = ", ".join(f"{name} {about['n_cells']}" for name, about in facts["maps"].items())
    metrics = sorted({about["metric"].replace("_", " ") for about in facts["maps"].values()})
    agreed = [
        f"{name} in {facts['maps'][name]['seconds']:g} s, {about['of']} in {facts['maps'][about['of']]['seconds']:g} s: rank correlation "
        f"{about['rank_correlation']:.3f} over {about['n']} cells (validation), and {about['recall'] * about['top']:.0f} of the {about['top']} "
        "strongest cells are the same."
        for name, about in facts.get("estimates", {}).items()
    ]
    return [
        f"Figures: {', '.join(metrics)}. The highest of many validation figures is too high by chance; test figures are not. Cells: {many}.",
        *agreed,
    ]


def place(row: Row) -> str:
    """A cell in short: component[layer].head @ position, and the unit where there is one."""
    layer = "" if row.layer is None else f"[{row.layer}]"
    head = "" if row.head is None else f".head[{row.head}]"
    unit = "" if row.method is None or "[" not in row.method else f", unit {row.method.partition('[')[2].rstrip(']')}"
    return f"{row.component}{layer}{head}" + ("" if row.position is None else f" @ {row.position}") + unit


def maps_tables(rows: Sequence[Row], facts: Mapping[str, Any]) -> list[Table]:
    """For the terminal, one a map."""
    tables = []
    for name in facts["maps"]:
        table = Table(title=escape(f"{name}: the strongest cells"))
        for number, column in enumerate(HEADER[1:]):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for line in map_lines(rows, facts):
            if line[0] == name:
                table.add_row(*map(escape, line[1:]))
        tables.append(table)
    return tables
