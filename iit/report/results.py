"""What a run shows: its tables, on the terminal and on its page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from iit.report.atlas import atlas_tables
from iit.report.map_table import map_tables
from iit.report.steering_table import steering_tables
from iit.result import TRAINED, Cell, Metrics, Row, read_metrics, where
from iit.result.table import Table
from iit.result.verdict_table import verdict_table
from iit.result.vocabulary import KIND, NULLS, SUBSETS, figure_words, table_order

BRIEF = (None, "vanilla", "pca_subspace", "placebo_direction", "placebo_pair", *NULLS)
"""The controls whose accuracy the terminal shows."""


def tables(metrics: Metrics, *, brief: bool) -> list[Table]:
    """The tables of a run: those that its facts keep, else those of its kind, else of its rows.

    brief: for the terminal, without what only a page has room for.
    """
    kept = [Table(**fields) for fields in metrics.facts.get("tables", ())]
    if kept:
        return [table for table in kept if not (brief and table.page_only)]
    special = map_tables(metrics, brief) or steering_tables(metrics, brief)
    return special or result_tables(metrics, brief)


def print_results(folder: str | Path) -> None:
    """Print a run's brief tables, and where all of its figures are."""
    console = Console()
    for table in tables(read_metrics(folder), brief=True):
        console.print(table.rich())
    console.print(f"All figures: {folder}/metrics.json", soft_wrap=True, markup=False)


def result_tables(metrics: Metrics, brief: bool = False) -> list[Table]:
    """The test figures, the verdicts on them, and a grid of the cells where there are many.

    Raises:
        ValueError: where there is no row.
    """
    rows = metrics.rows
    if not rows:
        raise ValueError("There is no row to show: the job returned none.")
    subject_rows = where(rows, split="test") or rows
    cells = set(map(Cell.of, subject_rows))
    subject = subject_rows[0].cell_text()
    if len(cells) > 1:
        subject = f"{len(cells)} cells"
    title = f"{rows[0].experiment}: {subject} in {rows[0].network}"
    results = results_table(rows, title, shares(metrics), brief=brief)
    verdicts = [verdict_table(verdict, brief=brief) for verdict in metrics.facts.get("verdict", ())]
    atlas = atlas_tables(rows)
    if brief:
        return [*atlas, results, *verdicts]
    return [results, *verdicts, *atlas]


def results_table(
    rows: Sequence[Row], title: str, caption: str = "", *, brief: bool = False
) -> Table:
    """The test figures of a run, changing pairs first.

    Figures with a name come in the order of the vocabulary, then the others. Some are left to
    `metrics.json`: the single draws of an averaged control (a random subspace, a seed), and
    figures that the vocabulary gives no words (see `figure_words`). Figures of several cells say
    whose they are.

    brief: the main accuracies: of the trained edit on changing and unchanging pairs, of the
        controls in `BRIEF` on changing pairs, and of the network.
    """
    shown = [
        row for row in where(rows, split="test") if figure_words(row.arm, row.metric) is not None
    ]
    if brief and where(shown, subset="changing"):
        shown = list(filter(_is_brief, shown))

    # Off-target rows describe a cell of this run, but name another variable.
    edited = dict.fromkeys(Cell.of(row) for row in shown if row.control != "off_target")
    cells = list(edited | dict.fromkeys(map(Cell.of, shown)))

    # Cells that differ in their variable only are told apart by its name.
    same_site = len({cell._replace(variable=None) for cell in cells}) == 1

    def order(row: Row) -> tuple[int, int, int]:
        # A subset that is not named comes behind all that are.
        subset = [*SUBSETS, row.subset].index(row.subset)
        return cells.index(Cell.of(row)), table_order(row.arm, row.metric), subset

    lines, bold = [], []
    for row in sorted(shown, key=order):
        name = str(figure_words(row.arm, row.metric))
        if len(edited) > 1 or Cell.of(row) not in edited:
            whose = row.variable if same_site or brief else row.cell_text()
            if not brief:
                name = f"{whose}: {name}"
            elif (heading := (str(whose), "", "", "", "")) not in lines:
                lines.append(heading)
        pairs = "prompts"
        if row.metric != "task_accuracy":
            kind = row.subset.replace(KIND, "differing in ").replace("in none", "in nothing")
            pairs = SUBSETS.get(row.subset, kind)
        if row.arm == TRAINED and row.metric == "iia":
            bold.append(len(lines))
        lines.append(
            (name, pairs, f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}", str(row.n))
        )

    header = ("test split", "pairs", "value", "95% interval", "n")
    return Table(title, header, lines, caption, n_words=2, bold=bold)


def _is_brief(row: Row) -> bool:
    """Whether the terminal shows a figure where there are changing pairs."""
    if row.metric == "iia" and row.control in BRIEF:
        return row.subset == "changing" or (row.control, row.subset) == (None, "unchanging")
    return row.metric == "task_accuracy"


def shares(metrics: Metrics) -> str:
    """The share of test pairs that are changing, and that separate the hypothesis from each rival.

    It is an empty text where a run does not say.
    """
    data = metrics.facts.get("data", {})
    changing = data.get("changing", {}).get("test")
    rivals = data.get("separating", {}).get("test")
    test = where(metrics.rows, split="test", subset="all", control=None)
    unit, counted = "pairs", where(test, metric="iia")
    if not counted:
        unit, counted = "prompts", where(test, metric="task_accuracy")
    n = sum(row.n for row in counted)
    if not n or changing is None or rivals is None:
        return ""
    phrases = []
    if unit == "pairs":
        phrases.append(f"{changing / n:.0%} are changing")
    for name, count in rivals.items():
        phrases.append(f"{count / n:.0%} tell the hypothesis from the rival `{name}`")
    if not phrases:
        return ""
    return f"Of the {n} test {unit}, {'; '.join(phrases)}."
