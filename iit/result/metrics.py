"""`metrics.json`: the rows of a run and the facts behind them, written whole or not at all."""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from iit.result.row import Row

SCHEMA = "iit.metrics/2"
FILE = "metrics.json"


@dataclass(frozen=True)
class Metrics:
    """The content of a `metrics.json`: rows, and facts (data, network, versions, …)."""

    rows: tuple[Row, ...]
    facts: dict[str, Any]


def write_metrics(folder: str | Path, rows: Sequence[Row], **facts: Any) -> Path:
    """Write `metrics.json` atomically and return its path.

    The same rows and facts give the same bytes. The schema is `iit/result/metrics.schema.json`.

    Raises:
        ValueError: for figures that are not finite, naming the row, and for what does not fit the
            schema.
    """
    for row in rows:
        wrong = [name for name in ("value", "low", "high") if not math.isfinite(getattr(row, name))]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} of a row is not finite: {row}")
    path = Path(folder) / FILE
    # Facts in alphabetical order at every level; rows keep the order of their columns.
    ordered = json.loads(json.dumps(facts, sort_keys=True, allow_nan=False))
    content = {"schema": SCHEMA, "facts": ordered, "rows": list(map(Row.to_dict, rows))}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    _validate(json.loads(text), path)
    write_text(path, text)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: it is there whole, or as it was before."""
    # In the same folder, as `os.replace` works within one file system only.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # `mkstemp` makes files that only their owner can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_metrics(path: str | Path) -> Metrics:
    """Read a `metrics.json`, or the one in a run's folder; also one of the first schema.

    Raises:
        FileNotFoundError: where there is none: the run did not finish.
        ValueError: where it is damaged or of another schema.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: the run did not finish, or this is not a run's folder."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except ValueError as error:  # of JSON, of UTF-8, or a NaN
        raise ValueError(f"{path} is damaged: {error}.") from error
    _validate(content, path)
    return Metrics(tuple(map(Row.from_dict, content["rows"])), content["facts"])


def _refuse(constant: str) -> None:
    """JSON has no NaN and no Infinity; Python's reader would accept them."""
    raise ValueError(f"{constant} is no figure")


def _validate(content: Any, path: Path) -> None:
    try:
        jsonschema.validate(content, _schema())
    except jsonschema.ValidationError as error:
        raise ValueError(
            f"{path} does not fit the schema {SCHEMA!r} at {error.json_path}: {error.message}."
        ) from error


@cache
def _schema() -> dict[str, Any]:
    return json.loads(
        files("iit.result").joinpath("metrics.schema.json").read_text(encoding="utf-8")
    )
