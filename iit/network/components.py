"""The components of a transformer: the module, side and units of each in a given network."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from iit.batch import behind_bridge
from iit.network.dimensions import width
from iit.network.families import FAMILIES, Family

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


@dataclass(frozen=True)
class ComponentLocation:
    """Where one component is in one network.

    Arguments:
        module: the path of a module, from the network's root.
        side: "input" or "output" of that module, or the name of a torch function inside it. The
            component is then what the function returns.
        width: the number of units; None where it is the number of keys, which a run decides.
        units: which units of the last dimension belong to the component; None for all.
        heads: which heads belong to it, where the shape is [batch, head, query, key]; None for all.
        shape_from: the path of the block around the module, where the module sees (batch·tokens,
            width). Only the block then knows the batch's shape.
    """

    module: str
    side: str
    width: int | None
    units: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    shape_from: str | None = None


def blocks_of(network: nn.Module) -> tuple[Family, nn.ModuleList]:
    """The network's family, and its blocks in order.

    Raises ValueError for a network of an unknown family.
    """
    family, backbone = _family(network)
    blocks = backbone.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return family, blocks


def heads_of(network: nn.Module, component: str) -> int:
    """The number of heads of a component. Raises ValueError for a component without heads."""
    if component not in HEADED:
        raise ValueError(f"{component!r} has no heads; those that have: {', '.join(HEADED)}.")
    queries, keys, _ = _heads(transformer_in(network).config.get_text_config())
    return keys if component in ("key_output", "value_output") else queries


def locate(
    network: nn.Module, component: str, layer: int | None, head: tuple[int, ...] | None
) -> ComponentLocation:
    """Find a component in a network.

    Raises:
        ValueError: the family is not in the table; the network lacks the component; a layer or head
            is out of range; attention weights are asked for, and the attention is not eager.
    """
    family, backbone = _family(network)
    transformer = transformer_in(network)
    config = transformer.config.get_text_config()
    hidden = int(config.hidden_size)
    # A module's path from the root of whatever wraps the transformer.
    names = {id(module): name for name, module in network.named_modules()}
    if component == "embedding_output":
        embedding: Any = transformer.get_input_embeddings()
        if family.embedding is not None:
            embedding = backbone.get_submodule(family.embedding)
        return ComponentLocation(
            names[id(embedding)], "output", width(embedding, "output") or hidden
        )
    if component == "final_norm_output":
        norm = None if family.norm is None else _find(backbone, family.norm)
        if norm is None:
            raise ValueError(_lacks(network, component, "there is no norm after its last block"))
        return ComponentLocation(names[id(norm)], "output", hidden)
    blocks = blocks_of(network)[1]
    assert layer is not None
    if not 0 <= layer < len(blocks):
        raise ValueError(
            f"layer={layer} is out of range: this network has layers 0 to {len(blocks) - 1}."
        )
    root = names[id(blocks[layer])]
    # The component's name says the side.
    if component in ("block_input", "block_output"):
        return ComponentLocation(root, component.removeprefix("block_"), hidden)
    # With this option the norm's output is the residual stream, too: one edit would change both.
    post_normed = getattr(config, "apply_residual_connection_post_layernorm", False)
    if post_normed and component in ("attention_input", "mlp_input"):
        why = "its norm's output is the residual stream, too (post-layernorm residual)"
        raise ValueError(_lacks(network, component, why, layer))
    path, side = _PATHS[component](family)
    module = _find(blocks[layer], path)
    if module is None:
        why = f"block {layer} has {_WHY.get(component, f'no {path}')}"
        raise ValueError(_lacks(network, component, why, layer))
    path = f"{root}.{path}"
    if component in HEADED:
        n_heads = heads_of(network, component)
        for one in head or ():
            if not 0 <= one < n_heads:
                raise ValueError(
                    f"head={one} is out of range: {component!r} has heads 0 to {n_heads - 1} here."
                )
        if component == "attention_weight":
            if config._attn_implementation != "eager":
                raise ValueError(
                    "'attention_weight' exists under eager attention only; this network runs "
                    f"{config._attn_implementation!r}. Load it with attention='eager' (in "
                    "transformers: attn_implementation='eager')."
                )
            return ComponentLocation(path, side, None, heads=head)
        heads = tuple(range(n_heads)) if head is None else head
        units = _head_units(config, family, component, heads)
        # Heads that cover the module's width in order need no units.
        whole = units == tuple(range(width(module, side) or 0))
        return ComponentLocation(path, side, len(units), None if whole else units)
    # These components are as wide as the residual stream, unless module or config says otherwise.
    n_units = hidden
    if component in _CONFIGURED:
        n_units = width(module, side) or getattr(config, _CONFIGURED[component], None)
    # The modules of these components see all tokens of the batch in one dimension.
    flat_mlp = family.flat_mlp and component.startswith("mlp_")
    shape_from = root if flat_mlp or component == "router_output" else None
    return ComponentLocation(path, side, n_units, shape_from=shape_from)


# The path inside a block, and the side. The softmax inside attention and the router's first product
# have no module of their own.
_PATHS = {
    "attention_input": lambda f: (f.attention, "input"),
    "mlp_input": lambda f: (f.mlp, "input"),
    "attention_value_output": lambda f: (f.attention_out, "input"),
    "attention_output": lambda f: (f.attention_out, "output"),
    "mlp_output": lambda f: (f.mlp_out, "output"),
    "attention_write": lambda f: (f.attention_post or f.attention_out, "output"),
    "mlp_write": lambda f: (f.mlp_post or f.mlp_out, "output"),
    "mlp_activation": lambda f: (f.mlp_out if f.router is None else f"{f.mlp}.down_proj", "input"),
    "query_output": lambda f: (f.qkv[0], "output"),
    # `qkv` has three paths, or a single one for all of them.
    "key_output": lambda f: (f.qkv[len(f.qkv) // 3], "output"),
    "value_output": lambda f: (f.qkv[-1], "output"),
    "attention_weight": lambda f: (f.attention, "softmax"),
    "router_output": lambda f: (f.router or "router", "linear"),
}
# {component: what the config calls its width}
_CONFIGURED = {"mlp_activation": "intermediate_size", "router_output": "num_experts"}
# {component: why a network may lack it}
_WHY = {
    "mlp_activation": "experts, and no single down projection",
    "router_output": "no router: it is no mixture of experts",
}


def _lacks(network: nn.Module, component: str, why: str, layer: int = 0) -> str:
    """The message for a component that a network lacks, with those that it has."""
    family, blocks = blocks_of(network)
    lacking = {component}
    if family.norm is None:
        lacking.add("final_norm_output")
    for name, path in _PATHS.items():
        if _find(blocks[layer], path(family)[0]) is None:
            lacking.add(name)
    kind = transformer_in(network).config.get_text_config().model_type
    return (
        f"This network of the family {kind!r} has no {component!r}: {why}. It has: "
        f"{', '.join(name for name in COMPONENTS if name not in lacking)}."
    )


def _head_units(
    config: Any, family: Family, component: str, heads: tuple[int, ...]
) -> tuple[int, ...]:
    """The units of heads in the projection's layout, in the order that was asked for."""
    _, _, size = _heads(config)
    # In units of a head's width.
    starts = list(heads)
    if component != "attention_value_output" and len(family.qkv) == 1:
        part = ("query_output", "key_output", "value_output").index(component)
        starts = [_start_in_fused(config, family.fused_order, part, head) for head in heads]
    return tuple(start * size + i for start in starts for i in range(size))


