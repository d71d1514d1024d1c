"""Where components are, written out by hand for each family: (module path, side, columns or None)
with {i} for the layer.

Written from the modeling files, independently of the product's table; edits are made with raw
hooks.
"""

from contextlib import contextmanager

import torch


def _llama(keys=2, size=4, post=False):
    attention = "model.layers.{i}.self_attn"
    return {
        "block_input": ("model.layers.{i}", "input", None),
        "block_output": ("model.layers.{i}", "output", None),
        "attention_input": (attention, "input", None),
        "mlp_input": ("model.layers.{i}.mlp", "input", None),
        "attention_value_output": (f"{attention}.o_proj", "input", None),
        "attention_output": (f"{attention}.o_proj", "output", None),
        "mlp_output": ("model.layers.{i}.mlp.down_proj", "output", None),
        "attention_write": (
            "model.layers.{i}.post_attention_layernorm" if post else f"{attention}.o_proj",
            "output",
            None,
        ),
        "mlp_write": (
            "model.layers.{i}.post_feedforward_layernorm"
            if post
            else "model.layers.{i}.mlp.down_proj",
            "output",
            None,
        ),
        "mlp_activation": ("model.layers.{i}.mlp.down_proj", "input", None),
        "query_output": (f"{attention}.q_proj", "output", None),
        "key_output": (f"{attention}.k_proj", "output", None),
        "value_output": (f"{attention}.v_proj", "output", None),
        "embedding_output": ("model.embed_tokens", "output", None),
        "final_norm_output": ("model.norm", "output", None),
        "heads": {"size": size, "keys": keys},
    }


def _gpt(
    prefix,
    attention,
    out,
    mlp_out,
    fused=None,
    names=None,
    norm="ln_f",
    embedding="wte",
    post_attention=None,
    size=4,
):
    block = prefix + ".{i}"
    attention, mlp = f"{block}.{attention}", f"{block}.mlp"
    root = prefix.rpartition(".")[0]
    qkv = {}
    for part, role in enumerate(("query_output", "key_output", "value_output")):
        if names is not None:
            qkv[role] = (f"{attention}.{names[part]}", "output", None)
        else:
            path, layout = fused
            columns = {
                "contiguous": [part * 16 + c for c in range(16)],
                "per_head": [h * 12 + part * 4 + c for h in range(4) for c in range(4)],
                "multi_query": list(range(16))
                if part == 0
                else [12 + 4 * part + c for c in range(4)],
                # two groups, each of two queries, a key and a value
                "grouped": [
                    g * 16 + q * 4 + c for g in range(2) for q in range(2) for c in range(4)
                ]
                if part == 0
                else [g * 16 + (1 + part) * 4 + c for g in range(2) for c in range(4)],
            }[layout]
            qkv[role] = (f"{attention}.{path}", "output", columns)
    keys = {"multi_query": 1, "grouped": 2}.get(fused[1] if fused else "", 4)
    return {
        "block_input": (block, "input", None),
        "block_output": (block, "output", None),
        "attention_input": (attention, "input", None),
        "mlp_input": (mlp, "input", None),
        "attention_value_output": (f"{attention}.{out}", "input", None),
        "attention_output": (f"{attention}.{out}", "output", None),
        "mlp_output": (f"{mlp}.{mlp_out}", "output", None),
        "attention_write": (f"{attention}.{out}", "output", None),
        "mlp_write": (f"{mlp}.{mlp_out}", "output", None),
        "mlp_activation": (f"{mlp}.{mlp_out}", "input", None),
        **qkv,
        "embedding_output": (f"{root}.{embedding}", "output", None),
        "final_norm_output": (f"{root}.{norm}", "output", None),
        "heads": {"size": size, "keys": keys},
    }


