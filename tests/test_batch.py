"""Repadding: what follows the tokens and what does not."""

import pytest
import torch
import transformers as t
from torch import nn

import iit
from iit import Site
from iit.network.inputs import prepare
from tests.families import SIZES, V, make, prompts
from tests.seeds import shifted

SITE = Site("block_output", layer=0)


def left(batch):
    shifts = batch["input_ids"].shape[1] - batch["attention_mask"].sum(1)
    return {
        name: torch.stack([row.roll(int(n)) for row, n in zip(rows, shifts, strict=True)])
        for name, rows in batch.items()
    }


def unedited(network):
    return iit.IntervenedModel(network, {SITE: iit.NoiseIntervention(0.0)})


def t5():
    torch.manual_seed(shifted(0))
    config = t.T5Config(
        vocab_size=V,
        d_model=16,
        d_kv=6,
        num_layers=1,
        num_heads=4,
        d_ff=24,
        decoder_start_token_id=0,
    )
    return t.T5ForConditionalGeneration(config).eval().requires_grad_(False)


def test_as_many_classes_as_tokens_are_classes():
    torch.manual_seed(shifted(0))
    network = (
        t.BertForSequenceClassification(t.BertConfig(**SIZES, num_labels=7))
        .eval()
        .requires_grad_(False)
    )
    batch, edited = prompts((7, 5)), unedited(network)
    torch.testing.assert_close(edited(left(batch)).logits, network(**batch).logits)


def test_span_logits_have_tokens():
    torch.manual_seed(shifted(0))
    network = t.BertForQuestionAnswering(t.BertConfig(**SIZES)).eval().requires_grad_(False)
    batch, edited = prompts((7, 5)), unedited(network)
    found, expected = edited(left(batch)).start_logits[1, 2:], network(**batch).start_logits[1, :5]
    torch.testing.assert_close(found, expected)


def test_as_many_heads_as_tokens_stay_heads():
    network, batch = make("llama", attention="eager"), prompts((4, 2))
    found = unedited(network)({**left(batch), "output_attentions": True}).attentions[0]
    expected = network(**batch, output_attentions=True).attentions[0]
    torch.testing.assert_close(found[1, :, 2:, 2:], expected[1, :, :2, :2])


def test_tokens_or_classes_of_a_bare_tensor():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(V, 7)

        def forward(self, input_ids, attention_mask=None):
            return self.embed(input_ids).mean(1)

    edited = iit.IntervenedModel(Bare(), {Site(module="embed"): iit.NoiseIntervention(0.0)})
    assert edited(prompts((7, 5))).shape == (2, 7)
    with pytest.raises(ValueError, match="one entry a token, or a class"):
        edited(left(prompts((7, 5))))


def test_an_input_that_may_not_follow_the_tokens():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(V, 4)

        def forward(self, input_ids, other, attention_mask=None):
            return self.embed(input_ids).sum((1, 2)) + other.sum(1)

    edited = iit.IntervenedModel(Two(), {Site(module="embed"): iit.NoiseIntervention(0.0)})
    batch = {**prompts((7, 5)), "other": torch.randn(2, 7)}
    edited(batch)
    with pytest.raises(ValueError, match="'other' is shaped as the tokens are"):
        edited({**left(batch), "other": batch["other"]})


def test_encoder_decoders_are_not_repadded():
    network, batch = t5(), {**prompts((7, 5)), "decoder_input_ids": torch.randint(4, V, (2, 7))}
    edited = unedited(network)
    torch.testing.assert_close(edited(batch).logits, network(**batch).logits)
    with pytest.raises(ValueError, match="padded on the right"):
        edited({**left(prompts((7, 5))), "decoder_input_ids": batch["decoder_input_ids"]})
    with pytest.raises(ValueError, match="in its decoder's tokens"):
        edited.answer_logits(prompts((7, 5)))


@pytest.mark.parametrize(
    "network",
    [
        nn.GRU(3, 4),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 1, enable_nested_tensor=False),
    ],
)
def test_the_batch_of_a_sequence_first_network_is_its_second_dimension(network):
    width = 3 if isinstance(network, nn.GRU) else 4
    assert prepare(network, torch.zeros(5, 2, width)).size == 2
    assert prepare(nn.Linear(width, 1), torch.zeros(5, 2, width)).size == 5
