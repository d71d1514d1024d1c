"""The tables of an investigation, made again from the rows of a result."""

import json
import sys
from pathlib import Path

from iit.investigation.ground_truth_report import ground_truth_tables
from iit.investigation.ladder_report import ladder_tables
from iit.report import Table
from iit.result import Metrics, read_metrics, write_text


def tables_of(metrics: Metrics) -> list[Table]:
    """The tables of a ladder or of ground truth, from its rows and facts."""
    # Only ground truth has verdicts under this name.
    verdicts = metrics.facts.get("verdicts")
    if verdicts:
        return ground_truth_tables(metrics.rows, verdicts)
    return ladder_tables(metrics.rows)


def main(paths: list[str]) -> None:
    """Write the tables of results anew: `python -m iit.investigation.tables FILE …`.

    A result of an earlier version holds no tables, and a report does not make those of an
    investigation.

    Arguments:
        paths: files of the form of `metrics.json`, which are changed in place.
    """
    for path in map(Path, paths):
        tables = [table.to_dict() for table in tables_of(read_metrics(path))]
        content = json.loads(path.read_text(encoding="utf-8"))
        facts = content["facts"] | {"tables": tables}
        content["facts"] = dict(sorted(facts.items()))
        write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
