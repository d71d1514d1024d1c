"""Saving and loading an intervened model as JSON and tensors; no file of a folder can run code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from iit.intervened.edit import Edit, Variable
from iit.intervention import Intervention
from iit.network import Network, fingerprint
from iit.site import Site

FORMAT = "iit.intervened/2"
CONFIG = "config.json"
WEIGHTS = "interventions.safetensors"
RECORD = "alignment.json"
CARD = "README.md"
LOADED = (CONFIG, WEIGHTS, RECORD)
"""The files that loading reads. The card is for people."""

Json = dict[str, Any]
"""A JSON object."""


class SaveContent(NamedTuple):
    """What a folder holds.

    edits: {variable: Edit}.
    network: the description of the network that they were made for.
    source_grad: as the model had it.
    record: an alignment's variables and rows; None for a plain intervened model.
    """

    edits: dict[Variable, Edit]
    network: Json
    source_grad: bool
    record: Json | None


def write_save(folder: Path, saved: SaveContent) -> None:
    """Write the files of a save into an empty folder.

    Raises ValueError for an intervention that cannot be saved, and for values that JSON lacks.
    """
    # An intervention that several edits share is written once; edits name it by its number.
    interventions = list(dict.fromkeys(edit.intervention for edit in saved.edits.values()))
    descriptions = [intervention.config() for intervention in interventions]
    tensors = {}
    for number, intervention in enumerate(interventions):
        for name, tensor in intervention.state_dict().items():
            # A clone: safetensors refuses tensors that share memory.
            tensors[f"{number}.{name}"] = tensor.cpu().contiguous().clone()
    save_file(tensors, folder / WEIGHTS)

    if saved.record is not None:
        write_json(folder / RECORD, saved.record)
    edits = []
    for key, edit in saved.edits.items():
        variable = key
        if isinstance(key, Site):
            variable = site_to_json(key)
        number = interventions.index(edit.intervention)
        edits.append({"variable": variable, **edit_to_json(edit), "intervention": number})
    config = {
        "format": FORMAT,
        "network": saved.network,
        "source_grad": saved.source_grad,
        "edits": edits,
        "interventions": descriptions,
    }
    write_json(folder / CONFIG, config)


def read_save(folder: Path, types: Mapping[str, Any] | None = None) -> SaveContent:
    """Read what a folder holds.

    Arguments:
        types: the user's own bases, gates and operations, name → class, beside the closed table.

    Raises FileNotFoundError for missing files. Raises ValueError for damaged or foreign files, and
    for weights that are not finite.
    """
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} is not in the format {FORMAT!r} (it says {config.get('format')!r})."
        )
    try:
        interventions = _interventions(folder / WEIGHTS, config["interventions"], types)
        edits: dict[Variable, Edit] = {}
        for edit in config["edits"]:
            key = edit["variable"]
            # A variable is a name, or a site that stands for its own edit.
            if isinstance(key, dict):
                key = Site(**key)
            edits[key] = edit_from_json(edit, interventions[edit["intervention"]])
        record = None
        if (folder / RECORD).exists():
            record = read_json(folder / RECORD)
        return SaveContent(edits, config["network"], config["source_grad"], record)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error!r}.") from error


def foreign(folder: Path) -> list[str]:
    """The names in a folder that no save wrote.

    These are all names, unless the folder's `config.json` is one of ours.
    """
    try:
        written = read_json(folder / CONFIG)
    except (OSError, ValueError):
        written = {}
    names = set(os.listdir(folder))
    if str(written.get("format")).startswith("iit.intervened/"):
        names -= {*LOADED, CARD}
    return list(names)


def describe_network(network: Network | nn.Module) -> Json:
    """What tells a network from others.

    It is the name, revision, class, width, number of layers, dtype, and the weights' fingerprint.
    The name of a network that was loaded from a folder is the folder's own name, without its path:
    what is shared does not tell where the folder lies.
    """
    module = network.model if isinstance(network, Network) else network
    config: Any = getattr(module, "config", None)
    # The text part of a composite model.
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    name, revision = getattr(config, "_name_or_path", None), None
    if isinstance(network, Network):
        name, revision = network.name, network.revision
    dtypes = (str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters())
    # The dtype of the first parameter stands for the network's.
    dtype = next(dtypes, None)
    return {
        "name": Path(name).name if name and Path(name).is_dir() else name or None,
        "revision": revision,
        "class": type(module).__name__,
        "width": getattr(config, "hidden_size", None),
        "n_layers": getattr(config, "num_hidden_layers", None),
        "dtype": dtype,
        "fingerprint": fingerprint(module),
    }


def check_network(saved: Mapping[str, Any], network: Network | nn.Module) -> None:
    """Check that a network is the one that a folder was saved for.

    The fingerprint alone decides: the same weights may have another name.

    Raises ValueError, naming what differs, when it is another one.
    """
    current = describe_network(network)
    if current["fingerprint"] == saved.get("fingerprint"):
        return
    facts = []
    for key in ("class", "width", "n_layers", "dtype", "name", "revision"):
        if current[key] != saved.get(key):
            facts.append(f"{key}: saved for {saved.get(key)!r}, given {current[key]!r}")
    raise ValueError(
        f"This was saved for another network ({'; '.join(facts) or 'same shape, other weights'}). "
        "Load that network. (Edits are carried over to another with check_network=False.)"
    )


def _interventions(
    path: Path, descriptions: list[Json], types: Mapping[str, Any] | None
) -> list[Intervention]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no whole save: {path.name} is missing.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error

    interventions = []
    for number, description in enumerate(descriptions):
        # Names are NUMBER.NAME, as `write_save` gives them.
        prefix, state, dtype = f"{number}.", {}, None
        for name, tensor in tensors.items():
            if not name.startswith(prefix):
                continue
            state[name.removeprefix(prefix)] = tensor
            if tensor.is_floating_point():
                dtype = tensor.dtype
            if not tensor.isfinite().all():
                raise ValueError(
                    f"{path}: {name.removeprefix(prefix)} of {description['type']} has values "
                    "that are not finite."
                )

        # Fresh weights are drawn and then replaced: the user's own draws stay the same.
        with torch.random.fork_rng(devices=[]):
            intervention = Intervention.from_config(description, types)
        if dtype is not None:
            # Weights that were saved in another precision keep it.
            intervention = intervention.to(dtype)
        try:
            intervention.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not hold the weights of {intervention}: {error}"
            ) from error
        interventions.append(intervention.eval())
    return interventions


def site_to_json(site: Site) -> Json:
    """The arguments that make the site again."""
    return {name: value for name, value in vars(site).items() if value is not None}


def edit_to_json(edit: Edit) -> Json:
    """All of an edit but its intervention."""
    return {
        "sites": list(map(site_to_json, edit.sites)),
        "source_sites": list(map(site_to_json, edit.source_sites)),
        "joint": edit.joint,
    }


def edit_from_json(record: Mapping[str, Any], intervention: Intervention) -> Edit:
    """The inverse of `edit_to_json`."""
    sites = [Site(**site) for site in record["sites"]]
    source_sites = [Site(**site) for site in record["source_sites"]]
    return Edit(sites, intervention, source_sites, record["joint"])


def write_json(path: Path, content: Json) -> None:
    """Write a JSON object. Raises ValueError for values that JSON lacks."""
    try:
        # NaN and infinity are no JSON.
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} holds JSON, which has no such value: {error}.") from error
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, what: str = "saved intervened model") -> Json:
    """The JSON object in a file.

    Arguments:
        what: what a folder with this file is, for the error.

    Raises FileNotFoundError without the file, and ValueError for a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no {what}: {path.name} is missing.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # Both JSON and UTF-8 raise it.
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object.")
    return content
