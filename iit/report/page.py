"""An experiment's page: the table in its README is generated from its result.json.

That is a run's metrics.json or, of a script that measures something else, {"schema": "iit.table/1", "facts": {…},
"columns": [text, …], "lines": [[text, …], …]}.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from iit.report.atlas import atlas_lines, compared, is_atlas
from iit.report.ground_truth import HEADER, REASONS, ground_truth_lines, ground_truth_reasons, is_ground_truth
from iit.report.ladder import is_ladder, ladder_caption, ladder_lines
from iit.report.patched import HEADER as MAPS
from iit.report.patched import is_maps, map_captions, map_lines
from iit.report.steered import is_steered, steered_captions, steered_examples, steered_lines
from iit.report.table import markdown, markdown_table
from iit.report.verdict import verdict_markdown
from iit.result import Metrics, Row, read_metrics, write_text

START, END = "<!-- table: generated from result.json -->", "<!-- end of table -->"
TABLE = "iit.table/1"


def page_with_table(folder: Path) -> str:
    """The README's text with the table of `result.json` between its marks. Raises ValueError when the marks are missing."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{folder / 'README.md'} needs the marks {START!r} and {END!r}, once each.")
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{_table(folder / 'result.json')}{END}{rest.partition(END)[2]}"


def _table(result: Path) -> str:
    content = json.loads(result.read_text(encoding="utf-8"))
    if content.get("schema") == TABLE:
        return markdown(content["columns"], content["lines"])
    metrics = read_metrics(result)
    if is_ground_truth(metrics.facts):
        verdicts = metrics.facts["verdicts"]
        why = markdown(REASONS, ground_truth_reasons(verdicts), n_left=len(REASONS))
        told = f"\n<details><summary>Why: each criterion that does not pass</summary>\n\n{why}\n</details>\n"
        return markdown(HEADER, ground_truth_lines(metrics.rows, verdicts), n_left=2) + told
    if is_maps(metrics.facts):
        return (
            markdown(MAPS, map_lines(metrics.rows, metrics.facts), n_left=2)
            + "\n"
            + "\n".join(map_captions(metrics.facts))
            + "\n"
        )
    if is_steered(metrics.facts):
        told = [
            f"**{prompt}**\n\n" + "\n".join(f"- {text}" for text in texts)
            for prompt, texts in steered_examples(metrics.facts).items()
        ]
        return "\n".join(
            [markdown(*steered_lines(metrics.rows, metrics.facts)), *steered_captions(metrics.facts), "", "\n\n".join(told), ""]
        )
    if is_ladder(metrics.rows):
        return markdown(*ladder_lines(metrics.rows)) + f"\n{ladder_caption(metrics.rows)}\n"
    verdicts = verdict_markdown(metrics.facts.get("verdict", ()))
    return markdown_table(metrics.rows) + shares(metrics) + verdicts + (_atlas(metrics.rows) if is_atlas(metrics.rows) else "")


def _atlas(rows: Sequence[Row]) -> str:
    (n,) = {row.n for row in rows if (row.split, row.subset, row.metric) == ("validation", "changing", "iia")}
    return f"\nValidation IIA on changing pairs (n = {n}), by layer and position; the whole vector's in brackets:\n\n{markdown(*atlas_lines(rows))}\n{compared(rows)}\n"


def shares(metrics: Metrics) -> str:
    """Which shares of the test pairs are changing, and separate the hypothesis from each rival; nothing where a run does not say."""
    data = metrics.facts.get("data", {})
    changing, rivals = data.get("changing", {}).get("test"), data.get("separating", {}).get("test")
    test = [row for row in metrics.rows if (row.split, row.subset, row.control) == ("test", "all", None)]
    n = sum(row.n for row in test if row.metric == "iia")
    what = "pairs" if n else "prompts"
    n = n or sum(row.n for row in test if row.metric == "task_accuracy")
    if not n or changing is None or rivals is None:
        return ""
    told = [f"{changing / n:.0%} are changing"] if what == "pairs" else []
    told += [f"{count / n:.0%} tell the hypothesis from the rival `{name}`" for name, count in rivals.items()]
    return f"\nOf the {n} test {what}, {'; '.join(told)}.\n" if told else ""


def unclean(result: Path) -> str | None:
    """Why a result cannot be traced to a revision; None where it can."""
    facts = json.loads(result.read_text(encoding="utf-8")).get("facts", {})
    git = facts.get("git", {})
    if not git.get("revision"):
        return "names no revision"
    return "is from a tree with uncommitted changes" if git.get("dirty") else None


def main(arguments: list[str]) -> int:
    """`python -m iit.report.page [--write] [FOLDER]`: compare (or write) the pages of all experiments; 1 when one is stale.

    A result that cannot be traced to a revision is a warning.
    """
    write, root = "--write" in arguments, Path(next((a for a in arguments if not a.startswith("-")), "experiments"))
    stale = 0
    for folder in sorted(path.parent for path in root.glob("*/result.json")):
        reason = unclean(folder / "result.json")
        if reason is not None:
            print(f"warning: {folder}/result.json {reason}; run the experiment again from a clean tree.")
        page = page_with_table(folder)
        if page != (folder / "README.md").read_text(encoding="utf-8"):
            if write:
                write_text(folder / "README.md", page)
            else:
                print(f"{folder}/README.md does not show what its result.json holds; run: python -m iit.report.page --write")
                stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
