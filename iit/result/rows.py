"""Rows as a list that shows itself."""

from typing import Any

from iit.result.row import ROW_FIELDS, Row
from iit.result.table import VALUE, Shown, Table, to_pandas, with_interval
from iit.result.vocabulary import figure_words, table_order


class Rows(Shown, list[Row]):
    """A list of rows. It shows those that have words, in the order of the vocabulary."""

    def as_table(self) -> Table:
        """A line for each of the first rows: changing pairs first, and training pairs last."""
        cells = dict.fromkeys(map(Row.cell_text, self))
        lines = []
        for row in sorted(self, key=_order):
            name = figure_words(row.arm, row.metric)
            if name is None:
                continue
            # A cell that all share stands in the title alone.
            if len(cells) > 1:
                name = f"{row.cell_text()}: {name}"
            lines.append((name, f"{row.split}, {row.subset}", with_interval(row), str(row.n)))
        title = f"{', '.join(cells) if len(cells) < 2 else f'{len(cells)} cells'}; "
        title += f"the first {len(lines[:20])} of {len(self)} rows"
        return Table(title, ("figure", "pairs", VALUE, "n"), lines[:20], n_words=2)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of all rows, with a row's columns."""
        return to_pandas(map(Row.to_dict, self), ROW_FIELDS)


def _order(row: Row) -> Any:
    return row.split == "train", row.subset != "changing", table_order(row.arm, row.metric)
