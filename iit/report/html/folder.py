"""The folder that a page is made from: its kind, its figures, and what its files hold."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml

from iit.report.curves import read_log
from iit.report.summary import Job, Line, read_jobs, summary
from iit.result import SCORE, Cell, Metrics, Row, read_metrics, where
from iit.result.record import SWEEP, read_record


@dataclass(frozen=True)
class Folder:
    """The folder of a run or of a sweep.

    Arguments:
        path: where it is.
        kind: run | atlas | maps | steering | sweep.
        metrics: rows and facts; a sweep has none of its own.
        job: the folder of the chosen job of a sweep.
        jobs, records, test: those of a sweep (see `read_jobs` and `summary`).
        notes: sentences about what is missing or damaged.
    """

    path: Path
    kind: str
    metrics: Metrics
    job: "Folder | None" = None
    jobs: Sequence[Job] = ()
    records: Sequence[Line] = ()
    test: Sequence[Row] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def chosen(self) -> "Folder | None":
        """The run that the page is about: the folder itself, or the chosen job of a sweep.

        It is None where no job of a sweep has a figure to choose by.
        """
        return self.job if self.kind == "sweep" else self

    def read(self, name: str, why: str = "") -> Any:
        """The object in a JSON or YAML file, the pairs of `outcomes.parquet`, or a CSV log.

        Arguments:
            why: what the page lacks without the file; the notes then say it.

        Returns:
            None where the file is absent or damaged.
        """
        path = self.path / name
        try:
            if path.suffix == ".parquet":
                return _pairs(path)
            if path.suffix == ".csv":
                return read_log(path)
            text = path.read_text(encoding="utf-8")
            return dict(json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))
        except FileNotFoundError:
            if why:
                self.notes.append(f"There is no {name}. {why}")
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            self.notes.append(f"{name} is damaged: {error}. {why}")
        return None


def open_folder(path: str | Path) -> Folder:
    """Find out what a folder holds.

    Raises:
        FileNotFoundError: where it holds no result.
        ValueError: where its records or figures are damaged, or of another schema.
    """
    path = Path(path)
    record = read_record(path / SWEEP)
    if record:
        jobs = read_jobs(path)
        records, test = summary(jobs, record.get("swept", ()))
        names = [line["job"] for line in records if line["chosen"]]
        job = open_folder(path / names[0]) if names else None
        return Folder(path, "sweep", Metrics((), {}), job, jobs, records, test)
    metrics = read_metrics(path)
    scores = where(metrics.rows, **SCORE)
    several = len(set(map(Cell.of, scores))) > len({row.variable for row in scores})
    # An investigation compares cells, too; it keeps its own tables.
    special = {"tables": "run", "maps": "maps", "steering": "steering"}
    kinds = [kind for fact, kind in special.items() if fact in metrics.facts]
    return Folder(path, [*kinds, "atlas" if several else "run"][0], metrics)


def _pairs(path: Path) -> list[dict[str, Any]]:
    table = pyarrow.parquet.read_table(path)
    if (table.schema.metadata or {}).get(b"iit.schema") != b"iit.outcomes/1":
        raise ValueError("it does not have the schema iit.outcomes/1")
    return table.to_pylist()
