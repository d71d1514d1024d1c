"""Figures as files: pictures, with their data beside them."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from iit.result import write_text
from iit.result.maps import Line, columns_of


def save_figure(figure: Figure, path: str | Path, table: Sequence[Line] = ()) -> None:
    """Write PATH.png and PATH.svg and, with a table's lines, PATH.csv; each atomically."""
    for suffix in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=150)
        target = Path(f"{path}.{suffix}")
        # It is renamed when it is complete, so nobody reads half a picture.
        temporary = target.with_name(f".{target.name}.partial")
        temporary.write_bytes(content.getvalue())
        temporary.replace(target)
    if table:
        write_csv(Path(f"{path}.csv"), table)


def write_csv(path: Path, table: Sequence[Line]) -> None:
    """Write the lines of a table atomically; the first line says which columns there are."""
    lines = list(map(columns_of, table))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(next(iter(lines), ())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())
