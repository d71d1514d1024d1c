"""Where each component of a transformer is: one table, a line of module paths for each family."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

COMPONENTS = {
    "embedding_output": "output of the token embedding, before position embeddings are added",
    "block_input": "the residual stream before a block",
    "block_output": "the residual stream after a block",
    "attention_input": "what the attention sublayer receives, after its norm",
    "mlp_input": "what the MLP sublayer receives, after its norm",
    "attention_value_output": "concatenated heads before the output projection; with `head=` one head",
    "attention_output": "output of attention's output projection, before any post-norm and before the residual is added",
    "mlp_output": "output of the MLP's output projection, before any post-norm and before the residual is added",
    "attention_write": "what attention adds to the residual stream",
    "mlp_write": "what the MLP adds to the residual stream",
    "mlp_activation": "input of the MLP's down projection",
    "query_output": "the query projection, before q-norm and rotary embedding; with `head=` one head",
    "key_output": "the key projection, before k-norm and rotary embedding; with `head=` one key-value head",
    "value_output": "the value projection; with `head=` one key-value head",
    "final_norm_output": "output of the norm after the last block",
}
"""Every component and what it means."""

UNLAYERED = ("embedding_output", "final_norm_output")
HEADED = ("attention_value_output", "query_output", "key_output", "value_output")


@dataclass(frozen=True)
class Family:
    """Module paths: `blocks` and `norm` inside the backbone, the others inside a block.

    attention, mlp: modules that receive the normed residual stream. attention_out, mlp_out: output projections.
    mlp_down: the down projection, where that is not `mlp_out` (None: there is no single one).
    query, key, value: the projections; equal paths are one fused projection in the given `layout`.
    layout: contiguous (all queries, all keys, all values), per_head (query, key, value of each head in turn) or falcon (whose
        config tells).
    attention_post, mlp_post: norms between sublayer and residual stream.
    embedding: the token embedding inside the backbone, where the network's own answer is not the one that runs.
    flat_mlp: whether the MLP's modules see (batch·tokens, width).
    tuple_blocks: whether blocks return tuples. causal: whether no position sees a later one.
    """

    blocks: str
    norm: str | None
    attention: str
    query: str
    key: str
    value: str
    attention_out: str
    mlp: str
    mlp_out: str
    mlp_down: str | None = "mlp_out"
    layout: str = "contiguous"
    attention_post: str | None = None
    mlp_post: str | None = None
    embedding: str | None = None
    flat_mlp: bool = False
    tuple_blocks: bool = False
    causal: bool = True


def _separate(prefix: str, names: tuple[str, str, str]) -> dict[str, str]:
    return {role: f"{prefix}.{name}" for role, name in zip(("query", "key", "value"), names, strict=True)}


def _fused(path: str) -> dict[str, str]:
    return dict.fromkeys(("query", "key", "value"), path)


_QKV = ("q_proj", "k_proj", "v_proj")
_LLAMA = Family(
    "layers",
    "norm",
    "self_attn",
    **_separate("self_attn", _QKV),
    attention_out="self_attn.o_proj",
    mlp="mlp",
    mlp_out="mlp.down_proj",
)
_POST = replace(_LLAMA, attention_post="post_attention_layernorm", mlp_post="post_feedforward_layernorm")
_BERT = Family(
    "encoder.layer",
    None,
    "attention.self",
    **_separate("attention.self", ("query", "key", "value")),
    attention_out="attention.output.dense",
    mlp="intermediate",
    mlp_out="output.dense",
    causal=False,
)
_BLOOM = Family(
    "h",
    "ln_f",
    "self_attention",
    **_fused("self_attention.query_key_value"),
    attention_out="self_attention.dense",
    mlp="mlp",
    mlp_out="mlp.dense_4h_to_h",
    layout="per_head",
    tuple_blocks=True,
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family("h", "ln_f", "attn", **_fused("attn.c_attn"), attention_out="attn.c_proj", mlp="mlp", mlp_out="mlp.c_proj"),
    "gpt_neo": Family(
        "h",
        "ln_f",
        "attn.attention",
        **_separate("attn.attention", _QKV),
        attention_out="attn.attention.out_proj",
        mlp="mlp",
        mlp_out="mlp.c_proj",
        tuple_blocks=True,
    ),
    "gpt_neox": Family(
        "layers",
        "final_layer_norm",
        "attention",
        **_fused("attention.query_key_value"),
        attention_out="attention.dense",
        mlp="mlp",
        mlp_out="mlp.dense_4h_to_h",
        layout="per_head",
    ),
    "gptj": Family(
        "h",
        "ln_f",
        "attn",
        **_separate("attn", _QKV),
        attention_out="attn.out_proj",
        mlp="mlp",
        mlp_out="mlp.fc_out",
        tuple_blocks=True,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": replace(_LLAMA, mlp_out="mlp", mlp_down=None),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _POST,
    "gemma3_text": _POST,
    "olmo2": _POST,
    "phi3": replace(_LLAMA, **_fused("self_attn.qkv_proj")),
    "opt": Family(
        "decoder.layers",
        "decoder.final_layer_norm",
        "self_attn",
        **_separate("self_attn", _QKV),
        attention_out="self_attn.out_proj",
        mlp="fc1",
        mlp_out="fc2",
        flat_mlp=True,
    ),
    "bloom": _BLOOM,
    "falcon": replace(_BLOOM, layout="falcon"),
    "bert": _BERT,
    "esm": replace(_BERT, norm="encoder.emb_layer_norm_after"),
    "t5": Family(
        "encoder.block",
        "encoder.final_layer_norm",
        "layer.0.SelfAttention",
        **_separate("layer.0.SelfAttention", ("q", "k", "v")),
        attention_out="layer.0.SelfAttention.o",
        mlp="layer.1.DenseReluDense",
        mlp_out="layer.1.DenseReluDense.wo",
        embedding="encoder.embed_tokens",
        causal=False,
    ),
}
"""transformers' `model_type` → where things are."""


