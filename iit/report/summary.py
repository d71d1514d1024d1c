"""The summary of a multirun: every job listed, the choice made on validation, test shown for the chosen cell only."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from iit.report.table import HEADER, lines
from iit.result import Cell, Interval, Row, over_seeds, read_metrics, rows_of, scores_of, select, write_text

_CELL = tuple(field.name for field in fields(Cell))
_COLUMNS: tuple[str, ...] = ("job", *_CELL, "validation_iia", "low", "high", "n", "failure", "chosen")
_OVER_SEEDS = (("iia", "changing"), ("iia", "all"), ("task_accuracy", "all"))


def summary(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[Row]]:
    """One record for each cell of a job, with its validation IIA on changing pairs; and the chosen cell's test rows.

    The cell is chosen by `iit.result.select`; of a job with several variables all are, or none, by their mean. Jobs may repeat a cell (a sweep over the learning rate): of these the one with
    the highest validation IIA is chosen, of equal ones the first. A job without a readable figure is listed with its failure.
    """
    rows: dict[Path, tuple[Row, ...]] = {}
    failures: dict[Path, str] = {}
    for folder in folders:
        try:
            rows[folder] = read_metrics(folder).rows
        except FileNotFoundError:
            failures[folder] = "no metrics.json"
        except ValueError as error:
            failures[folder] = str(error)
    scored = {folder: [row for row in found if _is_score(row)] for folder, found in rows.items()}
    candidates = [(folder, row) for folder, found in rows.items() for row in scores_of(found)]
    best, chosen, test = None, set(), []
    if candidates:
        cell = select(row for _, row in candidates)
        best = max((c for c in candidates if Cell.of(c[1]) == cell), key=lambda c: c[1].value)[0]
        together = {Cell.of(row) for row in scored[best]}
        chosen = together if len({cell.variable for cell in together}) > 1 else {cell}
        test = [row for cell in sorted(chosen, key=repr) for row in rows_of(rows[best], cell)]
    records = []
    for folder in folders:
        records += [_record(folder, row, chosen=folder == best and Cell.of(row) in chosen) for row in scored.get(folder, ())]
        if not scored.get(folder):
            failure = failures.get(folder, "no validation IIA on changing pairs")
            records.append(dict.fromkeys(_COLUMNS) | {"job": folder.name, "failure": failure, "chosen": False})
    return records, test


def _is_score(row: Row) -> bool:
    return (row.split, row.subset, row.control, row.metric) == ("validation", "changing", None, "iia")


def _record(folder: Path, row: Row, *, chosen: bool) -> dict[str, Any]:
    told = {name: getattr(row, name) for name in (*_CELL, "low", "high", "n")}
    return dict.fromkeys(_COLUMNS) | told | {"job": folder.name, "validation_iia": row.value, "chosen": chosen}


def seeds(folders: Sequence[Path], records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Test IIA and task accuracy of the chosen job's setting, each a mean over its seeds with an interval (see `over_seeds`).

    The jobs whose overrides differ from the chosen one's in `seed` alone are its seeds. Empty where there is no other.
    """
    chosen = {record["job"] for record in records if record["chosen"]}
    failed = {record["job"] for record in records if record["failure"] is not None}
    settings = {folder: _setting(folder) for folder in folders if folder.name not in failed}
    best = next((settings[folder] for folder in settings if folder.name in chosen), None)
    found: dict[tuple[str | None, str, str], dict[int | None, Row]] = {}
    for folder in [folder for folder, setting in settings.items() if setting is not None and setting == best]:
        for row in read_metrics(folder).rows:
            if (row.split, row.control) == ("test", None) and (row.metric, row.subset) in _OVER_SEEDS:
                found.setdefault((row.variable, row.metric, row.subset), {})[row.seed] = row
    told = []
    for (variable, metric, subset), rows in found.items():
        if len(rows) > 1:
            mean = over_seeds([Interval(row.value, row.low, row.high, row.n) for row in rows.values()])
            values = {str(seed): row.value for seed, row in rows.items()}
            told.append({"variable": variable, "metric": metric, "subset": subset} | mean._asdict() | {"values": values})
    return told


