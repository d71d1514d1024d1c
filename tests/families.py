"""Tiny random networks of every supported family: two blocks, four heads where grouping allows, a
vocabulary of 60.
"""

import torch
import transformers as t

from tests.seeds import shifted

V = 60
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, **TOKENS}
FALCON = {k: v for k, v in SIZES.items() if k != "intermediate_size"} | {"ffn_hidden_size": 24}

MAKERS = {
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT)),
    "gpt_neo": lambda: t.GPTNeoForCausalLM(
        t.GPTNeoConfig(
            vocab_size=V,
            hidden_size=16,
            num_layers=2,
            num_heads=4,
            intermediate_size=24,
            attention_types=[[["global", "local"], 1]],
            window_size=3,
            max_position_embeddings=64,
            **TOKENS,
        )
    ),
    "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**SIZES)),
    "gptj": lambda: t.GPTJForCausalLM(t.GPTJConfig(**GPT, rotary_dim=2)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=2)),
    "mistral": lambda: t.MistralForCausalLM(
        t.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)
    ),
    "mixtral": lambda: t.MixtralForCausalLM(
        t.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3)
    ),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, num_key_value_heads=2)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=6)),
    "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(
            **SIZES,
            num_key_value_heads=2,
            head_dim=6,
            num_experts=3,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            norm_topk_prob=True,
        )
    ),
    "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=6)),
    "gemma2": lambda: t.Gemma2ForCausalLM(
        t.Gemma2Config(
            **SIZES, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=6, sliding_window=4
        )
    ),
    "gemma3": lambda: t.Gemma3ForCausalLM(
        t.Gemma3TextConfig(
            **SIZES, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=6, sliding_window=4
        )
    ),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**SIZES, num_key_value_heads=2)),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**SIZES, num_key_value_heads=2)),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(
            vocab_size=V,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=24,
            word_embed_proj_dim=16,
            max_position_embeddings=64,
            **TOKENS,
        )
    ),
    "bloom": lambda: t.BloomForCausalLM(
        t.BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=4, **TOKENS)
    ),
    "falcon": lambda: t.FalconForCausalLM(
        t.FalconConfig(**FALCON, multi_query=True, new_decoder_architecture=False)
    ),
    "falcon_new": lambda: t.FalconForCausalLM(
        t.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True)
    ),
    "falcon_old": lambda: t.FalconForCausalLM(
        t.FalconConfig(
            **FALCON,
            multi_query=False,
            new_decoder_architecture=False,
            alibi=True,
            parallel_attn=False,
        )
    ),
    "bert": lambda: t.BertForMaskedLM(t.BertConfig(**SIZES)),
    "esm": lambda: t.EsmForMaskedLM(
        t.EsmConfig(
            **SIZES, mask_token_id=3, position_embedding_type="rotary", emb_layer_norm_before=False
        )
    ),
    "t5": lambda: t.T5EncoderModel(
        t.T5Config(
            vocab_size=V,
            d_model=16,
            d_kv=6,
            num_layers=2,
            num_heads=4,
            d_ff=24,
            pad_token_id=0,
            eos_token_id=2,
        )
    ),
}
DECODERS = [name for name in MAKERS if name not in ("bert", "esm", "t5")]


def make(family, seed=0, attention=None):
    """A frozen network in eval mode whose weights are large enough for every edit to show."""
    torch.manual_seed(shifted(seed))
    network = MAKERS[family]().eval().requires_grad_(False)
    if attention is not None:
        network = (
            type(network)
            ._from_config(network.config, attn_implementation=attention)
            .eval()
            .requires_grad_(False)
        )
    torch.manual_seed(shifted(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def prompts(lengths=(7, 5), seed=1):
    """Right-padded token ids and their mask."""
    generator = torch.Generator().manual_seed(shifted(seed))
    ids = torch.randint(4, V, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