@dataclass(frozen=True)
class Place:
    """One component in one network.

    module: path from the network's root. side: input | output of that module.
    columns: of the last dimension, None = all. width: how many.
    flat: path of the block that knows the batch's shape, where the module itself sees (batch·tokens, width).
    """

    module: str
    side: str
    columns: tuple[int, ...] | None
    width: int
    flat: str | None = None


def blocks_of(network: nn.Module) -> tuple[Family, nn.ModuleList]:
    """The family and its blocks. Raises ValueError for a network of no known family."""
    family, backbone = _family(network)
    return family, _module(backbone, family.blocks)


def locate(network: nn.Module, component: str, layer: int | None, head: tuple[int, ...] | None) -> Place:
    """Find a component.

    Raises ValueError for a family that is not in the table or lacks the component, and a layer or head out of range.
    """
    family, backbone = _family(network)
    config = network.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    hidden = int(config.hidden_size)
    names = {id(module): name for name, module in network.named_modules()}
    if component == "embedding_output":
        embedding = network.get_input_embeddings() if family.embedding is None else _module(backbone, family.embedding)  # pyright: ignore
        return Place(names[id(embedding)], "output", None, int(embedding.weight.shape[1]))  # pyright: ignore
    if component == "final_norm_output":
        if family.norm is None:
            raise ValueError(f"The family {config.model_type!r} has no norm after its last block, so no 'final_norm_output'.")
        return Place(names[id(_module(backbone, family.norm))], "output", None, hidden)
    blocks = _module(backbone, family.blocks)
    assert layer is not None
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer={layer} is out of range: this network has layers 0 to {len(blocks) - 1}.")
    block = blocks[layer]
    root = names[id(block)]
    if component in ("block_input", "block_output"):
        return Place(root, component.removeprefix("block_"), None, hidden)
    if component == "mlp_activation" and family.mlp_down is None:
        raise ValueError(f"The family {config.model_type!r} has no single down projection, so no 'mlp_activation'.")
    down = family.mlp_out
    paths = {
        "attention_input": (family.attention, "input"),
        "mlp_input": (family.mlp, "input"),
        "attention_value_output": (family.attention_out, "input"),
        "attention_output": (family.attention_out, "output"),
        "mlp_output": (family.mlp_out, "output"),
        "attention_write": (family.attention_post or family.attention_out, "output"),
        "mlp_write": (family.mlp_post or family.mlp_out, "output"),
        "mlp_activation": (down, "input"),
        "query_output": (family.query, "output"),
        "key_output": (family.key, "output"),
        "value_output": (family.value, "output"),
    }
    path, side = paths[component]
    if component in HEADED:
        columns = _head_columns(config, family, component, head)
        whole = columns == tuple(range(_width(_module(block, path), side)))
        return Place(f"{root}.{path}", side, None if whole else columns, len(columns))
    width = _width(_module(block, path), side) if component == "mlp_activation" else hidden
    return Place(f"{root}.{path}", side, None, width, root if family.flat_mlp and component.startswith("mlp_") else None)


