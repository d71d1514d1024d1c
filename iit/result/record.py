"""Records of a sweep: `sweep.yaml` in its folder, and `job.yaml` in the folder of each job.

`sweep.yaml` holds the command and the git revision it ran at, `overrides` as they were typed,
`swept` (the keys that have several values), the `launcher`, and how many `jobs` there are (1 where
the sweeper chooses values as it goes).

`job.yaml` holds the job's `status` (running | done | failed), the values of the swept keys as
`overrides`, and a digest of its `config`. A failed job also has its `error` and where its `log` is.
A job that was killed stays running.
"""

from pathlib import Path
from typing import Any

import yaml

from iit.result.metrics import write_text

SWEEP, JOB = "sweep.yaml", "job.yaml"
Record = dict[str, Any]


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically."""
    write_text(path, yaml.safe_dump(record, sort_keys=False))


def read_record(path: Path) -> Record:
    """Read a record; it is empty where there is none.

    Raises:
        ValueError: for a damaged one.
    """
    if not path.is_file():
        return {}
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "overrides" not in record:
            raise ValueError("it has no overrides")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {error}. Move its folder away.") from error
    return record
