"""A run's figures as a table: on the terminal, and in Markdown for an experiment's page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from iit.result import Row, read_metrics

_NAMES = {
    (None, "iia"): "trained intervention",
    ("vanilla", "iia"): "vanilla patching (whole vector)",
    ("random_subspace", "iia"): "random subspaces of equal rank",
    ("no_intervention", "iia"): "no intervention",
    ("vanilla", "iia_difference"): "trained − vanilla, paired",
    ("random_subspace", "iia_difference"): "trained − random subspaces, paired",
    (None, "task_accuracy"): "task accuracy, before filtering",
}
HEADER = ("test split", "pairs", "value", "95% interval", "n")


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """What is shown of a run: test figures in a fixed order, changing pairs first."""
    found = []
    for (control, metric), name in _NAMES.items():
        for subset in ("changing", "all"):
            for row in rows:
                if (row.split, row.control, row.metric, row.subset) == ("test", control, metric, subset):
                    pairs = "prompts" if metric == "task_accuracy" else subset
                    found.append((name, pairs, f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}", str(row.n)))
    return found


def results_table(rows: Sequence[Row]) -> Table:
    """The figures for the terminal."""
    first = next(row for row in rows if row.metric == "iia")
    site = f"{first.component}[{first.layer}] @ {first.position}" if first.layer is not None else str(first.component)
    rank = "" if first.rank is None else f", rank {first.rank}"
    table = Table(title=f"{first.experiment}: {first.variable} at {site}{rank} in {first.network}")
    for number, name in enumerate(HEADER):
        table.add_column(name, justify="left" if number < 2 else "right")
    for line in lines(rows):
        table.add_row(*line, style="bold" if line[0] == _NAMES[None, "iia"] else None)
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The figures for an experiment's README."""
    body = [HEADER, ("---", "---", "---:", "---:", "---:"), *lines(rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body) + "\n"


def print_results(folder: str | Path) -> None:
    """Print a run's table and where its folder is."""
    console = Console()
    console.print(results_table(read_metrics(folder).rows))
    console.print(f"Run folder: {folder}", soft_wrap=True)