def _head_columns(config: Any, family: Family, component: str, head: tuple[int, ...] | None) -> tuple[int, ...]:
    """Columns of the heads, in the order they were asked for, in the projection's layout."""
    queries, keys, size = _heads(config)
    n = keys if component in ("key_output", "value_output") else queries
    wanted = tuple(range(n)) if head is None else head
    wrong = [h for h in wanted if not 0 <= h < n]
    if wrong:
        kind = "key-value heads" if n != queries else "heads"
        raise ValueError(f"head={wrong[0]} is out of range: {component!r} has {kind} 0 to {n - 1} here.")
    start = _start_of_head(config, family, component, queries, keys, size)
    return tuple(start(h) + i for h in wanted for i in range(size))


def _start_of_head(config: Any, family: Family, component: str, queries: int, keys: int, size: int) -> Callable[[int], int]:
    part = {"query_output": 0, "key_output": 1, "value_output": 2}.get(component)
    if part is None or family.query != family.key:
        return lambda h: h * size
    layout = family.layout
    if layout == "falcon":
        grouped = config.new_decoder_architecture
        layout = "grouped" if grouped else "contiguous" if config.multi_query else "per_head"
    if layout == "per_head":
        return lambda h: (3 * h + part) * size
    if layout == "grouped":
        group = queries // keys  # each group: its queries, then one key and one value
        if part == 0:
            return lambda h: (h // group * (group + 2) + h % group) * size
        return lambda h: (h * (group + 2) + group + part - 1) * size
    return lambda h: ((0, queries, queries + keys)[part] + h) * size


def _heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads, width of a head."""
    queries = int(config.num_attention_heads)
    size = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or config.hidden_size // queries
    if config.model_type == "falcon":
        keys = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else queries
    else:
        keys = getattr(config, "num_key_value_heads", None) or queries
    return queries, int(keys), int(size)


def _family(network: nn.Module) -> tuple[Family, nn.Module]:
    config = getattr(network, "config", None)
    if not hasattr(config, "get_text_config"):
        raise ValueError(
            f"{type(network).__name__} is no transformers model: components are known for these only. Name a module instead: "
            'Site(module="…", side="output").'
        )
    kind = config.get_text_config().model_type  # pyright: ignore[reportOptionalMemberAccess]
    if kind not in FAMILIES:
        raise ValueError(
            f"Components are not known for the family {kind!r} (known: {', '.join(FAMILIES)}). Name a module instead: "
            'Site(module="…", side="output").'
        )
    family = FAMILIES[kind]
    backbone = network.base_model
    for inner in ("", "language_model", "text_model"):
        found = _find(backbone, inner)
        if found is not None and _find(found, family.blocks) is not None:
            return family, found
    raise ValueError(f"{type(network).__name__} has no blocks at {family.blocks!r}; it is not laid out as the family {kind!r}.")


def _find(module: Any, path: str) -> Any:
    try:
        return _module(module, path)
    except AttributeError:
        return None


def _module(module: Any, path: str) -> Any:
    return module.get_submodule(path)


def _width(module: nn.Module, side: str) -> int:
    """Width of a projection's input or output; transformers' Conv1D stores its weight transposed."""
    rows, cols = module.weight.shape  # pyright: ignore[reportGeneralTypeIssues, reportAttributeAccessIssue]
    if type(module).__name__ == "Conv1D":
        rows, cols = cols, rows
    return int(cols if side == "input" else rows)
