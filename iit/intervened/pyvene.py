"""Reading what pyvene 0.1 saved (arXiv 2403.07809): `config.json` and `intkey_*.bin`.

pyvene itself is not needed.
"""

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iit.intervened.edit import Edit, Variable
from iit.intervened.pyvene_interventions import DISTRIBUTED, HOLDS_TENSORS, intervention_of
from iit.intervention import Intervention
from iit.network import Network
from iit.network.components import blocks_of
from iit.site import Index, Site, resolve

PyvenePosition = str | Index
VariableNames = str | tuple[str, ...] | None

FIELDS = (
    "layer component unit max_number_of_units low_rank_dimension intervention_type intervention "
    "subspace_partition group_key intervention_link_key moe_key source_representation "
    "hidden_source_representation latent_dim"
).split()
"""The fields of a representation, which is saved as a list of their values."""
# Components that are called the same here and there, without and with heads.
PLAIN_COMPONENTS = (
    "block_input",
    "block_output",
    "mlp_input",
    "mlp_output",
    "attention_input",
    "attention_output",
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
    config = _config(folder, module)
    representations: list[dict[str, Any]] = config["representations"]
    names: list[VariableNames] = (
        list(positions) if isinstance(positions, Mapping) else [None] * len(positions)
    )
    places = list(positions.values()) if isinstance(positions, Mapping) else list(positions)
    chosen_heads = [None] * len(representations) if heads is None else list(heads)
    for what, values in (("positions", places), ("heads", chosen_heads)):
        if len(values) != len(representations):
            raise ValueError(
                f"{folder} has {len(representations)} representations and needs as many {what}; "
                f"got {len(values)}."
            )

    edits: dict[Variable, Edit] = {}
    linked: dict[Any, Intervention] = {}
    for number, (key, representation) in enumerate(
        zip(_keys(representations), representations, strict=True)
    ):
        prefix = f"{folder}, representation {number} ({representation['component']})"
        # The class is saved as its repr, such as "<class 'pyvene.models….VanillaIntervention'>".
        kind = re.sub(r".*\.|'>$", "", config["intervention_types"][number])
        constant = bool(config["intervention_constant_sources"][number])
        site, joint = _site(
            prefix, module, representation, kind, places[number], chosen_heads[number]
        )
        subspaces = _subspaces(prefix, representation["subspace_partition"], names[number])

        # Without a link key an intervention has weights of its own.
        link = (
            key
            if representation["intervention_link_key"] is None
            else representation["intervention_link_key"]
        )
        if link not in linked:
            # Only these have tensors; the files of others are not read.
            state = (
                _state(folder / f"intkey_{key}.bin")
                if kind in DISTRIBUTED or (constant and kind in HOLDS_TENSORS)
                else {}
            )
            dimension = config["intervention_dimensions"][number]
            width = _unit_width(module, representation, site)
            linked[link] = intervention_of(prefix, kind, state, dimension, width, subspaces)
        elif subspaces is not None:
            raise ValueError(
                f"{prefix} has a subspace partition of the rotation of another one (link key "
                f"{link!r}): here all blocks of a rotation belong to one edit. Load a folder with "
                "one of the two."
            )

        # A tuple of names goes to the blocks; the edit itself is then called by its site.
        name = names[number]
        variable = name if isinstance(name, str) else site
        if variable in edits:
            raise ValueError(
                f"{prefix} is at the site of another one, {site}; name them: "
                f"positions={{name: position}}."
            )
        edits[variable] = Edit(site, linked[link], joint=joint)
    return edits


def _config(folder: Path, network: nn.Module) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no folder that pyvene saved: config.json is missing.")

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        representations = [
            values if isinstance(values, dict) else dict(zip(FIELDS, values, strict=True))
            for values in config["representations"]
        ]
        # A mapping may leave fields out.
        config["representations"] = [dict.fromkeys(FIELDS) | values for values in representations]
        for name in (
            "intervention_types",
            "intervention_dimensions",
            "intervention_constant_sources",
        ):
            if len(config[name]) != len(representations):
                raise ValueError(
                    f"{name} has {len(config[name])} entries for {len(representations)} "
                    "representations"
                )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not as pyvene 0.1 saves it: {error!r}.") from error

    # The class of the network, saved as its repr.
    network_class = re.sub(r".*\.|'>$", "", config.get("model_type") or "")
    if network_class and network_class != type(network).__name__:
        raise ValueError(
            f"{folder} was saved for {network_class}, the network is {type(network).__name__}."
        )
    if config.get("mode", "parallel") != "parallel" and len(representations) > 1:
        raise ValueError(
            f"{folder} was saved in the mode {config['mode']!r}: one source's edit changes the "
            "next source. Load its representations one by one and chain them with iit.capture."
        )
    return config


def _keys(representations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The names of pyvene's files, without `intkey_` and `.bin`."""
    counts: dict[str, int] = {}
    for r in representations:
        component = r["component"].replace(".", "_")
        unit = r["unit"].replace(".", "_")
        where = (
            f"comp_{component}" if "." in r["component"] else f"layer_{r['layer']}_comp_{component}"
        )
        key = f"{where}_unit_{unit}_nunit_{r['max_number_of_units']}"
        # Representations that are otherwise alike are numbered.
        yield f"{key}#{counts.setdefault(key, 0)}"
        counts[key] += 1


def _state(path: Path) -> dict[str, Any]:
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
    prefix: str,
    network: nn.Module,
    representation: Mapping[str, Any],
    kind: str,
    position: PyvenePosition,
    head: Index,
) -> tuple[Site, bool]:
    """The site of a representation, and whether its positions are edited as one vector.

    Raises ValueError for units, heads and positions that are not carried over.
    """
    component = representation["component"]
    unit = representation["unit"]
    n = int(representation["max_number_of_units"])
    if representation["moe_key"] is not None:
        raise ValueError(f"{prefix} is inside an expert (moe_key); that is not carried over.")
    by_head = component.startswith("head_")

    # A unit is a position ("pos"), a head ("h"), or a head at a position ("h.pos").
    if unit not in (("h", "h.pos") if by_head else ("pos",)):
        raise ValueError(
            f"{prefix} has the unit {unit!r}; carried over are 'pos', and 'h' and 'h.pos' for "
            "components by head."
        )
    if by_head != (head is not None):
        raise ValueError(
            f"{prefix} has the unit {unit!r} and {'needs' if by_head else 'has no'} heads; "
            f"heads: {head}."
        )
    if unit == "h" and position is not None:
        raise ValueError(
            f"{prefix} has the unit 'h', all positions: its position is None; got {position!r}."
        )

    # pyvene rotates all n positions of a representation as one vector.
    joint = kind in DISTRIBUTED and n > 1 and not by_head
    if (
        joint
        and not isinstance(position, str)
        and (position is None or isinstance(position, int) or len(position) != n)
    ):
        raise ValueError(
            f"{prefix} edits {n} positions as one vector; its position is a role or {n} indices, "
            f"not {position!r}."
        )
    return _named(prefix, network, representation, position, head), joint


def _named(
    prefix: str,
    network: nn.Module,
    representation: Mapping[str, Any],
    position: PyvenePosition,
    head: Index,
) -> Site:
    component = representation["component"]
    layer = representation["layer"]
    if "." in component:
        # "h[3].mlp.output" → "h.3.mlp" and "output"
        path, _, side = re.sub(r"\[(\d+)\]", r".\1", component).rpartition(".")
        if side not in ("input", "output"):
            raise ValueError(f"{prefix}: a module's path ends in .input or .output.")
        return Site(module=path, side=side, position=position)

    text_config: Any = getattr(network, "config", None)
    family = (
        text_config.get_text_config().model_type
        if hasattr(text_config, "get_text_config")
        else type(network).__name__
    )
    if family not in GPT + LLAMA:
        raise ValueError(
            f"{prefix}: pyvene's components of the family {family!r} are not carried over; those "
            f"of {GPT + LLAMA} are."
        )
    if component in PLAIN_COMPONENTS or component.removeprefix("head_") in HEAD_COMPONENTS:
        return Site(component.removeprefix("head_"), layer=layer, head=head, position=position)
    if component == "mlp_activation" and family in GPT:
        return Site(component, layer=layer, position=position)

    # In gated families pyvene reads it before the gate, at the activation function. Here the name
    # is for what comes after the gate.
    if component == "mlp_activation":
        blocks = blocks_of(network)[1]
        # The path of the list of blocks.
        root = next(name for name, module in network.named_modules() if module is blocks)
        return Site(module=f"{root}.{layer}.mlp.act_fn", side="output", position=position)
    raise ValueError(
        f"{prefix}: this component is not carried over; those that are: "
        f"{', '.join((*PLAIN_COMPONENTS, 'mlp_activation', *HEAD_COMPONENTS))}."
    )


def _unit_width(network: nn.Module, representation: Mapping[str, Any], site: Site) -> int | None:
    """The width of one unit: of one position, or of one head there.

    Returns None where only a run can tell.
    """
    # The activation function does not tell its width; the MLP's activation has the same.
    like = (
        Site("mlp_activation", layer=representation["layer"])
        if representation["component"] == "mlp_activation"
        else site
    )
    width = resolve(network, like).width
    # Several heads lie side by side in the site.
    return width if width is None or site.heads is None else width // len(site.heads)


def _subspaces(prefix: str, partition: Any, name: VariableNames) -> dict[str, list[int]] | None:
    """{name: columns of the rotation}; a pair of numbers is a range of columns.

    Raises ValueError for names that do not fit the partition.
    """
    if partition is None:
        if isinstance(name, tuple):
            raise ValueError(f"{prefix} has no subspace partition: it is one variable, not {name}.")
        return None
    if not isinstance(name, tuple) or len(name) != len(partition) or len(set(name)) != len(name):
        raise ValueError(
            f"{prefix} has {len(partition)} subspaces: give as many different names, "
            f"positions={{(name, …): position}}."
        )
    columns = [list(range(*part)) if len(part) == 2 else list(part) for part in partition]
    return dict(zip(name, columns, strict=True))