def _encoder(prefix, norm):
    block = prefix + ".encoder.layer.{i}"
    found = {
        "block_input": (block, "input", None),
        "block_output": (block, "output", None),
        "attention_input": (f"{block}.attention.self", "input", None),
        "mlp_input": (f"{block}.intermediate", "input", None),
        "attention_value_output": (f"{block}.attention.output.dense", "input", None),
        "attention_output": (f"{block}.attention.output.dense", "output", None),
        "mlp_output": (f"{block}.output.dense", "output", None),
        "attention_write": (f"{block}.attention.output.dense", "output", None),
        "mlp_write": (f"{block}.output.dense", "output", None),
        "mlp_activation": (f"{block}.output.dense", "input", None),
        "query_output": (f"{block}.attention.self.query", "output", None),
        "key_output": (f"{block}.attention.self.key", "output", None),
        "value_output": (f"{block}.attention.self.value", "output", None),
        "embedding_output": (f"{prefix}.embeddings.word_embeddings", "output", None),
        "heads": {"size": 4, "keys": 4},
    }
    if norm:
        found["final_norm_output"] = (f"{prefix}.encoder.emb_layer_norm_after", "output", None)
    return found


def _phi3():
    found = _llama()
    for role, start, n in (("query_output", 0, 16), ("key_output", 16, 8), ("value_output", 24, 8)):
        found[role] = (
            "model.layers.{i}.self_attn.qkv_proj",
            "output",
            list(range(start, start + n)),
        )
    return found


def _mixture(size=4):
    found = _llama(size=size) | dict.fromkeys(
        ("mlp_output", "mlp_write"), ("model.layers.{i}.mlp", "output", None)
    )
    del found["mlp_activation"]
    return found


def _opt():
    block = "model.decoder.layers.{i}"
    return {
        "block_input": (block, "input", None),
        "block_output": (block, "output", None),
        "attention_input": (f"{block}.self_attn", "input", None),
        "mlp_input": (f"{block}.fc1", "input", None),
        "attention_value_output": (f"{block}.self_attn.out_proj", "input", None),
        "attention_output": (f"{block}.self_attn.out_proj", "output", None),
        "mlp_output": (f"{block}.fc2", "output", None),
        "attention_write": (f"{block}.self_attn.out_proj", "output", None),
        "mlp_write": (f"{block}.fc2", "output", None),
        "mlp_activation": (f"{block}.fc2", "input", None),
        "query_output": (f"{block}.self_attn.q_proj", "output", None),
        "key_output": (f"{block}.self_attn.k_proj", "output", None),
        "value_output": (f"{block}.self_attn.v_proj", "output", None),
        "embedding_output": ("model.decoder.embed_tokens", "output", None),
        "final_norm_output": ("model.decoder.final_layer_norm", "output", None),
        "heads": {"size": 4, "keys": 4},
    }


def _t5():
    block = "encoder.block.{i}"
    attention, mlp = f"{block}.layer.0.SelfAttention", f"{block}.layer.1.DenseReluDense"
    return {
        "block_input": (block, "input", None),
        "block_output": (block, "output", None),
        "attention_input": (attention, "input", None),
        "mlp_input": (mlp, "input", None),
        "attention_value_output": (f"{attention}.o", "input", None),
        "attention_output": (f"{attention}.o", "output", None),
        "mlp_output": (f"{mlp}.wo", "output", None),
        "attention_write": (f"{attention}.o", "output", None),
        "mlp_write": (f"{mlp}.wo", "output", None),
        "mlp_activation": (f"{mlp}.wo", "input", None),
        "query_output": (f"{attention}.q", "output", None),
        "key_output": (f"{attention}.k", "output", None),
        "value_output": (f"{attention}.v", "output", None),
        "embedding_output": ("encoder.embed_tokens", "output", None),
        "final_norm_output": ("encoder.final_layer_norm", "output", None),
        "heads": {"size": 6, "keys": 4},
    }


_QKV = ("q_proj", "k_proj", "v_proj")
_EMBED = "word_embeddings"


