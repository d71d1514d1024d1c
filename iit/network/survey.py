"""The components of a transformer, layer by layer: as a table lists them, or found by structure.

What is found by structure is checked by small runs before it is used. A check changes one place at
one token, and sees which tokens and heads move. A place that fails is refused by name.
"""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from iit.network.dimensions import running_device, width
from iit.network.families import FAMILIES, Family
from iit.network.location import (
    OF_ATTENTION,
    OF_MLP,
    PROJECTED,
    Block,
    ComponentLocation,
    Places,
    module_at,
)
from iit.network.probe import Probe
from iit.network.structure import N_TOKENS, Structure, evaluating, structure_of, tensor_key
from iit.progress import progress


@dataclass
class Survey:
    """The components of a network, and why it lacks others.

    Arguments:
        blocks: the list of blocks.
        places: {layer: places}; the layer is None for the embedding and the last norm.
        n_results: the number of items in the tuple that a block returns; 0 where it is a tensor.
        is_causal: whether all blocks have attention in which no position sees a later one.
        is_listed: whether the table of families has them; else they were found by structure.
    """

    blocks: nn.ModuleList
    places: dict[int | None, Places] = field(default_factory=dict)
    n_results: int = 0
    is_causal: bool = True
    is_listed: bool = True


_surveys: WeakKeyDictionary[nn.Module, tuple[Any, Survey | str]] = WeakKeyDictionary()


def survey(transformer: Any) -> Survey:
    """A transformer's components; they are found and checked once, as long as its modules stay.

    Without weights, where nothing has a value, nothing is checked.

    Raises ValueError where a few tokens do not run, or no list of blocks hands one tensor on.
    """
    config = transformer.config
    modules = hash(tuple((name, type(part)) for name, part in transformer.named_modules()))
    state = (modules, config._attn_implementation, running_device(transformer))
    kept = _surveys.get(transformer)
    if kept is None or kept[0] != state:
        # The config of a multimodal model has another one for its text.
        family = FAMILIES.get(config.get_text_config().model_type)
        # A class of one's own may have another layout than the family whose config it takes.
        if not type(transformer).__module__.startswith("transformers."):
            family = None
        try:
            if family is not None:
                result = _listed(transformer, family)
            else:
                result = surveyed(transformer, structure_of(transformer))
        except ValueError as error:
            result = str(error)
        kept = _surveys[transformer] = (state, result)
    if isinstance(kept[1], str):
        raise ValueError(kept[1])
    return kept[1]


def _listed(transformer: Any, family: Family) -> Survey:
    config = transformer.config.get_text_config()
    backbone: Any = None
    # Multimodal models keep the language model inside their backbone.
    for inner in ("text_model", "language_model", ""):
        part = module_at(transformer.base_model, inner)
        if part is not None and module_at(part, family.blocks) is not None:
            backbone = part
    if backbone is None:
        raise ValueError(
            f"it has no blocks at {family.blocks!r}, and is not laid out as the family "
            f"{config.model_type!r}"
        )
    embedding: Any = transformer.get_input_embeddings()
    if family.embedding is not None:
        embedding = backbone.get_submodule(family.embedding)
    norm = None if family.norm is None else module_at(backbone, family.norm)
    names = {id(module): name for name, module in transformer.named_modules()}
    blocks = backbone.get_submodule(family.blocks)
    result = Survey(blocks, n_results=2 * family.tuple_blocks, is_causal=family.causal)
    embedding, norm = names[id(embedding)], names.get(id(norm))
    result.places[None] = _once(transformer, embedding, norm, config.hidden_size)
    # With this option the norm's output is the residual stream, too: one edit would change both.
    post_normed = getattr(config, "apply_residual_connection_post_layernorm", False)
    for layer, module in enumerate(blocks):
        parts = family.parts(module, config)
        places = Block(names[id(module)], module, parts, config, config.hidden_size).places()
        if post_normed:
            for component in ("attention_input", "mlp_input"):
                places[component] = (
                    "has a norm whose output is the residual stream, too (post-layernorm residual)"
                )
        result.places[layer] = places
    return result


def _once(transformer: Any, embedding: str | None, norm: str | None, hidden: int) -> Places:
    """The places without a layer."""
    places: Places = {
        "embedding_output": "has a token embedding that does not run once in a forward",
        "final_norm_output": "has no norm after its last block",
    }
    if embedding is not None:
        n_units = width(transformer.get_submodule(embedding), "output")
        places["embedding_output"] = ComponentLocation(embedding, "output", n_units or hidden)
    if norm is not None:
        places["final_norm_output"] = ComponentLocation(norm, "output", hidden)
    return places


