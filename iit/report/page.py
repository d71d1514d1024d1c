"""An experiment's page: the table in its README is generated from its result.json, a run's metrics.json."""

import sys
from pathlib import Path

from iit.report.table import markdown_table
from iit.result import read_metrics, write_text

START, END = "<!-- table: generated from result.json -->", "<!-- end of table -->"


def page_with_table(folder: Path) -> str:
    """The README's text with the table of `result.json` between its marks. Raises ValueError when the marks are missing."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{folder / 'README.md'} needs the marks {START!r} and {END!r}, once each.")
    before, _, rest = text.partition(START)
    table = markdown_table(read_metrics(folder / "result.json").rows)
    return f"{before}{START}\n{table}{END}{rest.partition(END)[2]}"


def main(arguments: list[str]) -> int:
    """`python -m iit.report.page [--write] [FOLDER]`: compare (or write) the pages of all experiments; 1 when one is stale."""
    write, root = "--write" in arguments, Path(next((a for a in arguments if not a.startswith("-")), "experiments"))
    stale = 0
    for folder in sorted(path.parent for path in root.glob("*/result.json")):
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
