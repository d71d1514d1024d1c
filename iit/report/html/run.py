"""The sections of a run: the claim, examples, every number, and how to repeat it."""

import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from iit.report.html.figures import causal_model
from iit.report.html.folder import Folder
from iit.report.html.section import Section
from iit.report.results import tables
from iit.result import ROW_FIELDS, where
from iit.result.vocabulary import SUBSETS, figure_words, table_order

MOST_FAILURES, MOST_EXAMPLES = 200, 300
"""How many pairs the page shows: of wrong ones, and of all."""
FIGURE = ("subset", "value", "low", "high", "n")
"""Columns of a row that stand in every table of numbers."""


def claim(folder: Folder) -> Section:
    """The first screen: the claim and its verdict, test accuracy, the causal model."""
    metrics = folder.metrics
    score = (folder.read("config.yaml") or {}).get("score", {}).get("kind", "argmax")
    test = where(
        metrics.rows, split="test", metric="iia" if score == "argmax" else f"iia_{score}"
    )
    scores = where(test, subset="changing") or where(test, subset="all")
    verdicts = {verdict["variable"]: verdict for verdict in metrics.facts.get("verdict", ())}
    trained = where(scores, control=None)
    # Variables that are interchanged together have a figure, but no verdict beside each one's.
    claimed = [row for row in trained if row.variable in verdicts] or trained
    data = {
        "facts": metrics.facts,
        "rows": metrics.rows,
        "scores": scores,
        "claimed": claimed,
        "verdicts": verdicts,
        "model": causal_model(folder),
        "tables": [] if claimed else tables(metrics, brief=False),
    }
    return Section("claim", "", "sections/claim.html.j2", data)


def examples(folder: Folder) -> list[Section]:
    """Pairs with what the network says before and after the interchange, failures first."""
    pairs = folder.read("outcomes.parquet", "The page shows no examples.")
    if not pairs:
        return []
    for pair in pairs:
        pair["marked"] = list(_marked(pair["base"], pair["base_roles"]))
        for source in pair["sources"]:
            source["marked"] = list(_marked(source["text"], source["roles"]))
    pairs.sort(key=lambda pair: (pair["right"], pair["split"] != "test", not pair["changing"]))
    wrong = [pair for pair in pairs if not pair["right"]]
    shown = wrong[:MOST_FAILURES] + pairs[len(wrong) :]
    data = {"pairs": shown[:MOST_EXAMPLES], "n": len(pairs), "n_wrong": len(wrong)}
    return [Section("examples", "Examples", "sections/examples.html.j2", data)]


def _marked(text: str, roles: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """The pieces of a text, each with the roles that it belongs to."""
    bounds = {0, len(text)}
    for role in roles:
        bounds |= {role["start"], role["end"]}
    for start, end in pairwise(sorted(bounds)):
        names = [role["role"] for role in roles if role["start"] <= start and end <= role["end"]]
        yield text[start:end], names


def numbers(folder: Folder) -> Section:
    """Every row: its words, and the columns in which rows differ."""
    rows = folder.metrics.rows
    varying = [name for name in ROW_FIELDS if len({repr(getattr(row, name)) for row in rows}) > 1]
    columns = [name for name in varying if name not in ("control", "metric", *FIGURE)]
    lines = []
    for row in sorted(rows, key=lambda row: (row.split, table_order(row.arm, row.metric))):
        name = figure_words(row.arm, row.metric) or f"{row.metric}, {row.arm}"
        cells = [row.to_dict()[column] for column in (*columns, *FIGURE)]
        cells[len(columns)] = SUBSETS.get(row.subset, row.subset)
        lines.append((name, *cells))
    data = {"lines": lines, "columns": ("figure", *columns, *FIGURE), "rows": rows}
    return Section("numbers", "Every number", "sections/numbers.html.j2", data)


def repeat(folder: Folder) -> Section:
    """How to repeat the run."""
    cost = folder.read("cost.json", "The page does not say what the run cost.")
    facts = folder.metrics.facts
    command = shlex.join(facts.get("command", ()))
    data = {"facts": facts, "command": command, "cost": cost or {}, "rows": folder.metrics.rows}
    return Section("repeat", "How to repeat it", "sections/repeat.html.j2", data)
