"""The summary of a sweep: every job is listed, and the choice is made on validation.

Test figures are shown for the chosen setting only.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from iit.report.figure_file import write_csv
from iit.report.results import results_table
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
from iit.result.record import JOB, SWEEP, read_record
from iit.result.select import best_row, mean_scores
from iit.result.table import Table

Line = dict[str, Any]
"""What is said of one cell of a job, or of one mean over seeds."""
_FIGURES = ("validation_iia", "low", "high", "n", "seed_mean", "failure", "chosen")
_OVER_SEEDS = (("iia", "changing"), ("iia", "all"), ("task_accuracy", "all"))
"""The metrics and subsets whose mean over seeds is given."""


class Job(NamedTuple):
    """A job of a sweep.

    Arguments:
        name: its folder's, in the sweep's.
        overrides: the values of the swept keys.
        rows: none of a job without a result.
        failure: why it has no result; None where it has one.
        setting: what the job's seeds have in common.
    """

    name: str
    overrides: dict[str, Any]
    rows: Sequence[Row]
    failure: str | None
    setting: str


def read_jobs(sweep: Path) -> list[Job]:
    """The jobs of a sweep that have a record, also one that cannot be read."""
    jobs = []
    for path in sweep.rglob(JOB):
        overrides, rows, failure = {}, (), "did not finish, or still runs"
        try:
            record = read_record(path)
            overrides = record["overrides"]
            if record["status"] == "failed":
                failure = f"{record['error']} (log: {record['log']})"
            with suppress(FileNotFoundError):
                rows, failure = read_metrics(path.parent).rows, None
        except (OSError, ValueError) as error:
            failure = str(error)
        name, setting = str(path.parent.relative_to(sweep)), repr(overrides | {"seed": None})
        jobs.append(Job(name, overrides, rows, failure, setting))
    # Job 10 comes after job 9.
    return sorted(jobs, key=lambda job: (len(job.name), job.name))


def summary(jobs: Sequence[Job], swept: Sequence[str]) -> tuple[list[Line], list[Row]]:
    """A record for each cell of each job, and the chosen setting's test rows.

    A record has the cell's validation IIA on changing pairs. The setting and cell with the highest
    mean over seeds are chosen (see `iit.result.select`). A job with several variables has a cell
    for each; they are chosen together, by their mean. A job without such a figure has one record.

    Arguments:
        swept: the keys that were swept.
    """
    means = mean_scores((job.setting, row) for job in jobs for row in scores_of(job.rows))
    best = best_row(means.values()) if means else None
    chosen = [key for key, row in means.items() if row is best]

    # What was asked for says more than what the cell makes of it: vanilla patching has no rank.
    columns = dict.fromkeys(["job", *swept, *Cell._fields, *_FIGURES])
    records, test = [], {}
    for job in jobs:
        scores = where(job.rows, **SCORE)
        for row in scores:
            cell = Cell.of(row)
            key = job.setting, cell._replace(seed=None)
            # The job's other variables were trained in the same alignment.
            others = len({row.variable for row in scores}) > 1 and chosen[0][0] == job.setting
            is_chosen = others or key in chosen
            if is_chosen:
                test[cell] = rows_of(job.rows, cell)
            figures = {
                **row.to_dict(),
                **job.overrides,
                "job": job.name,
                "validation_iia": row.value,
                "seed_mean": means[key].value,
                "failure": None,
                "chosen": is_chosen,
            }
            records.append({column: figures[column] for column in columns})
        if not scores:
            failed = {"job": job.name, "failure": job.failure, "chosen": False}
            records.append(columns | job.overrides | failed)
    return records, [row for rows in test.values() for row in rows]


def seeds(test: Sequence[Row]) -> list[Line]:
    """Test IIA and task accuracy of the chosen setting, each as a mean over its seeds.

    Each mean has an interval (see `over_seeds`). The list is empty where there is one seed.
    """
    rows = where(test, control=None)
    means = []
    for variable in dict.fromkeys(row.variable for row in rows):
        for metric, subset in _OVER_SEEDS:
            columns = {"variable": variable, "metric": metric, "subset": subset}
            shown = where(rows, **columns)
            if len(shown) > 1:
                figures = [Interval(row.value, row.low, row.high, row.n) for row in shown]
                values = {str(row.seed): row.value for row in shown}
                means.append(columns | over_seeds(figures)._asdict() | {"values": values})
    return means


def _seeds_table(means: Sequence[Line]) -> Table:
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


def summary_table(records: Sequence[Line], swept: Sequence[str]) -> Table:
    """The records for the terminal, the chosen ones in bold.

    What all jobs have in common stands below.
    """
    scored = [record for record in records if record["validation_iia"] is not None]
    shown, common = list(swept), []
    # A swept key says the same as the column that it ends with, such as site.layer.
    columns = [c for c in Cell._fields if c not in {key.rpartition(".")[2] for key in swept}]
    for column in columns:
        # A column is shown where jobs differ; what they share is said once, below.
        if len({repr(record[column]) for record in scored}) > 1:
            shown.append(column)
        elif scored and scored[0][column] is not None:
            common.append(f"{column} {scored[0][column]}")

    if len(scored) > 1:
        common.append(
            f"the highest of {len(scored)} figures is too high by chance, the chosen job's "
            "test figure is not"
        )

    n_figures = 3 + ("seed" in swept)
    lines, bold = [], []
    for number, record in enumerate(records):
        if record["chosen"]:
            bold.append(number)
        figures = ["none" if record["failure"] is None else "failed", "", "", ""]
        if record["validation_iia"] is not None:
            figures = [
                f"{record['validation_iia']:.3f}",
                f"{record['low']:.3f} to {record['high']:.3f}",
                str(record["n"]),
                f"{record['seed_mean']:.3f}",
            ]
        cell = ["" if record[column] is None else str(record[column]) for column in shown]
        lines.append([record["job"], *cell, *figures[:n_figures]])

    figures = ("IIA", "95% interval", "n", "mean over seeds")[:n_figures]
    return Table(
        "Validation IIA on changing pairs; the choice is made here",
        ["job", *shown, *figures],
        lines,
        ", ".join(common),
        n_words=1 + len(shown),
        bold=bold,
    )


def write_summary(sweep: str | Path, console: Console | None = None) -> bool:
    """Print the summary of a sweep, and write `summary.csv` and `summary.json` to its folder.

    `summary.json` holds three things: the records under "jobs", the test rows of the chosen setting
    (and of no other) under "test", and the means over its seeds under "seeds", where several were
    run.

    Returns:
        Whether every job has a result.

    Raises:
        ValueError: where the folder has no `sweep.yaml`.
    """
    sweep = Path(sweep)
    facts = read_record(sweep / SWEEP)
    if not facts:
        raise ValueError(f"{sweep} is no folder of a sweep: it has no {SWEEP}.")
    jobs = read_jobs(sweep)
    records, test = summary(jobs, facts["swept"])
    over = seeds(test)
    n_missing = facts["jobs"] - len(jobs)

    # First for the eyes: the files may find no room.
    console = console or Console()
    console.print(summary_table(records, facts["swept"]).rich())
    for job in jobs:
        if job.failure is not None:
            console.print(f"Job {job.name} failed: {job.failure}", soft_wrap=True, markup=False)
    if n_missing > 0:
        console.print(f"{n_missing} of {facts['jobs']} jobs have not started.")
    if over:
        console.print(_seeds_table(over).rich())
    elif test:
        console.print(results_table(test, "The chosen job on test", brief=True).rich())
    console.print(f"Multirun folder: {sweep}", soft_wrap=True, markup=False)

    write_csv(sweep / "summary.csv", records)
    content = {"jobs": records, "test": list(map(Row.to_dict, test)), "seeds": over}
    write_text(sweep / "summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    return n_missing < 1 and all(job.failure is None for job in jobs)
