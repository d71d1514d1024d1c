"""The table of an experiment's page: it is generated from the experiment's result.json.

That file is a run's metrics.json or, of a script that measures something else, {"schema":
"iit.table/1", "facts": {…}, "columns": [text, …], "lines": [[text, …], …]}.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from iit.report.results import tables
from iit.result import read_metrics, write_text
from iit.result.table import Table

START = "<!-- table: generated from result.json -->"
END = "<!-- end of table -->"
TABLE = "iit.table/1"


def page_with_table(folder: Path) -> str:
    """The README's text with the table of `result.json` between its marks.

    Raises:
        ValueError: where a mark is missing or stands twice.
    """
    text = (folder / "README.md").read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(
            f"{folder / 'README.md'} needs the marks {START!r} and {END!r}, once each."
        )
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{_shown(folder / 'result.json')}{END}{rest.partition(END)[2]}"


def _shown(result: Path) -> str:
    content = json.loads(result.read_text(encoding="utf-8"))
    if content.get("schema") == TABLE:
        return Table("", content["columns"], content["lines"]).markdown()
    first, *others = tables(read_metrics(result), brief=False)
    # The page's own title says what the first table is.
    return "\n".join(map(Table.markdown, (replace(first, title=""), *others)))


def unclean(result: Path) -> str | None:
    """Why a result cannot be traced to a revision; None where it can."""
    facts = json.loads(result.read_text(encoding="utf-8")).get("facts", {})
    git = facts.get("git", {})
    if not git.get("revision"):
        return "names no revision"
    if git.get("dirty"):
        return "is from a tree with uncommitted changes"
    return None


def main(arguments: list[str]) -> int:
    """Compare (or write) the pages of all experiments.

    The command is `python -m iit.report.page [--write] [FOLDER]`.

    With `--write` a result that cannot be traced to a revision is a warning.

    Returns:
        1 where a page is stale, or its result cannot be traced to a revision; else 0.
    """
    write = "--write" in arguments
    root = Path(next((a for a in arguments if not a.startswith("-")), "experiments"))

    failed = 0
    for result in sorted(root.glob("*/result.json")):
        folder = result.parent
        reason = unclean(result)
        if reason is not None:
            print(f"{result} {reason}; run the experiment again from a clean tree.")
            failed = int(not write)
        page = page_with_table(folder)
        if page != (folder / "README.md").read_text(encoding="utf-8"):
            if write:
                write_text(folder / "README.md", page)
            else:
                print(
                    f"{folder}/README.md does not show what its result.json holds; run: python -m "
                    "iit.report.page --write"
                )
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
