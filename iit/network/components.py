"""The components of a transformer: the module, side and units of each in a given network."""

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from iit.batch import behind_bridge
from iit.network.location import ComponentLocation
from iit.network.survey import Survey, survey

COMPONENTS = {
    "embedding_output": "output of the token embedding, before position embeddings are added",
    "block_input": "the residual stream before a block",
    "block_output": "the residual stream after a block",
    "attention_input": "what the attention sublayer receives, after its norm",
    "mlp_input": "what the MLP sublayer receives, after its norm",
    "attention_value_output": (
        "concatenated heads before the output projection; with `head=` one head"
    ),
    "attention_output": (
        "output of attention's output projection, before any post-norm and before the "
        "residual is added"
    ),
    "mlp_output": (
        "output of the MLP's output projection, before any post-norm and before the "
        "residual is added"
    ),
    "attention_write": "what attention adds to the residual stream",
    "mlp_write": "what the MLP adds to the residual stream",
    "mlp_activation": "input of the MLP's down projection",
    "query_output": (
        "the query projection, before q-norm and rotary embedding; with `head=` one head"
    ),
    "key_output": (
        "the key projection, before k-norm and rotary embedding; with `head=` one key-value head"
    ),
    "value_output": "the value projection; with `head=` one key-value head",
    "attention_weight": (
        "attention's probabilities: positions are queries, width is heads·keys, or keys with "
        "`head=`; eager only"
    ),
    "router_output": "a mixture's router logits, from which its experts are chosen",
    "final_norm_output": "output of the norm after the last block",
}
"""Every component, and what it means."""

# Components that are there once, and those that have one part for each head.
UNLAYERED = ("embedding_output", "final_norm_output")
HEADED = (
    "attention_value_output",
    "query_output",
    "key_output",
    "value_output",
    "attention_weight",
)


def blocks_of(network: nn.Module) -> Survey:
    """What is known of a network's blocks.

    Raises ValueError for a network in which none are found.
    """
    transformer = transformer_in(network)
    try:
        return survey(transformer)
    except ValueError as error:
        raise ValueError(
            f"No components are known in {type(transformer).__name__}: {error}. {_ELSEWHERE}"
        ) from error


def heads_of(network: nn.Module, component: str, layer: int) -> int:
    """The number of heads of a component in one layer.

    Raises ValueError for a component that the layer lacks.
    """
    if component == "attention_weight":
        # Attention that is not eager has as many heads, though its weights are not to be seen.
        component = "attention_value_output"
    return locate(network, component, layer, None).n_heads or 0


def locate(
    network: nn.Module, component: str, layer: int | None, head: tuple[int, ...] | None
) -> ComponentLocation:
    """Find a component in a network.

    Raises:
        ValueError: the network lacks the component, or has it where it fails its check; a layer or
            head is out of range; attention weights are asked for, and the attention is not eager.
    """
    transformer = transformer_in(network)
    known = blocks_of(network)
    n_layers = len(known.blocks)
    if layer is not None and not 0 <= layer < n_layers:
        raise ValueError(
            f"layer={layer} is out of range: this network has layers 0 to {n_layers - 1}."
        )
    names = {id(module): name for name, module in network.named_modules()}

    def path_of(path: str) -> str:
        """The path from the network's root; places count from the transformer inside it."""
        name = names.get(id(transformer.get_submodule(path)))
        if name is None:
            around, _, last = path.rpartition(".")
            return f"{path_of(around)}.{last}"
        return name

    place = known.places[layer][component]
    if isinstance(place, str):
        path, where = "…", "it"
        if layer is not None:
            path, where = f"{names[id(known.blocks[layer])]}.…", f"block {layer}"
        has = {**known.places[None], **known.places[layer]}.items()
        kind = transformer.config.get_text_config().model_type
        raise ValueError(
            f"This network of the family {kind!r} has no {component!r}: {where} {place}. It has: "
            f"{', '.join(name for name, other in has if not isinstance(other, str))}. Or name a "
            f'module: Site(module="{path}", side="output").'
        )
    around = None if place.shape_from is None else path_of(place.shape_from)
    place = replace(place, module=path_of(place.module), shape_from=around)
    if head is None:
        return place
    if place.n_heads is None:
        raise ValueError(
            f"The heads of {component!r} are not known in block {layer}: neither its queries nor "
            "its keys have passed their checks. Leave `head` out, or name a module."
        )
    for one in head:
        if not 0 <= one < place.n_heads:
            raise ValueError(
                f"head={one} is out of range: {component!r} has heads 0 to {place.n_heads - 1} "
                "here."
            )
    if place.width is None:
        return replace(place, heads=head)
    size, units = place.width // place.n_heads, place.units or range(place.width)
    chosen = tuple(unit for one in head for unit in units[one * size : (one + 1) * size])
    return replace(place, units=chosen, width=len(chosen))


_ELSEWHERE = 'Name a module instead: Site(module="…", side="output").'


def transformer_in(network: nn.Module) -> Any:
    """The transformers model that a network is, or wraps (a PeftModel, a module of one's own).

    Raises ValueError unless there is exactly one outermost model.
    """
    network = behind_bridge(network)
    if isinstance(network, PreTrainedModel):
        return network
    inside = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    # A model may hold parts that are transformers models, too: the first one has to hold all
    # others.
    if not inside or not set(inside) <= set(inside[0].modules()):
        what = "holds several transformers models" if inside else "is no transformers model"
        raise ValueError(
            f"{type(network).__name__} {what}: components are known for one. {_ELSEWHERE}"
        )
    return inside[0]
