"""Tokens without embedding and prompts without positions are named before the network runs."""

import pytest
import torch
import transformers as t

import iit
from iit.network import LanguageModel
from tests.families import SIZES, V, make, prompts
from tests.made_tokenizers import byte_level
from tests.network.test_wrapped import Wrapper

SHORT = SIZES | {"max_position_embeddings": 10, "pad_token_id": 1}


def never(network):
    """The network, which must not run."""

    def ran(*_):
        raise AssertionError("the network ran")

    network.register_forward_pre_hook(ran)
    return network


@pytest.mark.parametrize("token", [V, V + 7, -1])
def test_tokens_without_embedding(token):
    network, batch = never(make("gpt2")), prompts((5, 4))
    batch["input_ids"][1, 2] = token
    for run in (
        lambda: iit.capture(network, batch, iit.Site("block_output", layer=0)),
        lambda: iit.IntervenedModel(network, {})(batch),
        lambda: iit.IntervenedModel(network, {}).answer_logits(batch),
    ):
        with pytest.raises(
            ValueError,
            match=(
                rf"Prompt 1 has the token {token}; GPT2LMHeadModel has embeddings for 0 to "
                rf"{V - 1}"
            ),
        ):
            run()


def test_texts_of_another_networks_tokenizer():
    lm = LanguageModel(never(make("gpt2")), byte_level())
    assert len(lm.tokenizer) > V
    with pytest.raises(ValueError, match="Prompt 1 has the token"):
        lm.encode(["!", "When John left"])
    with pytest.raises(ValueError, match="Prompt 1 has the token"):
        lm.answers_right(["!", "When John left"], [",", ","])


def test_a_padding_token_without_embedding_pads_all_the_same():
    tokenizer = byte_level()
    network = t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)
    ).eval()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    lm = LanguageModel(network, tokenizer)
    batch = lm.encode(["to New York", "to"])
    assert batch["input_ids"][1].tolist() == [int(lm.encode("to")["input_ids"]), 0, 0]
    site = iit.Site("block_output", layer=0, position="last")
    alone = iit.capture(lm, lm.encode("to"), site)[site]
    torch.testing.assert_close(iit.capture(lm, batch, site)[site][1:], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("maker", "limit"),
    [
        (
            lambda: t.GPT2LMHeadModel(
                t.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=10)
            ),
            10,
        ),
        (lambda: t.OPTForCausalLM(t.OPTConfig(**SHORT, ffn_dim=24, word_embed_proj_dim=16)), 10),
        (
            lambda: t.GPTNeoForCausalLM(
                t.GPTNeoConfig(**SHORT, num_layers=2, attention_types=[[["global"], 2]])
            ),
            10,
        ),
        (
            lambda: t.GPTJForCausalLM(
                t.GPTJConfig(
                    vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=10, rotary_dim=2
                )
            ),
            10,
        ),
        (lambda: t.BertForMaskedLM(t.BertConfig(**SHORT)), 10),
        (
            lambda: t.DistilBertForMaskedLM(
                t.DistilBertConfig(
                    vocab_size=V, dim=16, n_layers=1, n_heads=2, max_position_embeddings=10
                )
            ),
            10,
        ),
        (lambda: t.RobertaForMaskedLM(t.RobertaConfig(**SHORT)), 8),
        (lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHORT)), None),
        (
            lambda: t.BloomForCausalLM(
                t.BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2)
            ),
            None,
        ),
        (
            lambda: t.FalconForCausalLM(
                t.FalconConfig(
                    **{k: v for k, v in SHORT.items() if k != "intermediate_size"}, alibi=True
                )
            ),
            None,
        ),
        (
            lambda: t.EsmForMaskedLM(
                t.EsmConfig(**SHORT, position_embedding_type="rotary", mask_token_id=3)
            ),
            None,
        ),
        (
            lambda: t.T5EncoderModel(
                t.T5Config(vocab_size=V, d_model=16, d_kv=6, num_layers=1, num_heads=4, d_ff=24)
            ),
            None,
        ),
    ],
)
def test_prompts_longer_than_the_positions(maker, limit):
    torch.manual_seed(0)
    network = maker().eval()
    fits = limit or 12
    iit.IntervenedModel(network, {})(prompts((3, fits)))
    network(**prompts((3, fits)))
    if limit is not None:
        with pytest.raises((IndexError, RuntimeError)):
            network(**prompts((3, fits + 1)))
        with pytest.raises(
            ValueError,
            match=(
                rf"Prompt 1 is {fits + 1} tokens long, its answer included; "
                rf"{type(network).__name__} has {limit} positions"
            ),
        ):
            iit.IntervenedModel(never(network), {})(prompts((3, fits + 1)))


