import pytest
import torch

import iit
from iit import Site
from tests.families import make, prompts


def gradients(site, checkpointed, reentrant=True):
    network = make("llama").requires_grad_(True)
    if checkpointed:
        network.config.use_cache = False
        network.activation_checkpointing_enable({"use_reentrant": reentrant})
        network.train()
    edited = iit.IntervenedModel(network, {site: iit.AdditionIntervention(torch.arange(16.0))})
    edited(prompts()).logits.square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_a_checkpointed_block_is_refused(reentrant):
    for component in ("mlp_output", "attention_value_output", "query_output"):
        with pytest.raises(ValueError, match="inside a gradient-checkpointed LlamaDecoderLayer"):
            gradients(Site(component, layer=0), checkpointed=True, reentrant=reentrant)


@pytest.mark.parametrize("component", ["block_input", "block_output"])
def test_at_a_checkpointed_block_gradients_are_right(component):
    site = Site(component, layer=0)
    torch.testing.assert_close(gradients(site, checkpointed=True), gradients(site, checkpointed=False))


def test_without_gradients_nothing_is_run_again():
    network = make("llama")
    network.activation_checkpointing_enable()
    network.config.use_cache = False
    edited = iit.IntervenedModel(network.train(), {Site("mlp_output", layer=0): iit.ZeroIntervention()})
    with torch.no_grad():
        found = edited(prompts()).logits
    torch.testing.assert_close(found, iit.IntervenedModel(make("llama"), edited.edits)(prompts()).logits)
