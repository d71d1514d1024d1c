"""Where the parts of a transformer are: one table, a few module paths for each family."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from iit.network.location import BlockParts, module_at


@dataclass(frozen=True)
class Family:
    """Module paths of a family of transformers.

    Arguments:
        blocks, norm: the list of blocks, and the norm behind the last one. Their paths are inside
            the backbone (the transformer without its head); all other paths are inside a block.
        attention, mlp: modules that receive the normed residual stream.
        attention_out, mlp_out: output projections.
        qkv: the query, key and value projections, or one module that is all three. Their paths are
            inside `attention`.
        fused_order: how a projection that is all three orders its units. contiguous: all queries,
            then all keys, then all values. grouped: each group of queries with its key and value
            behind it. falcon: as the network's config says.
        attention_post, mlp_post: norms between a sublayer and the residual stream.
        router: chooses the experts of a mixture. `mlp_out` is then the whole mixture.
        embedding: the token embedding inside the backbone, where `get_input_embeddings` gives
            another one than the one that runs.
        tuple_blocks: whether blocks return tuples.
        causal: whether no position sees a later one.
    """

    blocks: str
    norm: str | None
    attention: str
    attention_out: str
    mlp: str
    mlp_out: str
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    fused_order: str = "contiguous"
    attention_post: str | None = None
    mlp_post: str | None = None
    router: str | None = None
    embedding: str | None = None
    tuple_blocks: bool = False
    causal: bool = True

    def parts(self, block: nn.Module, config: Any) -> BlockParts:
        """The parts of one block; a mixture may have blocks without experts."""
        # A bridge of TransformerLens computes queries, keys and values apart, whatever the family.
        is_bridged = "_original_component" in block.get_submodule(self.attention)._modules
        names = ("q", "k", "v") if is_bridged else self.qkv
        router, mlp_out = self.router, self.mlp_out
        if router is not None and module_at(block, router) is None:
            router, mlp_out = None, f"{self.mlp}.down_proj"
        order = self.fused_order
        if order == "falcon":
            is_old = config.multi_query and not config.new_decoder_architecture
            order = "contiguous" if is_old else "grouped"
        return BlockParts(
            attention=self.attention,
            qkv=tuple(f"{self.attention}.{name}" for name in names),
            attention_out=self.attention_out,
            mlp_input=self.mlp,
            mlp_out=mlp_out,
            router=router,
            is_mixture=router is not None,
            writes={
                "attention_write": (self.attention_post or self.attention_out,),
                "mlp_write": (self.mlp_post or mlp_out,),
            },
            fused_order=order,
        )


_LLAMA = Family(
    blocks="layers",
    norm="norm",
    attention="self_attn",
    attention_out="self_attn.o_proj",
    mlp="mlp",
    mlp_out="mlp.down_proj",
)
_POST_NORMED = replace(
    _LLAMA, attention_post="post_attention_layernorm", mlp_post="post_feedforward_layernorm"
)
_MIXTURE = replace(_LLAMA, mlp_out="mlp", router="mlp.gate")
_GPT2 = Family(
    blocks="h",
    norm="ln_f",
    attention="attn",
    qkv=("c_attn",),
    attention_out="attn.c_proj",
    mlp="mlp",
    mlp_out="mlp.c_proj",
)
_BLOOM = Family(
    blocks="h",
    norm="ln_f",
    attention="self_attention",
    qkv=("query_key_value",),
    attention_out="self_attention.dense",
    mlp="mlp",
    mlp_out="mlp.dense_4h_to_h",
    fused_order="grouped",
    tuple_blocks=True,
)
_BERT = Family(
    blocks="encoder.layer",
    norm=None,
    attention="attention.self",
    qkv=("query", "key", "value"),
    attention_out="attention.output.dense",
    # Its MLP is no module of its own: it begins at `intermediate` and ends at `output.dense`.
    mlp="intermediate",
    mlp_out="output.dense",
    causal=False,
)

FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "gpt_neo": replace(
        _GPT2,
        attention="attn.attention",
        qkv=_LLAMA.qkv,
        attention_out="attn.attention.out_proj",
        tuple_blocks=True,
    ),
    "gptj": replace(
        _GPT2,
        qkv=_LLAMA.qkv,
        attention_out="attn.out_proj",
        mlp_out="mlp.fc_out",
        tuple_blocks=True,
    ),
    "gpt_neox": Family(
        blocks="layers",
        norm="final_layer_norm",
        attention="attention",
        qkv=("query_key_value",),
        attention_out="attention.dense",
        mlp="mlp",
        mlp_out="mlp.dense_4h_to_h",
        fused_order="grouped",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTURE,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _MIXTURE,
    "gemma": _LLAMA,
    "gemma2": _POST_NORMED,
    "gemma3_text": _POST_NORMED,
    "olmo2": _POST_NORMED,
    "phi3": replace(_LLAMA, qkv=("qkv_proj",)),
    "opt": Family(
        blocks="decoder.layers",
        norm="decoder.final_layer_norm",
        attention="self_attn",
        attention_out="self_attn.out_proj",
        # Its MLP is no module of its own: it begins at `fc1` and ends at `fc2`.
        mlp="fc1",
        mlp_out="fc2",
    ),
    "bloom": _BLOOM,
    "falcon": replace(_BLOOM, fused_order="falcon"),
    "bert": _BERT,
    "esm": replace(_BERT, norm="encoder.emb_layer_norm_after"),
    # The parts of its encoder; its decoder has no components.
    "t5": Family(
        blocks="encoder.block",
        norm="encoder.final_layer_norm",
        attention="layer.0.SelfAttention",
        qkv=("q", "k", "v"),
        attention_out="layer.0.SelfAttention.o",
        mlp="layer.1.DenseReluDense",
        mlp_out="layer.1.DenseReluDense.wo",
        embedding="encoder.embed_tokens",
        causal=False,
    ),
}
"""transformers' `model_type` → where the parts are."""
