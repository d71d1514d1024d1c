"""The summary of a multirun: every job is listed, and the choice is made on validation.

Test figures are shown for the chosen cell only.
"""

import json
from collections.abc import Sequence
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from iit.report.figure_file import write_csv
from iit.report.results import results_table
from iit.report.table import Table
from iit.result import (
    SCORE,
    Cell,
    Interval,
    Row,
    over_seeds,
    read_metrics,
    rows_of,
    scores_of,
    where,
    write_text,
)
from iit.result.select import best_row

Record = dict[str, Any]
"""What is said of one cell of a job, or of one mean over seeds."""
_CELL = Cell._fields
_COLUMNS: tuple[str, ...] = (
    "job",
    *_CELL,
    "validation_iia",
    "low",
    "high",
    "n",
    "failure",
    "chosen",
)
_OVER_SEEDS = (("iia", "changing"), ("iia", "all"), ("task_accuracy", "all"))
"""The metrics and subsets whose mean over seeds is given."""


def summary(folders: Sequence[Path]) -> tuple[list[Record], list[Row]]:
    """A record for each cell of each job, and the chosen cell's test rows.

    A record has the cell's validation IIA on changing pairs. The cell is chosen by
    `iit.result.select.best_row`. A job with several variables has a cell for each; they are chosen
    together, by their mean. Jobs may repeat a cell (a sweep over the learning rate). Among these
    the job with the highest validation IIA is chosen, and among equal ones the first. A job without
    a readable figure is listed with its failure.
    """
    jobs = dict(zip(folders, map(_read, folders), strict=True))
    # In a job with several variables each row has their mean.
    candidates: list[tuple[Path, Row]] = []
    for folder, (rows, _) in jobs.items():
        candidates += zip(repeat(folder), scores_of(rows))
    best, chosen, test = None, set(), []
    if candidates:
        cell = Cell.of(best_row(row for _, row in candidates))
        repeats = [(row.value, folder) for folder, row in candidates if Cell.of(row) == cell]
        # `max` keeps the first of equal ones.
        _, best = max(repeats, key=itemgetter(0))
        # The job's other variables were trained in the same alignment.
        best_rows, _ = jobs[best]
        chosen = set(map(Cell.of, where(best_rows, **SCORE)))
        if len({cell.variable for cell in chosen}) == 1:
            chosen = {cell}
        for cell in sorted(chosen, key=repr):
            test += rows_of(best_rows, cell)

    records = []
    for folder, (rows, failure) in jobs.items():
        scores = where(rows, **SCORE)
        for row in scores:
            is_chosen = folder == best and Cell.of(row) in chosen
            columns = row.to_dict() | {
                "job": folder.name,
                "validation_iia": row.value,
                "failure": None,
                "chosen": is_chosen,
            }
            records.append({name: columns[name] for name in _COLUMNS})
        if not scores:
            records.append(
                dict.fromkeys(_COLUMNS) | {"job": folder.name, "failure": failure, "chosen": False}
            )
    return records, test


def _read(folder: Path) -> tuple[Sequence[Row], str]:
    """A job's rows, and what has failed where none of them can be chosen by."""
    try:
        return read_metrics(folder).rows, "no validation IIA on changing pairs"
    except FileNotFoundError:
        return (), "no metrics.json"
    except ValueError as error:
        return (), str(error)


def seeds(folders: Sequence[Path], records: Sequence[Record]) -> list[Record]:
    """Test IIA and task accuracy of the chosen job's setting, each as a mean over its seeds.

    Each mean has an interval (see `over_seeds`). The jobs whose overrides differ from the chosen
    one's in `seed` alone are its seeds. The list is empty where there is no other job.
    """
    chosen = {record["job"] for record in records if record["chosen"]}
    failed = {record["job"] for record in records if record["failure"] is not None}
    best, settings = None, {}
    for folder in folders:
        if folder.name not in failed:
            settings[folder] = _setting(folder)
        if folder.name in chosen:
            best = settings[folder]
    rows: list[Row] = []
    for folder, setting in settings.items():
        if setting is not None and setting == best:
            rows += where(read_metrics(folder).rows, split="test", control=None)

    means = []
    for variable in dict.fromkeys(row.variable for row in rows):
        for metric, subset in _OVER_SEEDS:
            columns = {"variable": variable, "metric": metric, "subset": subset}
            figures, values = {}, {}
            for row in where(rows, **columns):
                # Where a seed was run twice, the later job counts.
                figures[row.seed] = Interval(row.value, row.low, row.high, row.n)
                values[str(row.seed)] = row.value
            if len(figures) > 1:
                mean = over_seeds(list(figures.values()))
                means.append(columns | mean._asdict() | {"values": values})
    return means


