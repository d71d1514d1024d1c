"""A folder that is written as a whole."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_folder(folder: str | Path, foreign: Callable[[Path], list[str]]) -> Iterator[Path]:
    """A fresh folder to write to; it takes the place of `folder` when the block ends without an
    exception.

    foreign: the names in a folder that are not ours to replace.
    Raises FileExistsError when there are such, or a file stands there.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(
            f"{folder} is a file; choose a folder that is new, empty, or an earlier save."
        )
    others = foreign(folder) if folder.exists() else []
    if others:
        names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise FileExistsError(
            f"{folder} holds other files ({names}); choose a folder that is new, empty, or an "
            "earlier save."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
