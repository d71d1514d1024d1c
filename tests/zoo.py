"""Tiny random networks of every language model class of transformers, made by one rule."""

import re

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

# {name of an option: its small value}. A value below 8 is an upper bound.
SMALL = {
    r"(num_hidden_layers|num_layers|n_layers?|num_blocks|(en|de)coder_layers"
    r"|num_(en|de)coder_layers)": 4,
    r"(hidden_size|d_model|n_embd|emb_dim|word_embed_proj_dim|embedding_dim|attention_hidden_size"
    r"|lru_width|input_embedding_size)": 32,
    r"((swa_)?num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads"
    r"|num_(en|de)coder_attention_heads|attention_heads)": 4,
    r"(swa_|global_)?head_dim|attention_head_dim|dim_head|kv_channels": 16,
    r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|n_inner|d_inner|dff|dim_ff"
    r"|feed_forward_size": 48,
    r".*vocab_size(_per_layer_input)?": 96,
    r"hidden_size_per_layer_input": 8,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|.*_positions"
    r"|context_length": 64,
    r"num_experts|n_routed_experts|num_local_experts|moe_num_experts": 4,
    r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts": 2,
    r"n_group|num_expert_group": 2,
    r"topk_group|n_groups|mamba_n_?groups|num_kv_shared_layers": 1,
    r"kv_lora_rank": 16,
    r"q_lora_rank": 24,
    r"qk_rope_head_dim|qk_nope_head_dim": 8,
    r"qk_head_dim": 16,
    r"v_head_dim": 12,
    r"mamba_d_state|state_size|ssm_state_size": 8,
    r"mamba_n_heads|mamba_num_heads|n_mamba_heads": 4,
    r"mamba_d_head|mamba_head_dim|mamba_headdim": 16,
    r"mamba_chunk_size|chunk_size|attention_chunk_size": 8,
    r"mamba_d_ssm": 64,
    r"time_step_rank|mamba_dt_rank|rotary_dim|laurel_rank": 4,
    r"linear_num_key_heads|index_n_heads": 2,
    r"linear_num_value_heads|linear_num_heads": 4,
    r"linear_key_head_dim|linear_value_head_dim|linear_head_dim": 8,
    r"sliding_window(_size)?|attention_window_size|window_size|local_attention(_window_len)?": 4,
    r"index_head_dim": 16,
    r"index_topk": 4,
    r"(attn|expert)_layer_period": 2,
    r"(attn|expert)_layer_offset": 1,
}
KEY_HEADS = re.compile(
    r"(swa_|global_)?num_key_value_heads|num_kv_heads|num_query_groups|num_global_key_value_heads"
)

# What the rule cannot know: options of single families.
OPTIONS = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "xmod": {"default_language": "en_XX"},
}

# Families of transformers 5.23 that the rule does not build, and why.
NOT_BUILT = {
    "blenderbot": "its decoder has fewer layers than the cache asks for",
    "blt": "tables of hashes with 500,002 rows a group, whatever the vocabulary",
    "cohere_compass_text": "its default layer types and its attention masks disagree",
    "dbrx": "its default attention has no rotary frequencies",
    "deepseek_v4": "its compressed attention keeps its large default widths",
    "dots1": "its number of experts has no default",
    "dots3_note": "its per-layer options name layers beyond the fourth",
    "dots3_note_text": "its per-layer options keep their large widths",
    "gemma3n": "its vision tower needs the package timm",
    "gemma3n_text": "its embeddings for each layer keep their large vocabulary",
    "gemma4_assistant": "it drafts for another network, whose widths it takes",
    "gemma4_unified_assistant": "it drafts for another network, whose widths it takes",
    "hunyuan_v1_moe": "its number of chosen experts is a list",
    "kimi_linear": "its default has no attention layer among the first four",
    "longcat_flash": "its rotary width is not the one that its options say",
    "musicgen": "its configuration needs three other ones",
    "musicgen_melody": "its configuration needs three other ones",
    "phi4_multimodal": "its audio tower keeps its large width",
    "qwen4_exp": "its linear attention has no default widths",
    "qwen4_exp_text": "its linear attention has no default widths",
    "reformer": "its axial position embeddings have a fixed width",
    "xlstm": "its kernels want other chunk sizes than its options give",
    "zamba": "its tied weights name layers beyond the fourth",
    "zamba2": "its layer types are fixed to 54 layers",
}
KINDS = {
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "encoder_decoder": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def make(family, kind="causal", *, attention="eager"):
    """A network of this family in eval mode: four layers, width 32, vocabulary 96.

    Its weights are large enough for every edit to show.
    """
    name = KINDS[kind][family]
    network_class = getattr(transformers, name if isinstance(name, str) else name[0])
    config_class = CONFIG_MAPPING[family]
    config = config_class(**_options(config_class()))
    if network_class.config_class is not config_class:
        config = config.get_text_config()
    with torch.device("meta"):
        shapes = network_class._from_config(config).parameters()
        n_weights = sum(weight.numel() for weight in shapes)
    assert n_weights < 3e6, f"{family} was not shrunk: {n_weights:,} weights"
    torch.manual_seed(0)
    network = network_class._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    return network.eval().requires_grad_(False)


def _options(config):
    """Small values for the options of a configuration, and for those of the ones inside it."""
    options, values = {}, config.to_dict()
    for key, value in values.items():
        inner = getattr(config, key, None) if key.endswith("config") else None
        if hasattr(inner, "to_dict"):
            options[key] = {**_options(inner), "model_type": inner.model_type}
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif KEY_HEADS.fullmatch(key):
            # Fewer keys than queries stay fewer.
            options[key] = 4 if value == values.get("num_attention_heads") else 2
        elif re.fullmatch(r".*_token_id|.*_index", key):
            options[key] = value if value < 96 else 3
        else:
            for pattern, small in SMALL.items():
                if value > 0 and re.fullmatch(pattern, key):
                    options[key] = min(value, small) if small < 8 else small
                    break
    if "qk_rope_head_dim" in options:
        # With latent keys and values this is the width of the rotary part.
        options.pop("head_dim", None)
    return {**options, **OPTIONS.get(config.model_type, {})}
