"""A folder that is written as a whole."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_folder(folder: str | Path, foreign: Callable[[Path], list[str]]) -> Iterator[Path]:
    """A fresh folder to write to; it takes the place of `folder` when the block ends.

    After an exception it is removed, and `folder` stays as it was.

    Arguments:
        foreign: returns the names in a folder that may not be replaced.

    Raises FileExistsError when there are such names, or where a file stands in the folder's place.
    """
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(
            f"{folder} is a file; choose a folder that is new, empty, or an earlier save."
        )

    others = foreign(folder) if folder.exists() else []
    if others:
        raise FileExistsError(
            f"{folder} holds other files ({', '.join(sorted(others)[:3])}); choose a folder that "
            "is new, empty, or an earlier save. (`Captured.load` reads a finished capture.)"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)

    # On the same file system, so that the rename at the end is atomic.
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        # mkdtemp lets only its owner read.
        temporary.chmod(0o755)
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
