"""A verdict as it stands in a run's facts: on the terminal, and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

HEADER = ("criterion", "verdict", "why")
STYLES = {"pass": "green", "open": "yellow", "fail": "bold red", "not judged": "dim", "warn": "yellow"}
"""Older runs say warn."""


def verdict_lines(verdict: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(criterion, outcome, reason) of each finding."""
    return [(f["criterion"], f["outcome"], f["reason"]) for f in verdict["findings"]]


def not_run(verdict: Mapping[str, Any]) -> str:
    """What the verdict does not know, and which controls do not count."""
    text = f"Not run: {', '.join(verdict['not_run'])}." if verdict["not_run"] else "Nothing was left out."
    weak = verdict.get("cannot_fail")
    return f"{text} Cannot fail, and not counted: {', '.join(weak)}." if weak else text


def verdict_table(verdict: Mapping[str, Any]) -> Table:
    """For the terminal."""
    title = f"Verdict on {verdict['variable']}: [{STYLES[verdict['outcome']]}]{verdict['outcome'].upper()}[/]"
    table = Table(*HEADER, title=title, caption=escape(not_run(verdict)))
    for criterion, outcome, reason in verdict_lines(verdict):
        table.add_row(escape(criterion), f"[{STYLES[outcome]}]{outcome}[/]", escape(reason))
    return table


def verdict_markdown(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """For an experiment's page; nothing where a run has none."""
    text = ""
    for verdict in verdicts:
        text += f"\nVerdict on `{verdict['variable']}`: **{verdict['outcome']}**. {not_run(verdict)}\n\n"
        rule = ("---",) * len(HEADER)
        text += "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, rule, *verdict_lines(verdict))) + "\n"
    return text
