"""Saving and loading an intervened model: `config.json` and `interventions.safetensors`; nothing in a folder can run code."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from iit.intervened.edit import Edit
from iit.intervention import Intervention
from iit.network import LanguageModel, fingerprint
from iit.site import Site

FORMAT = "iit.intervened/1"
CONFIG, WEIGHTS = "config.json", "interventions.safetensors"


@contextmanager
def written_folder(folder: str | Path) -> Iterator[Path]:
    """A fresh folder to write to, moved to `folder` when the block ends without an exception.

    An existing `folder` is replaced only if it is one of ours (it holds a `config.json` of this format). Raises FileExistsError otherwise.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not _is_ours(folder):
        raise FileExistsError(f"{folder} holds other files; choose a folder that is new, empty, or an earlier save.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        temporary.chmod(0o755)
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(folder: Path, edits: Mapping[str | Site, Edit], network: Mapping[str, Any]) -> None:
    """Write the edits and the network's identity into a folder. Raises ValueError for an intervention that cannot be saved."""
    interventions = list(dict.fromkeys(edit.intervention for edit in edits.values()))
    tensors = {
        f"{number}.{name}": tensor.detach().cpu().contiguous().clone()
        for number, intervention in enumerate(interventions)
        for name, tensor in intervention.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)
    config = {
        "format": FORMAT,
        "network": dict(network),
        "edits": [
            {
                "variable": None if isinstance(key, Site) else key,
                "sites": [_site_to_json(site) for site in edit.sites],
                "source_sites": [_site_to_json(site) for site in edit.source_sites],
                "joint": edit.joint,
                "intervention": interventions.index(edit.intervention),
            }
            for key, edit in edits.items()
        ],
        "interventions": [intervention.config() for intervention in interventions],
        "weights_sha256": _sha256(folder / WEIGHTS),
    }
    config["sha256"] = _digest(config)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read(folder: str | Path, types: Mapping[str, Any] | None = None) -> tuple[dict[str | Site, Edit], dict[str, Any]]:
    """The edits of a folder, and the identity of the network they were made for.

    types: a user's own interventions, name → class, beside the closed table.
    Raises FileNotFoundError for missing files, ValueError for damaged, altered or foreign ones and for weights that are not finite.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no saved intervened model: {name} is missing.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG} is not in the format {FORMAT!r}.")
    if config.get("sha256") != _digest(config):
        raise ValueError(f"{folder / CONFIG} was altered after it was saved: its checksum does not fit.")
    if config["weights_sha256"] != _sha256(folder / WEIGHTS):
        raise ValueError(f"{folder / WEIGHTS} is truncated or altered: its checksum does not fit {CONFIG}.")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: {error}.") from error
    interventions = []
    for number, description in enumerate(config["interventions"]):
        intervention = Intervention.from_config(description, types)
        state = {name.partition(".")[2]: t for name, t in tensors.items() if name.partition(".")[0] == str(number)}
        for name, tensor in state.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{folder / WEIGHTS}: {name} of {description['type']} has values that are not finite.")
        intervention.load_state_dict(state)
        interventions.append(intervention.eval())
    edits = {}
    for edit in config["edits"]:
        sites = [Site(**site) for site in edit["sites"]]
        key = edit["variable"] if edit["variable"] is not None else sites[0]
        source_sites = [Site(**site) for site in edit["source_sites"]]
        edits[key] = Edit(sites, interventions[edit["intervention"]], source_sites, edit["joint"])
    return edits, config["network"]


def identity(network: LanguageModel | nn.Module) -> dict[str, Any]:
    """What tells a network from others: name, revision, class, width, number of layers, and its weights' fingerprint."""
    module = network.model if isinstance(network, LanguageModel) else network
    config: Any = getattr(module, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return {
        "name": network.name if isinstance(network, LanguageModel) else getattr(config, "_name_or_path", None) or None,
        "revision": network.revision if isinstance(network, LanguageModel) else None,
        "class": type(module).__name__,
        "width": getattr(config, "hidden_size", None),
        "n_layers": getattr(config, "num_hidden_layers", None),
        "fingerprint": fingerprint(module),
    }


def check_network(saved: Mapping[str, Any], network: LanguageModel | nn.Module) -> None:
    """Raises ValueError when the network is not the one that the folder was saved for, naming what differs."""
    here = identity(network)
    if here["fingerprint"] == saved.get("fingerprint"):
        return
    differing = [key for key in ("class", "width", "n_layers", "name", "revision") if here[key] != saved.get(key)]
    told = "; ".join(f"{key}: saved for {saved.get(key)!r}, given {here[key]!r}" for key in differing)
    raise ValueError(
        f"This was saved for another network ({told or 'same shape, other weights or dtype'}). Load that network, or pass "
        "check_network=False if you mean to carry the interventions over."
    )


def _site_to_json(site: Site) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(site).items() if v is not None}


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def _digest(config: Mapping[str, Any]) -> str:
    told = {key: value for key, value in config.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