def _start_in_fused(config: Any, fused_order: str, part: int, head: int) -> int:
    """Where a head starts in a fused projection, in units of a head's width.

    Arguments:
        part: 0 for queries, 1 for keys, 2 for values.
    """
    queries, keys, _ = _heads(config)
    is_contiguous = fused_order == "contiguous"
    if fused_order == "falcon":
        is_contiguous = config.multi_query and not config.new_decoder_architecture
    if is_contiguous:
        # All queries, then all keys, then all values.
        return (0, queries, queries + keys)[part] + head
    # Groups of queries, each with one key and one value behind it. By head ("per_head") a group has
    # a single query: q0 k0 v0 q1 k1 v1 …
    group = queries // keys
    if part == 0:
        return head // group * (group + 2) + head % group
    return head * (group + 2) + group + part - 1


def _heads(config: Any) -> tuple[int, int, int]:
    """(number of query heads, number of key-value heads, width of a head)."""
    queries = int(config.num_attention_heads)
    size = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    keys = getattr(config, "num_key_value_heads", None)
    if config.model_type == "falcon":
        # Falcon's config says it in three ways.
        keys = 1 if config.multi_query else None
        if config.new_decoder_architecture:
            keys = config.num_kv_heads
    return queries, int(keys or queries), int(size or config.hidden_size // queries)


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


def _family(network: nn.Module) -> tuple[Family, nn.Module]:
    transformer = transformer_in(network)
    # The config of a multimodal model has another one for its text.
    kind = transformer.config.get_text_config().model_type
    if kind not in FAMILIES:
        raise ValueError(
            f"Components are not known for the family {kind!r} (known: {', '.join(FAMILIES)}). "
            f"{_ELSEWHERE}"
        )
    family = FAMILIES[kind]
    if transformer is not network and behind_bridge(network) is transformer:
        # A bridge computes queries, keys and values apart, whatever the family.
        family = replace(family, qkv=tuple(f"{family.attention}.{name}" for name in "qkv"))
    backbone: Any = transformer.base_model
    # Multimodal models keep the language model inside their backbone.
    for inner in ("", "language_model", "text_model"):
        text = _find(backbone, inner)
        if text is not None and _find(text, family.blocks) is not None:
            return family, text
    raise ValueError(
        f"{type(network).__name__} has no blocks at {family.blocks!r}; it is not laid out as the "
        f"family {kind!r}."
    )


def _find(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