def surveyed(transformer: Any, structure: Structure) -> Survey:
    """Check what a structure says of a transformer.

    Raises ValueError where the blocks do not hand one tensor on.
    """
    _check_chain(structure)
    stream, output = structure.calls[0].before, structure.calls[0].result
    assert stream is not None
    hidden = stream.shape[-1]
    result = Survey(transformer.get_submodule(structure.blocks), is_listed=False)
    result.n_results = 0 if isinstance(output, Tensor) else len(output)
    result.places[None] = _once(transformer, structure.embedding, structure.norm, hidden)
    # Half precision and quantised projections round their inputs.
    is_packed = getattr(transformer.config, "quantization_config", None) is not None
    tolerance = 5e-2 if is_packed or stream.dtype != torch.float32 else 1e-3
    # Of a token that nothing reaches, half precision changes nothing.
    leak = 5e-2 if is_packed else 1e-3
    with evaluating(transformer):
        calls = progress(structure.calls, "Surveying blocks")
        for layer, (call, parts) in enumerate(zip(calls, structure.parts, strict=True)):
            root = f"{structure.blocks}.{layer}"
            block = Block(root, call.module, parts, transformer.config, hidden)
            if running_device(transformer) is None:
                result.places[layer] = block.places()
                continue
            places, is_causal = _checked(block, Probe(root, call, tolerance, leak))
            result.places[layer] = places
            result.is_causal = result.is_causal and is_causal
    return result


def _check_chain(structure: Structure) -> None:
    """Raises ValueError unless each block receives what the one before it gives."""
    before: Tensor | None = None
    for layer, call in enumerate(structure.calls):
        path = f"{structure.blocks}.{layer}"
        for tensor in (call.before, call.after):
            if tensor is None or tensor.ndim != 3 or tensor.shape[:2] != (1, N_TOKENS):
                shape = None if tensor is None else tuple(tensor.shape)
                raise ValueError(
                    f"{path} has no residual stream of [batch, position, width], but {shape}"
                )
        if layer and tensor_key(call.before) != tensor_key(before):
            raise ValueError(f"{path} does not receive what the block before it gives")
        before = call.after


def _checked(block: Block, probe: Probe) -> tuple[Places, bool]:
    """The places that pass their checks, and whether the attention is causal."""
    places = block.places()
    reason = None
    try:
        (again,) = probe.run([ComponentLocation(block.root, "output", block.hidden)])
        if float((again - probe.after).abs().max()) > 1e-4 * float(probe.after.abs().max()):
            reason = "cannot be checked: it gives something else when it runs again"
    except Exception as error:  # whatever a network raises
        reason = f"cannot be checked: alone it raises {type(error).__name__}"
    if reason is not None:
        return places | dict.fromkeys((*OF_ATTENTION, *OF_MLP), reason), False
    # A fused projection has one of two orders: the one that passes.
    best, is_causal = places, False
    for order in ("contiguous", "grouped"):
        block.parts = replace(block.parts, fused_order=order)
        places = block.places()
        order_is_causal = _check(probe, places)
        if order == "contiguous" or _n_places(places) > _n_places(best):
            best, is_causal = places, order_is_causal
        if len(block.parts.qkv) != 1:
            break
    _find_writes(block, probe, best)
    # Only queries and keys show which units are a head: values may be in any order all the way.
    if isinstance(best["query_output"], str) and isinstance(best["key_output"], str):
        for name in ("value_output", "attention_value_output"):
            place = best[name]
            if isinstance(place, ComponentLocation):
                best[name] = replace(place, n_heads=None)
    # What its input does not move is the output of another sublayer.
    for entry, components in (("attention_input", OF_ATTENTION), ("mlp_input", OF_MLP)):
        reason = best[entry]
        if isinstance(reason, str):
            for component in components:
                if not isinstance(best[component], str):
                    best[component] = f"is not known: {entry} {reason}"
    if not block.parts.is_direct and not isinstance(best["attention_input"], str):
        best["attention_input"] = "is not what its projections receive: a norm may come between"
    return best, is_causal


def _n_places(places: Places) -> int:
    return sum(isinstance(place, ComponentLocation) for place in places.values())