def _falcon(layout):
    return _gpt(
        "transformer.h",
        "self_attention",
        "dense",
        "dense_4h_to_h",
        ("query_key_value", layout),
        embedding=_EMBED,
    )


ORACLES = {
    "gpt2": _gpt("transformer.h", "attn", "c_proj", "c_proj", ("c_attn", "contiguous")),
    "gpt_neo": _gpt("transformer.h", "attn.attention", "out_proj", "c_proj", names=_QKV),
    "gpt_neox": _gpt(
        "gpt_neox.layers",
        "attention",
        "dense",
        "dense_4h_to_h",
        ("query_key_value", "per_head"),
        norm="final_layer_norm",
        embedding="embed_in",
    ),
    "gptj": _gpt("transformer.h", "attn", "out_proj", "fc_out", names=_QKV),
    "llama": _llama(),
    "mistral": _llama(),
    "mixtral": _mixture(),
    "qwen2": _llama(),
    "qwen3": _llama(size=6),
    "qwen3_moe": _mixture(size=6),
    "gemma": _llama(keys=1, size=6),
    "gemma2": _llama(size=6, post=True),
    "gemma3": _llama(size=6, post=True),
    "olmo2": _llama(post=True),
    "phi3": _phi3(),
    "opt": _opt(),
    "bloom": _falcon("per_head"),
    "falcon": _falcon("multi_query"),
    "falcon_new": _falcon("grouped"),
    "falcon_old": _falcon("per_head"),
    "bert": _encoder("bert", norm=False),
    "esm": _encoder("esm", norm=True),
    "t5": _t5(),
}


def head_columns(family, component, head):
    """The columns of one head, from the columns of the whole component."""
    size = ORACLES[family]["heads"]["size"]
    columns = ORACLES[family][component][2]
    within = range(head * size, (head + 1) * size)
    return list(within) if columns is None else [columns[c] for c in within]


def raw_hook(network, family, component, layer, columns, function):
    """Attach a raw hook on the literal module path that applies `function` to the activation's
    columns.
    """
    path, side, _ = ORACLES[family][component]
    module = network.get_submodule(path.format(i=layer))

    def apply(tensor):
        flat = tensor.ndim == 2
        wide = tensor.unflatten(0, (2, -1)) if flat else tensor
        index = torch.arange(wide.shape[-1]) if columns is None else torch.tensor(columns)
        new = wide.clone()
        new[..., index] = function(wide[..., index])
        return new.flatten(0, 1) if flat else new

    if side == "output":
        return module.register_forward_hook(
            lambda m, args, out: (apply(out[0]), *out[1:]) if isinstance(out, tuple) else apply(out)
        )

    def before(m, args, kwargs):
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": apply(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def router_hook(network, layer, function):
    """Apply `function` to a mixture's router logits, Tensor[batch, position, expert], and choose
    the experts anew.
    """

    def choose(router, args, output):
        logits = function(output[0].unflatten(0, (2, -1))).flatten(0, 1)
        scores, chosen = logits.softmax(-1).topk(router.top_k, -1)
        return logits, scores / scores.sum(-1, keepdim=True), chosen

    return network.get_submodule(f"model.layers.{layer}.mlp.gate").register_forward_hook(choose)


@contextmanager
def edited_attention(layer, head, function):
    """Apply `function` to one head's weights, Tensor[batch, query, key]: a forward's n-th softmax
    of four axes is layer n's.
    """
    softmax, calls = torch.nn.functional.softmax, []

    def replaced(*args, **kwargs):
        weights = softmax(*args, **kwargs)
        if weights.ndim != 4:
            return weights
        calls.append(weights)
        if len(calls) - 1 != layer:
            return weights
        new = weights.clone()
        new[:, head] = function(weights[:, head])
        return new

    torch.nn.functional.softmax = replaced
    try:
        yield
    finally:
        torch.nn.functional.softmax = softmax
