"""Reading what pyvene 0.1 saved (arXiv 2403.07809): `config.json` and `intkey_*.bin`.

pyvene itself is not needed.
"""

import json
import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iit.intervened.edit import Edit, Variable
from iit.intervened.pyvene_interventions import (
    DISTRIBUTED,
    HOLDS_TENSORS,
    Subspaces,
    intervention_of,
)
from iit.intervention import Intervention
from iit.network import Network
from iit.network.components import blocks_of
from iit.site import Index, Site, resolve

PyvenePosition = str | Index
Representation = Mapping[str, Any]
"""{field: its value}, of one of pyvene's representations."""
VariableNames = str | tuple[str, ...] | None

FIELDS = (
    "layer component unit max_number_of_units low_rank_dimension intervention_type intervention "
    "subspace_partition group_key intervention_link_key moe_key source_representation "
    "hidden_source_representation latent_dim"
).split()
"""The fields of a representation, which is saved as a list of their values."""
LISTS = ("intervention_types", "intervention_dimensions", "intervention_constant_sources")
"""Lists of `config.json` with an entry for each representation."""
# Components that are called the same here and there, without and with heads.
PLAIN_COMPONENTS = (
    "block_input",
    "block_output",
    "mlp_input",
    "mlp_output",
    "attention_input",
    "attention_output",
    "mlp_activation",
)
HEAD_COMPONENTS = ("attention_value_output", "query_output", "key_output", "value_output")
# Families whose components of these names are in the same places here and there.
GPT = ("gpt2", "gpt_neo", "gpt_neox")
LLAMA = ("llama", "mistral", "qwen2", "gemma", "gemma2")


def read_pyvene(
    folder: str | Path,
    network: Network | nn.Module,
    positions: Sequence[PyvenePosition] | Mapping[str | tuple[str, ...], PyvenePosition],
    heads: Sequence[Index] | None = None,
) -> dict[Variable, Edit]:
    """The edits of a folder that pyvene's `save` wrote, in its order.

    Interventions with one link key share their weights. A subspace partition becomes blocks. Which
    source a group of interventions reads is said when they run, as in pyvene.

    Arguments:
        positions: one for each representation, because pyvene gets them only when it runs. The keys
            of a mapping are the variables' names; a key is a tuple of names where a representation
            has a subspace partition.
        heads: one for each representation likewise, where its unit is "h" or "h.pos"; None for the
            others.

    Raises FileNotFoundError for missing files. Raises ValueError for damaged files, and for
    whatever would not give pyvene's own numbers.
    """
    folder = Path(folder).expanduser()
    module = network.model if isinstance(network, Network) else network
    representations = _representations(folder, module)
    names: list[VariableNames] = [None] * len(positions)
    if isinstance(positions, Mapping):
        names, positions = list(positions), list(positions.values())
    if heads is None:
        heads = [None] * len(representations)
    for what, values in (("positions", positions), ("heads", heads)):
        if len(values) != len(representations):
            raise ValueError(
                f"{folder} has {len(representations)} representations and needs as many {what}; "
                f"got {len(values)}."
            )

    edits: dict[Variable, Edit] = {}
    linked: dict[Any, Intervention] = {}
    rows = zip(representations, names, positions, heads, strict=True)
    for number, (representation, name, position, head) in enumerate(rows):
        try:
            site, joint = _site(module, representation, position, head)
            # A tuple of names goes to the blocks; the edit itself is then called by its site.
            variable = name if isinstance(name, str) else site
            if variable in edits:
                raise ValueError(
                    f"it is at the site of another one, {site}; name them: "
                    "positions={name: position}."
                )
            subspaces = _subspaces(representation["subspace_partition"], name)
            # Without a link key an intervention has weights of its own.
            link = representation["intervention_link_key"]
            if link is None:
                link = representation["key"]
            if link not in linked:
                width = _unit_width(module, representation, site)
                kind, dimension = representation["kind"], representation["intervention_dimensions"]
                state = _state(folder, representation)
                linked[link] = intervention_of(kind, state, dimension, width, subspaces)
            elif subspaces is not None:
                raise ValueError(
                    "it has a subspace partition of the rotation of another one (link key "
                    f"{link!r}): here all blocks of a rotation belong to one edit. Load a folder "
                    "with one of the two."
                )
        except ValueError as error:
            component = representation["component"]
            raise ValueError(f"{folder}, representation {number} ({component}): {error}") from error
        edits[variable] = Edit(site, linked[link], joint=joint)
    return edits


def _representations(folder: Path, network: nn.Module) -> list[dict[str, Any]]:
    """The fields of each representation, with those of `LISTS`.

    Beside them stand its `kind`, the name of the intervention's class, and the `key` of its file.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no folder that pyvene saved: config.json is missing.")

    representations: list[dict[str, Any]] = []
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        for values in config["representations"]:
            by_field: Any = values
            if not isinstance(values, dict):
                by_field = dict(zip(FIELDS, values, strict=True))
            # A mapping may leave fields out.
            representations.append(dict.fromkeys(FIELDS) | by_field)
        for name in LISTS:
            if len(config[name]) != len(representations):
                raise ValueError(
                    f"{name} has {len(config[name])} entries for {len(representations)} "
                    "representations"
                )
            for representation, value in zip(representations, config[name], strict=True):
                representation[name] = value
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not as pyvene 0.1 saves it: {error!r}.") from error

    network_class = _class_name(config.get("model_type") or "")
    if network_class not in ("", type(network).__name__):
        raise ValueError(
            f"{folder} was saved for {network_class}, the network is {type(network).__name__}."
        )
    if config.get("mode", "parallel") != "parallel" and len(representations) > 1:
        raise ValueError(
            f"{folder} was saved in the mode {config['mode']!r}: one source's edit changes the "
            "next source. Load its representations one by one and chain them with iit.capture."
        )

    n_alike = Counter[str]()
    for r in representations:
        # The names of pyvene's files, without `intkey_` and `.bin`.
        layer = "" if "." in r["component"] else f"layer_{r['layer']}_"
        key = f"{layer}comp_{r['component']}_unit_{r['unit']}_nunit_{r['max_number_of_units']}"
        key = key.replace(".", "_")
        r["kind"] = _class_name(r["intervention_types"])
        # Representations that are otherwise alike are numbered.
        r["key"] = f"{key}#{n_alike[key]}"
        n_alike[key] += 1
    return representations


def _class_name(saved: str) -> str:
    """The name in a class's repr, such as "<class 'pyvene.models….VanillaIntervention'>"."""
    return re.sub(r".*\.|'>$", "", saved)


