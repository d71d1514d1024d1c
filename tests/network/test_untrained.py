"""The same architecture, other weights."""

import pytest
import torch
from torch import nn

from iit.network import Classifier, equality_by_hand, fingerprint, mlp, untrained


def test_a_classifier_is_drawn_anew_and_the_given_one_stays():
    network = equality_by_hand()
    before = fingerprint(network.model)
    state = torch.get_rng_state()
    fresh = untrained(network, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(network.model) == before
    assert all(bool(layer[0].weight.std() > 0.01) for layer in fresh.model.layers)
    assert not any(p.requires_grad for p in fresh.model.parameters())
    again, other = untrained(network, seed=1), untrained(network, seed=2)
    assert fingerprint(again.model) == fingerprint(fresh.model) != fingerprint(other.model)
    assert fresh.name == "equality_by_hand, untrained"


def test_a_language_model_is_made_from_its_config(smollm2):
    fresh = untrained(smollm2)
    ours, theirs = dict(fresh.model.named_parameters()), dict(smollm2.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in ours)
    projection = "model.layers.3.self_attn.q_proj.weight"
    assert not torch.allclose(ours[projection], theirs[projection])
    assert float(ours[projection].detach().std()) == pytest.approx(
        smollm2.model.config.initializer_range, rel=0.1
    )
    assert fresh.tokenizer is smollm2.tokenizer
    assert not fresh.model.training


def test_a_language_model_may_keep_its_embedding_and_its_head(narrow):
    fresh = untrained(narrow, seed=7, keep_ends=True)
    ours, theirs = fresh.model, narrow.model
    assert torch.equal(ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    assert ours.lm_head.weight.data_ptr() != theirs.lm_head.weight.data_ptr()
    assert not torch.allclose(
        ours.model.layers[0].mlp.up_proj.weight, theirs.model.layers[0].mlp.up_proj.weight
    )
    with pytest.raises(ValueError, match=r"keep_ends.*no input_embeddings to keep"):
        untrained(mlp(4, 2), keep_ends=True)


def test_what_cannot_be_drawn_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x * self.scale

    with pytest.raises(ValueError, match=r"Odd.*reset_parameters"):
        untrained(Classifier(Odd()))
    assert untrained(mlp(4, 2)).model(torch.ones(1, 4)).shape == (1, 2)
