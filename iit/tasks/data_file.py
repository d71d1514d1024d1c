"""The data files of the tasks. `README.md` says what they hold and where they come from."""

import csv
from importlib.resources import files


def text(name: str) -> str:
    """The whole file."""
    return (files("iit.tasks") / name).read_text(encoding="utf-8")


def words(name: str) -> tuple[str, ...]:
    """The words of a file."""
    return tuple(text(name).split())


def lines(name: str) -> tuple[str, ...]:
    """The lines of a file."""
    return tuple(text(name).splitlines())


def table(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file: column → value."""
    return list(csv.DictReader(text(name).splitlines()))