def test_an_answer_counts_among_the_positions():
    network = t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=10)
    ).eval()
    edited = iit.IntervenedModel(network, {})
    edited.answer_logits({**prompts((9, 8)), "answer": torch.tensor([[7, 6], [8, 9]])})
    with pytest.raises(ValueError, match="Prompt 0 is 11 tokens long, its answer included"):
        edited.answer_logits({**prompts((10, 8)), "answer": torch.tensor([[7, 6], [8, 9]])})


class Plain(torch.nn.Module):
    """A wrapper of one's own."""

    def __init__(self, model):
        super().__init__()
        self.lm = model

    def forward(self, input_ids, attention_mask, **kwargs):
        return self.lm(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


@pytest.mark.parametrize("wrap", [Plain, Wrapper, lambda network: Plain(Wrapper(network))])
def test_limits_inside_a_wrapper(wrap):
    network = t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=10)
    ).eval()
    edited = iit.IntervenedModel(wrap(network), {})
    edited(prompts((3, 10)))
    with pytest.raises(
        ValueError, match=r"Prompt 1 is 11 tokens long.* GPT2LMHeadModel has 10 positions"
    ):
        edited(prompts((3, 11)))
    batch = prompts((5, 4))
    batch["input_ids"][1, 2] = V
    with pytest.raises(ValueError, match=f"Prompt 1 has the token {V}"):
        edited(batch)


def bart():
    layers = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = t.BartConfig(
        vocab_size=V,
        d_model=16,
        max_position_embeddings=10,
        pad_token_id=0,
        forced_eos_token_id=None,
        **layers,
    )
    return t.BartForConditionalGeneration(config).eval()


def narrow_decoder():
    """Its decoder knows fewer tokens, and has fewer positions, than its encoder."""
    sides = [
        t.BertConfig(
            **SIZES | {"vocab_size": n, "max_position_embeddings": limit},
            is_decoder=n < V,
            add_cross_attention=n < V,
        )
        for n, limit in ((V, 20), (V - 20, 10))
    ]
    return t.EncoderDecoderModel(
        config=t.EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
    ).eval()


@pytest.mark.parametrize("wrap", [lambda network: network, Plain])
@pytest.mark.parametrize(
    ("maker", "decoder", "n_known"),
    [(bart, "BartDecoder", V), (narrow_decoder, "BertLMHeadModel", V - 20)],
)
def test_a_decoders_own_limits(maker, decoder, n_known, wrap):
    torch.manual_seed(0)
    edited = iit.IntervenedModel(wrap(maker()), {})
    batch = prompts((5, 5))

    def decoding(n):
        return batch | {
            "decoder_input_ids": torch.full((2, n), 3),
            "decoder_attention_mask": torch.ones(2, n, dtype=torch.long),
        }

    edited(decoding(10))
    with pytest.raises(
        ValueError,
        match=f"Prompt 0 is 11 tokens long, its answer included; {decoder} has 10 positions",
    ):
        edited(decoding(11))
    edited.answer_logits(decoding(9) | {"answer": torch.tensor([[7, 6]] * 2)})
    with pytest.raises(
        ValueError,
        match=f"Prompt 0 is 11 tokens long, its answer included; {decoder} has 10 positions",
    ):
        edited.answer_logits(decoding(10) | {"answer": torch.tensor([[7, 6]] * 2)})
    wrong = decoding(4)
    wrong["decoder_input_ids"][1, 2] = n_known
    with pytest.raises(
        ValueError,
        match=f"Prompt 1 has the token {n_known}; {decoder} has embeddings for 0 to {n_known - 1}",
    ):
        edited(wrong)


def test_positions_that_grow_have_no_limit():
    layers = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 1), ("attention_heads", 2))
    }
    config = t.M2M100Config(
        vocab_size=V,
        d_model=16,
        max_position_embeddings=10,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        **layers,
    )
    torch.manual_seed(0)
    network = t.M2M100ForConditionalGeneration(config).eval()
    batch = prompts((12, 12)) | {"decoder_input_ids": torch.full((2, 12), 3)}
    with torch.no_grad():
        expected = network(**batch).logits
    torch.testing.assert_close(iit.IntervenedModel(network, {})(batch).logits, expected)