def _state(folder: Path, representation: Representation) -> dict[str, Any]:
    """The saved tensors; {} for an intervention without any, whose file is not read."""
    kind, constant = representation["kind"], representation["intervention_constant_sources"]
    if kind not in DISTRIBUTED and not (constant and kind in HOLDS_TENSORS):
        return {}
    path = folder / f"intkey_{representation['key']}.bin"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} is no whole save of pyvene: {path.name} is missing."
        )
    try:
        # `weights_only` reads tensors and plain values alone: loading runs no code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no state dict but a {type(state).__name__}.")
    return state


def _site(
    network: nn.Module, representation: Representation, position: PyvenePosition, head: Index
) -> tuple[Site, bool]:
    """The site of a representation, and whether its positions are edited as one vector.

    Raises ValueError for units, heads and positions that are not carried over.
    """
    component, unit = representation["component"], representation["unit"]
    n = int(representation["max_number_of_units"])
    if representation["moe_key"] is not None:
        raise ValueError("it is inside an expert (moe_key); that is not carried over.")
    by_head = component.startswith("head_")

    # A unit is a position ("pos"), a head ("h"), or a head at a position ("h.pos").
    if unit not in (("h", "h.pos") if by_head else ("pos",)):
        raise ValueError(
            f"it has the unit {unit!r}; carried over are 'pos', and 'h' and 'h.pos' for components "
            "by head."
        )
    if by_head != (head is not None):
        raise ValueError(
            f"it has the unit {unit!r} and {'needs' if by_head else 'has no'} heads; heads: {head}."
        )
    if unit == "h" and position is not None:
        raise ValueError(
            f"it has the unit 'h', all positions: its position is None; got {position!r}."
        )

    # pyvene rotates all n positions of a representation as one vector.
    joint = representation["kind"] in DISTRIBUTED and n > 1 and not by_head
    indices: Any = position if hasattr(position, "__len__") else ()
    if joint and not isinstance(position, str) and len(indices) != n:
        raise ValueError(
            f"it edits {n} positions as one vector; its position is a role or {n} indices, not "
            f"{position!r}."
        )
    return _named(network, representation, position, head), joint


def _named(
    network: nn.Module, representation: Representation, position: PyvenePosition, head: Index
) -> Site:
    component, layer = representation["component"], representation["layer"]
    if "." in component:
        # "h[3].mlp.output" → "h.3.mlp" and "output"
        path, _, side = re.sub(r"\[(\d+)\]", r".\1", component).rpartition(".")
        return Site(module=path, side=side, position=position)

    config: Any = getattr(network, "config", None)
    family = type(network).__name__
    if hasattr(config, "get_text_config"):
        family = config.get_text_config().model_type
    if family not in GPT + LLAMA:
        raise ValueError(
            f"pyvene's components of the family {family!r} are not carried over; those of "
            f"{GPT + LLAMA} are."
        )
    if component == "mlp_activation" and family in LLAMA:
        # In gated families pyvene reads it before the gate, at the activation function. Here the
        # name is for what comes after the gate.
        blocks = blocks_of(network).blocks
        # The path of the list of blocks.
        root = next(name for name, module in network.named_modules() if module is blocks)
        return Site(module=f"{root}.{layer}.mlp.act_fn", side="output", position=position)
    name = component.removeprefix("head_")
    if component not in PLAIN_COMPONENTS and name not in HEAD_COMPONENTS:
        raise ValueError(
            "this component is not carried over; those that are: "
            f"{', '.join(PLAIN_COMPONENTS + HEAD_COMPONENTS)}."
        )
    return Site(name, layer=layer, head=head, position=position)


def _unit_width(network: nn.Module, representation: Representation, site: Site) -> int | None:
    """The width of one unit: of one position, or of one head there.

    Returns None where only a run can tell.
    """
    if representation["component"] == "mlp_activation":
        # The activation function does not tell its width; the MLP's activation has the same.
        site = Site("mlp_activation", layer=representation["layer"])
    width = resolve(network, site).width
    if width is None or site.heads is None:
        return width
    # Several heads lie side by side in the site.
    return width // len(site.heads)


def _subspaces(partition: Any, name: VariableNames) -> Subspaces:
    """{name: columns of the rotation}; a pair of numbers is a range of columns.

    Raises ValueError for names that do not fit the partition.
    """
    if partition is None:
        if isinstance(name, tuple):
            raise ValueError(f"it has no subspace partition: it is one variable, not {name}.")
        return None
    if not isinstance(name, tuple) or len(name) != len(partition) or len(set(name)) != len(name):
        raise ValueError(
            f"it has {len(partition)} subspaces: give as many different names, "
            "positions={(name, …): position}."
        )
    columns = {}
    for variable, part in zip(name, partition, strict=True):
        columns[variable] = list(part)
        if len(part) == 2:
            columns[variable] = list(range(*part))
    return columns