def _find_writes(block: Block, probe: Probe, places: Places) -> None:
    """Of what the parts give, that which sums up to what the block adds to the stream."""
    writes = block.parts.writes
    paths = sorted({path for paths in writes.values() for path in paths})
    outputs = dict(zip(paths, probe.run([block.place(path) for path in paths]), strict=True))
    added = probe.after - probe.before
    largest = 0.1 * probe.tolerance * float(added.abs().max())
    for name in places.keys() & writes.keys():
        places[name] = "adds something else to the residual stream than what its parts give"
    for chosen in product(*writes.values()):
        tensors = [outputs[path] for path in chosen]
        if not tensors or any(tensor.shape != added.shape for tensor in tensors):
            continue
        # The stream may be far larger than what is added to it. It rounds in its own dtype.
        size = sum(map(torch.abs, tensors), probe.before.abs())
        if ((sum(tensors) - added).abs() <= largest + 4 * probe.epsilon * size).all():
            for name, path in zip(writes, chosen, strict=True):
                if name in places:
                    places[name] = block.place(path)
            return


# What a change of each component has to move.
_MOVES = {
    "query_output": "attention_value_output",
    "key_output": "attention_value_output",
    "value_output": "attention_value_output",
    "attention_weight": "attention_value_output",
    "attention_input": "attention_output",
    "attention_value_output": "attention_output",
    "mlp_input": "mlp_output",
    "mlp_activation": "mlp_output",
    "router_output": "mlp_output",
    "attention_output": "block_output",
    "mlp_output": "block_output",
}
# Those that move no other token, and those whose effect is linear.
_OWN_TOKEN = (
    "query_output",
    "attention_weight",
    "attention_value_output",
    "mlp_input",
    "mlp_activation",
    "router_output",
    "attention_output",
    "mlp_output",
)
_LINEAR = ("value_output", "attention_value_output", "mlp_activation", "attention_weight")


def _check(probe: Probe, places: Places) -> bool:
    """Put a reason in the place of each component that fails; whether attention is causal."""
    is_causal = False
    # From the outputs inwards: a place is judged by one that has passed.
    for component in reversed(tuple(_MOVES)):
        place, moved = places[component], places[_MOVES[component]]
        if isinstance(place, str):
            continue
        if isinstance(moved, str):
            places[component] = f"cannot be checked without {_MOVES[component]}, which {moved}"
            if moved.startswith("cannot"):
                places[component] = moved
            continue
        try:
            reason, no_earlier = _reason_against(component, place, moved, probe)
        except KeyError:
            reason, no_earlier = "does not run when its block runs", False
        except Exception as error:  # whatever a network raises
            reason, no_earlier = f"raises {type(error).__name__} when it is changed", False
        if component == "key_output":
            is_causal = no_earlier and reason is None
        if reason is not None:
            places[component] = reason
    return is_causal


def _reason_against(
    component: str, place: ComponentLocation, moved: ComponentLocation, probe: Probe
) -> tuple[str | None, bool]:
    """Why a place is not the component, or None; and whether no earlier token moves."""
    n_tokens = len(probe.before)
    if component == "attention_weight" and probe.run([place])[0].numel() != (
        n_tokens**2 * (place.n_heads or 1)
    ):
        return "gives other weights than one for each head, query and key", False
    response = probe.response(place, moved)
    by_token = response.moved.any(1)
    no_earlier = not bool(by_token[: probe.token].any())
    by_token[probe.token] = False
    moves_others = bool(by_token.any())
    reason = None
    if not response.moved.any():
        reason = "moves nothing when it is changed"
    elif component in _OWN_TOKEN and moves_others:
        reason = "moves other tokens when it is changed at one"
    elif component in ("key_output", "value_output") and not moves_others:
        reason = "moves no other token when it is changed at one"
    elif component in _LINEAR and not response.is_linear:
        reason = f"moves {_MOVES[component]}, but not linearly"
    elif component == "key_output" and response.is_linear:
        reason = f"moves {_MOVES[component]} linearly, as values do"
    elif component in PROJECTED:
        reason = _mixed_head(component, place, moved, probe)
    return reason, no_earlier


def _mixed_head(
    component: str, place: ComponentLocation, moved: ComponentLocation, probe: Probe
) -> str | None:
    """Whether the first, middle or last head moves other heads; None where none does.

    A head of keys or values belongs to a group of queries' heads.
    """
    assert place.n_heads is not None
    assert moved.n_heads is not None
    group = moved.n_heads // place.n_heads
    for head in {0, place.n_heads // 2, place.n_heads - 1}:
        change = probe.change(place, moved, 0.1, head).abs()
        by_head = change.reshape(len(change), moved.n_heads, -1).amax((0, 2))
        related = by_head[head * group : (head + 1) * group].max()
        by_head[head * group : (head + 1) * group] = 0
        # A norm over all queries or keys lets a small change of one head move the others less.
        if component == "value_output":
            related = probe.tolerance * related
        if by_head.max() > related:
            return f"moves other heads when its head {head} is changed"
    return None