def _setting(folder: Path) -> list[str] | None:
    """A job's overrides, but for its seed; None where Hydra has left none."""
    path = folder / ".hydra" / "overrides.yaml"
    return sorted(str(o) for o in OmegaConf.load(path) if not str(o).startswith("seed=")) if path.is_file() else None


def _seeds_table(told: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="The chosen setting on test, mean over seeds")
    for name in ("figure", "mean", "95% interval", "seeds"):
        table.add_column(name, overflow="fold")
    for one in told:
        name = f"{one['variable']}: IIA, {one['subset']} pairs" if one["metric"] == "iia" else "task accuracy"
        values = ", ".join(f"{value:.3f}" for value in one["values"].values())
        table.add_row(escape(name), f"{one['value']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}", values)
    return table


def summary_table(records: Sequence[dict[str, Any]]) -> Table:
    """The records for the terminal, the chosen one in bold; what all jobs have in common stands below."""
    scored = [record for record in records if record["failure"] is None]
    told = [c for c in _CELL if len({repr(record[c]) for record in scored}) > 1]
    common = [f"{c} {scored[0][c]}" for c in _CELL if scored and c not in told and scored[0][c] is not None]
    title = "Validation IIA on changing pairs; the choice is made here"
    if len(scored) > 1:
        common.append(f"the highest of {len(scored)} figures is too high by chance, the chosen job's test figure is not")
    table = Table(title=title, caption=escape(", ".join(common)) or None)
    for name in ("job", *told):
        table.add_column(name, overflow="fold")
    for name in ("IIA", "95% interval", "n"):
        table.add_column(name, no_wrap=True)
    for record in records:
        figures = ["failed", "", ""]
        if record["failure"] is None:
            figures = [f"{record['validation_iia']:.3f}", f"{record['low']:.3f} to {record['high']:.3f}", record["n"]]
        cells = ["" if cell is None else escape(str(cell)) for cell in (record["job"], *(record[c] for c in told), *figures)]
        table.add_row(*cells, style="bold" if record["chosen"] else None)
    return table


def write_summary(sweep: str | Path, console: Console | None = None) -> None:
    """Write `summary.csv` and `summary.json` to a multirun's folder and print them.

    `summary.json` holds the records under "jobs", the chosen cell's test rows, no other's, under "test", and the means over its seeds,
    where several were run, under "seeds".
    """
    sweep = Path(sweep)
    folders = sorted((f for f in sweep.iterdir() if f.is_dir() and (f / ".hydra").is_dir()), key=lambda f: (len(f.name), f.name))
    records, test = summary(folders)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(sweep / "summary.csv", text.getvalue())
    over = seeds(folders, records)
    content = {"jobs": records, "test": [row.to_dict() for row in test], "seeds": over}
    write_text(sweep / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    console = console or Console()
    console.print(summary_table(records))
    for record in records:
        if record["failure"] is not None:
            console.print(f"Job {record['job']} failed: {record['failure']}", soft_wrap=True, markup=False)
    if test:
        chosen = Table(title="The chosen job on test")
        for name in HEADER:
            chosen.add_column(name)
        for line in lines(test):
            chosen.add_row(*map(escape, line))
        console.print(chosen)
    if over:
        console.print(_seeds_table(over))
    console.print(f"Multirun folder: {sweep}", soft_wrap=True, markup=False)


class SummaryCallback(Callback):
    """Hydra's hooks at the end of a multirun, and of a job that fails in one: the sweep ends there."""

    # Any: a DictConfig inherits from a deprecated typing generic, about which beartype warns.
    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        """Summarise the jobs up to one that failed."""
        sweep = Path(HydraConfig.get().sweep.dir)
        if HydraConfig.get().mode == RunMode.MULTIRUN and job_return.status == JobStatus.FAILED and sweep.is_dir():
            write_summary(sweep)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Summarise the jobs of the sweep that has just ended."""
        write_summary(config.hydra.sweep.dir)
