"""The table of a job `steer`: each method at the strength that was chosen on validation.

Figures are of test prompts, and the caption shows what was written.
"""

from itertools import groupby

from iit.result import Metrics, where
from iit.result.table import Table, with_interval


def steering_tables(metrics: Metrics, brief: bool = False) -> list[Table]:
    """A line for each method: its figures on test prompts; first the network without an edit.

    Other runs have no such table.

    brief: a line for each figure, instead of a column.
    """
    steering = metrics.facts.get("steering")
    if steering is None:
        return []
    test = where(metrics.rows, split="test")

    lines = []
    # Rows of one method stand together, so `groupby` needs no sorting.
    for method, figures in groupby(test, lambda row: row.method):
        rows = {row.metric: row for row in figures}
        shown = [rows[metric] for metric in steering["metrics"]]
        name = (method or "no intervention").replace("_", " ")
        strength = f"{shown[0].draw or 0:g}"
        if brief:
            lines += [[name, strength, row.metric, with_interval(row), str(row.n)] for row in shown]
            continue
        lines.append([name, strength, *map(with_interval, shown), str(shown[0].n)])

    caption = (
        "Of each method the strength of largest effect on validation prompts whose perplexity "
        f"there is at most {steering['max_ratio']:g} times that without an edit. Perplexity: under "
        "the network without an edit; distinct: share of token pairs that do not repeat."
    )
    for prompt, examples in groupby(steering["examples"], lambda example: example["prompt"]):
        caption += f"\n\n**{prompt}**\n"
        for example in examples:
            text = " ".join(example["text"].split())
            caption += (
                f"\n- {example['method'].replace('_', ' ')} ({example['strength']:g}): …{text}"
            )

    figures = ["figure", "value"] if brief else steering["metrics"]
    header = ["method", "strength", *figures, "n"]
    return [Table(f"{metrics.rows[0].experiment}: test prompts", header, lines, caption)]
