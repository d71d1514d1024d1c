"""The table of a verdict, as it stands in a run's facts."""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from iit.result.table import Table

HEADER = ("criterion", "verdict", "why")


def verdict_table(verdict: Mapping[str, Any], *, brief: bool = False) -> Table:
    """A line for each criterion; then what was not run, and which controls do not count.

    brief: for the terminal, without criteria that pass, and without reasons for what was not run.
    """
    variable = verdict["variable"]
    outcome = verdict["outcome"]
    missing = verdict["not_run"]
    lines = list(map(itemgetter("criterion", "outcome", "reason"), verdict["findings"]))
    if brief:
        lines = [line for line in lines if line[1] != "pass"]
        # Why a criterion was not run stands behind its name.
        missing = [text.partition(" (")[0] for text in missing]
    caveat = f"Not run: {', '.join(missing)}." if missing else "Nothing was left out."
    if verdict.get("cannot_fail"):
        caveat += f" Cannot fail, and not counted: {', '.join(verdict['cannot_fail'])}."
    if brief:
        return Table(f"Verdict on {variable}: {outcome.upper()}", HEADER, lines, caveat, n_words=3)
    return Table(f"Verdict on `{variable}`: **{outcome}**. {caveat}", HEADER, lines, n_words=3)
