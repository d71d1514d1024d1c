"""One table for every place: a page, a terminal, a notebook; and what shows itself as one."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jinja2
import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markup import escape
from rich.text import Text

OUTCOME_COLOURS = {
    "pass": "green",
    "open": "yellow",
    "fail": "bold red",
    "not judged": "dim",
    "warn": "yellow",
}
"""The colours of a criterion's outcomes on the terminal. Older runs have warn, too."""


HTML = """\
<p><b>{{ title }}</b></p>
<table style="border-collapse:collapse;color:inherit;font:inherit">
{%- for line in [header] + lines|list %}
<tr>
{%- set tag = "th" if loop.first else "td" %}
{%- for cell in line %}
{%- set side = "left" if loop.index <= n_words else "right" -%}
<{{ tag }} style="text-align:{{ side }};white-space:pre-wrap;padding:2px 8px;vertical-align:top">
{{- cell|e|replace("⟦", "<b><u>"|safe)|replace("⟧", "</u></b>"|safe) -}}
</{{ tag }}>
{%- endfor -%}
</tr>
{%- endfor %}
</table>
<p style="white-space:pre-wrap">{{ caption }}</p>
"""
"""A table in a notebook, in whose colours it stands. What ⟦ and ⟧ mark is bold and underlined."""


class Shown:
    """What shows itself as a table, in a terminal and in a notebook."""

    as_table: Any
    """() → the `Table`."""

    def __repr__(self) -> str:
        return self.as_table().text()

    def _repr_html_(self) -> str:
        return self.as_table().html()


@dataclass(frozen=True)
class Table:
    """Lines of text below a header.

    title: stands above.
    caption: Markdown, stands below.
    n_words: this many columns from the left hold words, the others figures.
    bold: numbers of the lines that the terminal shows in bold.
    page_only: whether the terminal has no room for it.

    Raises:
        ValueError: for a line that has not as many cells as the header.
    """

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    caption: str = ""
    n_words: int = 1
    bold: Collection[int] = ()
    page_only: bool = False

    def __post_init__(self) -> None:
        for line in self.lines:
            if len(line) != len(self.header):
                raise ValueError(
                    f"The columns are {list(self.header)}; a line has other cells: {list(line)}."
                )

    def to_dict(self) -> dict[str, Any]:
        """The table as a run's facts keep it; `Table(**fields)` reads it."""
        return asdict(self)

    def text(self) -> str:
        """Plain text of 80 columns."""
        segments = Console(width=80).render(self.rich())
        return "".join(segment.text for segment in segments).strip()

    def html(self) -> str:
        """For a notebook."""
        return jinja2.Template(HTML, autoescape=True).render(vars(self))

    def markdown(self) -> str:
        """For a page: title, table and caption, as paragraphs."""
        # Figures are aligned on the right.
        n_figures = len(self.header) - self.n_words
        rule = ["---"] * self.n_words + ["---:"] * n_figures
        lines = [f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.lines)]
        paragraphs = filter(None, [self.title, "\n".join(lines), self.caption])
        return "\n\n".join(paragraphs) + "\n"

    def rich(self) -> Group:
        """For the terminal, in as few columns of characters as there can be."""
        title = f"\n{_coloured(self.title)}"
        table = rich.table.Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0
        )
        for number, name in enumerate(self.header):
            justify = "left" if number < self.n_words else "right"
            table.add_column(escape(name), justify=justify, overflow="fold")
        for number, line in enumerate(self.lines):
            table.add_row(*map(_coloured, line), style="bold" if number in self.bold else None)
        return Group(table, *map(Text, filter(None, [self.caption])))


def _coloured(text: str) -> str:
    """The text as rich markup; an outcome at its end has its colour."""
    before, colon, last = text.rpartition(": ")
    colour = OUTCOME_COLOURS.get(last.lower())
    if colour is None:
        return escape(text)
    return f"{escape(before)}{colon}[{colour}]{last}[/]"


def to_pandas(lines: Any, columns: Any = None) -> Any:
    """A `pandas.DataFrame` of mappings; whole numbers stay whole beside missing ones."""
    import pandas as pd

    frame = pd.DataFrame([*lines], columns=columns, dtype=object)
    # pandas would make floats of numbers beside None.
    return frame.apply(lambda column: column if column.hasnans else column.infer_objects())


def with_interval(figure: Any) -> str:
    """A row's figure, or an `Interval`, as text."""
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
