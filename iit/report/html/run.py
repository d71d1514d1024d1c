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
_SCORES = {"iia_generated_difference", "iia_forced_difference"}


def claim(folder: Folder) -> Section:
    """The first screen: the claim and its verdict, test accuracy, the causal model."""
    metrics = folder.metrics
    test = where(metrics.rows, split="test")
    measured = {row.metric for row in test}
    # Only the metric of the run's score is compared with controls, pair by pair.
    metric = [*_SCORES & measured, "iia_difference"][0].removesuffix("_difference")
    test = where(test, metric=metric)
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
        "tables": tables(metrics, brief=False),
    }
    return Section("claim", "", "sections/claim.html.j2", data)


def examples(folder: Folder) -> list[Section]:
    """Pairs with what the network says before and after the interchange, failures first."""
    why = "The page shows no examples."
    if folder.kind in ("maps", "steering"):
        # These have cells or texts in place of pairs: nothing is missing.
        why = ""
    pairs = folder.read("outcomes.parquet", why)
    if not pairs:
        return []
    for pair in pairs:
        pair["marked"] = list(_marked(pair["base"], pair["base_roles"]))
        for source in pair["sources"]:
            source["marked"] = list(_marked(source["text"], source["roles"]))
    pairs.sort(
        key=lambda pair: (pair["right"] is not False, pair["split"] != "test", not pair["changing"])
    )
    wrong = [pair for pair in pairs if pair["right"] is False]
    shown = wrong[:MOST_FAILURES] + pairs[len(wrong) :]
    data = {"pairs": shown[:MOST_EXAMPLES], "n": len(pairs), "n_wrong": len(wrong)}
    return [Section("examples", "Examples", "sections/examples.html.j2", data)]


def _marked(text: str, roles: dict[str, Any] | None) -> Iterator[tuple[str, list[str]]]:
    """The pieces of a text, each with the roles that it belongs to.

    roles: {role: [start, end] in the text, or None}.
    """
    spans = {role: span for role, span in (roles or {}).items() if span}
    bounds = {0, len(text)}.union(*spans.values())
    for start, end in pairwise(sorted(bounds)):
        names = [role for role, (first, last) in spans.items() if first <= start and end <= last]
        yield text[start:end], names


def numbers(folder: Folder) -> Section:
    """Every row, test split first, in the order of the vocabulary."""
    rows = sorted(
        folder.metrics.rows, key=lambda row: (row.split, table_order(row.arm, row.metric))
    )
    data = {"rows": rows, "fields": ROW_FIELDS, "words": figure_words, "subsets": SUBSETS}
    return Section("numbers", "Every number", "sections/numbers.html.j2", data)


def repeat(folder: Folder) -> Section:
    """How to repeat the run."""
    job = folder.read("job.yaml") or {}
    config = folder.read("config.yaml") or {}
    facts = folder.metrics.facts
    data = {
        "facts": facts,
        "command": shlex.join(facts.get("command", ())),
        "cost": job.get("cost", {}),
        "network": config.get("network", {}),
    }
    return Section("repeat", "How to repeat it", "sections/repeat.html.j2", data)
