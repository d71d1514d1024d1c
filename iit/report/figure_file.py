"""Figures as files: pictures, with their data beside them."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from iit.result import write_text
from iit.result.maps import Line, columns_of
from iit.result.table import to_pandas


def save_figure(figure: Figure, path: str | Path, table: Sequence[Line] = ()) -> None:
    """Write PATH.png and PATH.svg and, with a table's lines, PATH.csv; each atomically."""
    for suffix in ("png", "svg"):
        target = Path(f"{path}.{suffix}")
        # It is renamed when it is complete, so nobody reads half a picture.
        temporary = target.with_name(f".{target.name}.partial")
        figure.savefig(temporary, format=suffix, dpi=150)
        temporary.replace(target)
    if table:
        write_csv(Path(f"{path}.csv"), table)


def write_csv(path: Path, table: Sequence[Line]) -> None:
    """Write the lines of a table atomically; the first line says which columns there are."""
    text = to_pandas(map(columns_of, table)).to_csv(index=False, lineterminator="\n")
    write_text(path, text)
