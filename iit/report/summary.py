"""The summary of a multirun: one line a job, the choice made on validation, test shown for the chosen cell only."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from iit.report.table import lines
from iit.result import Cell, Row, read_metrics, rows_of, select, write_text

_COLUMNS = ("job", "method", "component", "layer", "position", "rank", "seed", "validation_iia", "low", "high", "n", "chosen")


def summary(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[Row]]:
    """One record a job, with its validation IIA on changing pairs, and the chosen cell's test rows.

    A job without `metrics.json` is listed as failed. Jobs that score the same cell twice are told apart by their folders.
    """
    found: list[tuple[Path, tuple[Row, ...]]] = []
    for folder in folders:
        try:
            found.append((folder, read_metrics(folder).rows))
        except FileNotFoundError:
            found.append((folder, ()))
    validation = [row for _, rows in found for row in rows if row.split == "validation"]
    chosen = select(validation) if validation else None
    records, test = [], []
    for folder, rows in found:
        record: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"job": folder.name, "chosen": False}
        for row in rows:
            if (row.split, row.subset, row.control, row.metric) == ("validation", "changing", None, "iia"):
                record |= {
                    name: getattr(row, name)
                    for name in ("method", "component", "layer", "position", "rank", "seed", "low", "high", "n")
                }
                record |= {"validation_iia": row.value, "chosen": chosen == Cell.of(row) and not test}
        if record["chosen"] and chosen is not None:
            test = rows_of(rows, chosen)
        records.append(record)
    return records, test


def summary_table(records: Sequence[dict[str, Any]]) -> Table:
    """The records for the terminal; the chosen job in bold."""
    table = Table(title="Validation IIA on changing pairs; the choice is made here")
    for name in ("job", "method", "component", "layer", "position", "rank", "seed", "validation IIA", "95% interval", "n"):
        table.add_column(name)
    for record in records:
        if record["validation_iia"] is None:
            table.add_row(record["job"], "failed: no metrics.json")
            continue
        told = [record[name] for name in ("job", "method", "component", "layer", "position", "rank", "seed")]
        figures = [f"{record['validation_iia']:.3f}", f"{record['low']:.3f} to {record['high']:.3f}", record["n"]]
        cells = ["" if cell is None else str(cell) for cell in (*told, *figures)]
        table.add_row(*cells, style="bold" if record["chosen"] else None)
    return table


def write_summary(sweep: str | Path, console: Console | None = None) -> None:
    """Write `summary.csv` to a multirun's folder and print it, with the chosen cell's test figures."""
    sweep = Path(sweep)
    folders = sorted((f for f in sweep.iterdir() if f.is_dir() and (f / ".hydra").is_dir()), key=lambda f: (len(f.name), f.name))
    records, test = summary(folders)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(sweep / "summary.csv", text.getvalue())
    console = console or Console()
    console.print(summary_table(records))
    if test:
        chosen = Table(title="The chosen job on test")
        for name in ("test split", "pairs", "value", "95% interval", "n"):
            chosen.add_column(name)
        for line in lines(test):
            chosen.add_row(*line)
        console.print(chosen)
    console.print(f"Multirun folder: {sweep}", soft_wrap=True)


class SummaryCallback(Callback):
    """Hydra's hook at the end of a multirun."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the jobs of the sweep that has just ended."""
        write_summary(config.hydra.sweep.dir)
