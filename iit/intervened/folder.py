"""A folder that is there whole, or as it was before."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_folder(folder: str | Path, foreign: Callable[[Path], list[str]]) -> Iterator[Path]:
    """A fresh folder to write to; it takes the place of `folder` when the block ends without an exception.

    No system swaps two folders in one step everywhere, so the old one first steps aside; if the process dies right then,
    `settled` still finds it.

    foreign: the names in a folder that are not ours to replace.
    Raises FileExistsError when there are such, or a file stands there.
    """
    folder = Path(folder).expanduser().resolve()
    before = _aside(folder)
    for place in (folder, before):
        if place.exists() and not place.is_dir():
            raise FileExistsError(f"{place} is a file; choose a folder that is new, empty, or an earlier save.")
        others = foreign(place) if place.exists() else []
        if others:
            told = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            raise FileExistsError(f"{place} holds other files ({told}); choose a folder that is new, empty, or an earlier save.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            os.replace(folder, before)
        os.replace(temporary, folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settled(folder: Path) -> Path:
    """Where the folder's content is: there, or aside, if a save was killed between its two renames."""
    aside = _aside(folder.resolve())
    return aside if not folder.exists() and aside.is_dir() else folder


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")
