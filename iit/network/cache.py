"""Folders that are made once, and stay in the user's cache."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from platformdirs import user_cache_dir

MANIFEST = "manifest.json"


def cache_folder(*parts: str) -> Path:
    """A folder in `IIT_CACHE`, if the environment has that, or in the user's cache."""
    return Path(os.environ.get("IIT_CACHE") or user_cache_dir("iit"), *parts)


def made_once(folder: Path, make: Callable[[Path], None], message: str) -> Path:
    """The folder; it is made if it does not exist or is damaged.

    It appears whole or not at all. Its content is checked against checksums that were written when
    it was made.

    Arguments:
        make: writes the content into the empty folder that it gets.
        message: what a line on stderr says before it is made; the folder's path follows.
    """
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder: a rename works within one file system only.
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        damaged = " (the copy there is damaged)" if folder.exists() else ""
        print(f"{message} in {folder}{damaged}", file=sys.stderr)
        make(temporary)
        sums = {file.name: checksum(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(sums, indent=2), encoding="utf-8")
        # `mkdtemp` makes folders that nobody else can read.
        temporary.chmod(0o755)
        if folder.exists() and not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(temporary, folder)
        except OSError:
            if not is_whole(folder):  # another process may have made it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the folder holds what was made, unchanged."""
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, value in sums.items():
            # Folders of earlier versions list sha256.
            digest = "sha256" if len(value) == 64 else xxhash.xxh3_128
            if checksum(folder / name, digest) != value:
                return False
        return bool(sums)
    except (OSError, ValueError):
        return False


def checksum(path: Path, digest: Any = xxhash.xxh3_128) -> str:
    """A digest of a file's content, in hexadecimal digits.

    Arguments:
        digest: by default xxh3 (128 bits), which finds damage at the speed of reading.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, digest).hexdigest()