def _setting(folder: Path) -> list[str] | None:
    """A job's overrides without its seed; None where Hydra has left none."""
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return None
    overrides = map(str, OmegaConf.load(path))
    return sorted(override for override in overrides if not override.startswith("seed="))


def _seeds_table(means: Sequence[Record]) -> Table:
    lines = []
    for mean in means:
        name = "task accuracy"
        if mean["metric"] == "iia":
            name = f"{mean['variable']}: IIA, {mean['subset']} pairs"
        interval = f"{mean['low']:.3f} to {mean['high']:.3f}"
        values = ", ".join(map("{:.3f}".format, mean["values"].values()))
        lines.append((name, f"{mean['value']:.3f}", interval, values))
    return Table(
        "The chosen setting on test, mean over seeds",
        ("figure", "mean", "95% interval", "seeds"),
        lines,
    )


def summary_table(records: Sequence[Record]) -> Table:
    """The records for the terminal, the chosen one in bold.

    What all jobs have in common stands below.
    """
    scored = [record for record in records if record["failure"] is None]
    differing, common = [], []
    for column in _CELL:
        # A column is shown where jobs differ; what they share is said once, below.
        if len({repr(record[column]) for record in scored}) > 1:
            differing.append(column)
        elif scored and scored[0][column] is not None:
            common.append(f"{column} {scored[0][column]}")

    if len(scored) > 1:
        common.append(
            f"the highest of {len(scored)} figures is too high by chance, the chosen job's "
            "test figure is not"
        )

    lines, bold = [], []
    for number, record in enumerate(records):
        if record["chosen"]:
            bold.append(number)
        figures = ["failed", "", ""]
        if record["failure"] is None:
            figures = [
                f"{record['validation_iia']:.3f}",
                f"{record['low']:.3f} to {record['high']:.3f}",
                str(record["n"]),
            ]
        cell = ["" if record[column] is None else str(record[column]) for column in differing]
        lines.append([record["job"], *cell, *figures])

    return Table(
        "Validation IIA on changing pairs; the choice is made here",
        ["job", *differing, "IIA", "95% interval", "n"],
        lines,
        ", ".join(common),
        n_words=1 + len(differing),
        bold=bold,
    )


def write_summary(sweep: str | Path, console: Console | None = None) -> None:
    """Write `summary.csv` and `summary.json` to a multirun's folder and print them.

    `summary.json` holds three things: the records under "jobs", the test rows of the chosen cell
    (and of no other) under "test", and the means over its seeds under "seeds", where several were
    run.
    """
    sweep = Path(sweep)
    jobs = [f for f in sweep.iterdir() if (f / ".hydra").is_dir()]
    # Job 10 comes after job 9.
    folders = sorted(jobs, key=lambda f: (len(f.name), f.name))
    records, test = summary(folders)
    write_csv(sweep / "summary.csv", records)
    over = seeds(folders, records)
    content = {"jobs": records, "test": list(map(Row.to_dict, test)), "seeds": over}
    write_text(sweep / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    console = console or Console()
    console.print(summary_table(records).rich())
    for record in records:
        if record["failure"] is not None:
            console.print(
                f"Job {record['job']} failed: {record['failure']}", soft_wrap=True, markup=False
            )

    if test:
        console.print(results_table(test, "The chosen job on test").rich())
    if over:
        console.print(_seeds_table(over).rich())
    console.print(f"Multirun folder: {sweep}", soft_wrap=True, markup=False)


class SummaryCallback(Callback):
    """Hydra's hooks at the end of a multirun, and of a job in it that fails.

    A sweep ends with the first job that fails.
    """

    # Any, as a DictConfig inherits from a deprecated typing generic, of which beartype warns.
    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        """Summarise the jobs up to one that failed."""
        sweep = Path(HydraConfig.get().sweep.dir)
        if (
            HydraConfig.get().mode == RunMode.MULTIRUN
            and job_return.status == JobStatus.FAILED
            and sweep.is_dir()
        ):
            write_summary(sweep)

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Summarise the jobs of the sweep that has just ended."""
        write_summary(config.hydra.sweep.dir)
