"""Choosing a cell. All comparisons of cells choose here, and see validation rows only."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from statistics import fmean
from typing import Any, NamedTuple

from iit.result.row import ROW_FIELDS, Row
from iit.result.table import Shown, Table, to_pandas, with_interval
from iit.result.vocabulary import figure_words, table_order


class Cell(NamedTuple):
    """One point of a study: site × intervention × rank × seed, …; what tells it from others.

    The fields are columns of `Row`.
    """

    network: str | None
    task: str | None
    variable: str | None
    method: str | None
    component: str | None
    layer: int | None
    head: Any
    position: Any
    rank: int | None
    seed: int | None

    @classmethod
    def of(cls, row: Row) -> "Cell":
        """The cell that a row belongs to."""
        return cls(*map(_hashable, attrgetter(*cls._fields)(row)))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


SCORE: Mapping[str, Any] = {
    "split": "validation",
    "subset": "changing",
    "control": None,
    "draw": None,
    "metric": "iia",
}
"""The columns of the figure that cells are chosen by."""


class Rows(Shown, list[Row]):
    """A list of rows. It shows those that have words, in the order of the vocabulary."""

    def as_table(self) -> Table:
        """A line for each of the first rows: changing pairs first, and training pairs last."""
        cells = dict.fromkeys(map(Row.cell_text, self))
        rows = [row for row in self if figure_words(row.arm, row.metric)]
        rows.sort(
            key=lambda row: (
                row.split == "train",
                row.subset != "changing",
                table_order(row.arm, row.metric),
            )
        )
        lines = []
        for row in rows[:20]:
            name = f"{figure_words(row.arm, row.metric)}"
            # A cell that all share stands in the title alone.
            if len(cells) > 1:
                name = f"{row.cell_text()}: {name}"
            lines.append((name, f"{row.split}, {row.subset}", with_interval(row), f"{row.n}"))
        title = f"{len(lines)} of {len(self)} rows: {'; '.join(cells)[:150]}"
        return Table(title, ("figure", "pairs", "value (95% interval)", "n"), lines, n_words=2)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of all rows, with a row's columns."""
        return to_pandas(map(Row.to_dict, self), ROW_FIELDS)


def where(rows: Iterable[Row], **columns: Any) -> Rows:
    """The rows whose columns have these values."""
    for name, value in columns.items():
        rows = [row for row in rows if getattr(row, name) == value]
    return Rows(rows)


def select(rows: Iterable[Row]) -> Cell:
    """The cell with the highest validation IIA on changing pairs (see `SCORE`).

    Cells that differ in their seed alone are compared with others by their mean, and the first of
    them stands for all. Rows of other splits and of controls are not looked at.

    Raises:
        ValueError: where there is no validation row to choose by, and for cells of several
            variables: an alignment of all of them is chosen by their mean (see `scores_of`).
    """
    scores = where(rows, **SCORE)
    if not scores:
        raise ValueError("There is no validation row of IIA on changing pairs to choose by.")
    variables = sorted({str(row.variable) for row in scores})
    if len(variables) > 1:
        raise ValueError(
            f"The IIA of one variable says nothing of another's; these rows are of {variables}. "
            "Give the rows of one, where(rows, variable=…)."
        )
    return Cell.of(_best(scores))


def validation_iia(rows: Iterable[Row]) -> float | None:
    """The validation IIA on changing pairs of the best cell.

    Over several seeds and several variables it is the mean.

    Returns:
        A share between 0 and 1; None for a job without such a figure.
    """
    scores = scores_of(rows)
    return _best(scores).value if scores else None


def _best(scores: Iterable[Row]) -> Row:
    return best_row(mean_scores((None, row) for row in scores).values())


def mean_scores(scores: Iterable[tuple[Any, Row]]) -> dict[tuple[Any, Cell], Row]:
    """The mean over seeds of each cell in each setting.

    Arguments:
        scores: each row with its setting: what a cell does not say, such as the learning rate.

    Returns:
        {(setting, the cell without its seed): the row of its first seed, with the mean as value}.
        Where a seed was run twice, the later row counts.
    """
    seeds: dict[tuple[Any, Cell], dict[Any, Row]] = defaultdict(dict)
    for setting, row in scores:
        seeds[setting, Cell.of(row)._replace(seed=None)][row.seed] = row
    means = {}
    for key, rows in seeds.items():
        first, *_ = rows.values()
        means[key] = replace(first, value=fmean(row.value for row in rows.values()))
    return means


def best_row(scores: Iterable[Row]) -> Row:
    """The row with the highest value.

    Among equal ones it is that with the lowest rank, then with the lowest layer, then the first by
    name.
    """

    def order(row: Row) -> tuple[Any, ...]:
        # Cells without a rank or a layer come last among equals.
        rank = row.rank is None, row.rank or 0
        layer = row.layer is None, row.layer or 0
        return -row.value, rank, layer, repr(Cell.of(row))

    return min(scores, key=order)


def scores_of(rows: Iterable[Row]) -> list[Row]:
    """The rows that a job is compared with others by: its validation IIA on changing pairs.

    There is one row for each cell. An alignment of several variables has a row for each of them.
    The value of each is then the mean over the variables.
    """
    scores = where(rows, **SCORE)
    # One variable: its figure is the job's.
    if len({row.variable for row in scores}) < 2:
        return scores
    mean = sum(row.value for row in scores) / len(scores)
    return [replace(row, value=mean) for row in scores]


def rows_of(rows: Iterable[Row], cell: Cell, *, split: str = "test") -> list[Row]:
    """The rows of one cell on one split, by default of the test pairs."""
    return [row for row in where(rows, split=split) if Cell.of(row) == cell]
