"""The table of a job `steer`: of each method the strength chosen on validation, measured on test prompts, and what it writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from iit.result import Row


def is_steered(facts: Mapping[str, Any]) -> bool:
    """Whether a run's facts are of steering."""
    return "steering" in facts


def steered_lines(rows: Sequence[Row], facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, a line for each method): its figures on test prompts with their intervals; first the network without an edit."""
    metrics = facts["steering"]["metrics"]
    test = {(row.method, row.metric): row for row in rows if row.split == "test"}
    body = []
    for method in dict.fromkeys(method for method, _ in test):
        name, _, strength = (method or "no intervention, strength 0").partition(", strength ")
        found = [test[method, metric] for metric in metrics]
        figures = [f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})" for row in found]
        body.append([name.replace("_", " "), strength, *figures, str(found[0].n)])
    return ["method", "strength", *metrics, "n"], body


def steered_captions(facts: Mapping[str, Any]) -> list[str]:
    """How strengths were chosen."""
    ratio = facts["steering"]["max_ratio"]
    return [
        f"Of each method the strength of largest effect on validation prompts whose perplexity there is at most {ratio:g} times that "
        "without an edit. Perplexity: under the network without an edit; distinct: share of token pairs that do not repeat."
    ]


def steered_examples(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """{test prompt: what each method writes after it}."""
    found: dict[str, list[str]] = {}
    for each in facts["steering"]["examples"]:
        told = f"{each['method'].replace('_', ' ')} ({each['strength']:g}): …{' '.join(each['text'].split())}"
        found.setdefault(each["prompt"], []).append(told)
    return found


def steered_table(rows: Sequence[Row], facts: Mapping[str, Any]) -> Table:
    """For the terminal."""
    header, body = steered_lines(rows, facts)
    table = Table(title=f"{rows[0].experiment}: test prompts", caption=escape(" ".join(steered_captions(facts))))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in body:
        table.add_row(*map(escape, line))
    return table
