"""What a run shows: its tables, on the terminal and on its page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from iit.report.atlas import atlas_tables
from iit.report.map_table import map_tables
from iit.report.steering_table import steering_tables
from iit.report.table import Table
from iit.report.verdict import verdict_table
from iit.result import Cell, Metrics, Row, read_metrics, where
from iit.result.vocabulary import CONTROLS, KIND, SUBSETS, figure_words, table_order

HEADER = ("test split", "pairs", "value", "95% interval", "n")


def tables(metrics: Metrics, *, brief: bool) -> list[Table]:
    """The tables of a run: those that its facts keep, else those of its kind, else of its rows.

    brief: for the terminal, without what only a page has room for.
    """
    kept = [Table(**fields) for fields in metrics.facts.get("tables", ())]
    if kept:
        return [table for table in kept if not (brief and table.page_only)]
    for tables_of in (map_tables, steering_tables):
        special = tables_of(metrics, brief)
        if special:
            return special
    return result_tables(metrics, brief)


def print_results(folder: str | Path) -> None:
    """Print a run's tables and where its folder is."""
    console = Console()
    for table in tables(read_metrics(folder), brief=True):
        console.print(table.rich())
    console.print(f"Run folder: {folder}", soft_wrap=True, markup=False)


def result_tables(metrics: Metrics, brief: bool = False) -> list[Table]:
    """The test figures, the verdicts on them, and a grid of the cells where there are many.

    Raises:
        ValueError: where there is no row.
    """
    rows = metrics.rows
    if not rows:
        raise ValueError("There is no row to show: the job returned none.")
    cells = {Cell.of(row): row for row in where(rows, split="test") or rows}
    subject = f"{len(cells)} cells" if len(cells) > 1 else cell_text(next(iter(cells.values())))
    results = results_table(
        rows, f"{rows[0].experiment}: {subject} in {rows[0].network}", shares(metrics), brief=brief
    )
    verdicts = [verdict_table(verdict, brief=brief) for verdict in metrics.facts.get("verdict", ())]
    atlas = atlas_tables(rows)
    return [*atlas, results, *verdicts] if brief else [results, *verdicts, *atlas]


def results_table(
    rows: Sequence[Row], title: str, caption: str = "", *, brief: bool = False
) -> Table:
    """The test figures of a run, changing pairs first.

    Figures with a name come in the order of the vocabulary, then the others. Some are left to
    `metrics.json`: the single draws of an averaged control (a random subspace, a seed), and
    figures that the vocabulary gives no words (see `figure_words`). Figures of several cells say
    whose they are.

    brief: of controls and differences the changing pairs alone, where there are any.
    """
    shown = [
        row for row in where(rows, split="test") if figure_words(row.arm, row.metric) is not None
    ]
    if brief and where(shown, subset="changing"):
        shown = [
            row
            for row in shown
            if row.control is None
            or row.subset == "changing"
            or row.metric.startswith("principal_angle")
        ]

    # Off-target rows describe a cell of this run, but name another variable.
    edited = {Cell.of(row): None for row in shown if row.control != "off_target"}
    cells = list(edited | {Cell.of(row): None for row in shown})

    # Cells that differ in their variable only are told apart by its name.
    same_site = len({cell._replace(variable=None) for cell in cells}) == 1

    def order(row: Row) -> tuple[int, int, int]:
        # A subset that is not named comes behind all that are.
        subset = [*SUBSETS, row.subset].index(row.subset)
        return cells.index(Cell.of(row)), table_order(row.arm, row.metric), subset

    lines = []
    for row in sorted(shown, key=order):
        name = str(figure_words(row.arm, row.metric))
        if len(edited) > 1 or Cell.of(row) not in edited:
            name = f"{row.variable if same_site else cell_text(row)}: {name}"
        pairs = "prompts"
        if row.metric != "task_accuracy":
            kind = row.subset.replace(KIND, "differing in ").replace("in none", "in nothing")
            pairs = SUBSETS.get(row.subset, kind)
        lines.append(
            (name, pairs, f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}", str(row.n))
        )

    bold = [number for number, line in enumerate(lines) if line[0].endswith(CONTROLS[None].words)]
    return Table(title, HEADER, lines, caption, n_words=2, bold=bold)


def cell_text(row: Row) -> str:
    """The cell of a row in words."""
    if row.component is None:
        return f"task {row.task}"
    rank = "" if row.rank is None else f", rank {row.rank}"
    return f"{row.variable} at {row.site_text()}{rank}"


def shares(metrics: Metrics) -> str:
    """The share of test pairs that are changing, and that separate the hypothesis from each rival.

    It is an empty text where a run does not say.
    """
    data = metrics.facts.get("data", {})
    changing = data.get("changing", {}).get("test")
    rivals = data.get("separating", {}).get("test")
    test = where(metrics.rows, split="test", subset="all", control=None)
    pairs = sum(row.n for row in where(test, metric="iia"))
    n = pairs or sum(row.n for row in where(test, metric="task_accuracy"))
    if not n or changing is None or rivals is None:
        return ""
    phrases = [f"{changing / n:.0%} are changing"] if pairs else []
    phrases += [
        f"{count / n:.0%} tell the hypothesis from the rival `{name}`"
        for name, count in rivals.items()
    ]
    return (
        f"Of the {n} test {'pairs' if pairs else 'prompts'}, {'; '.join(phrases)}."
        if phrases
        else ""
    )
