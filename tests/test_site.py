import pytest
import torch
from torch import nn

import iit
from iit import Site
from iit.network.components import COMPONENTS
from iit.site import resolve
from tests.families import make, prompts
from tests.oracles import ORACLES, head_columns, raw_hook

CASES = [(family, component) for family in ORACLES for component in ORACLES[family] if component != "heads"]
UNLAYERED = ("embedding_output", "final_norm_output")
HEADED = ("attention_value_output", "query_output", "key_output", "value_output")
_made = {}


def network_of(family):
    return _made.setdefault(family, make(family))


def final(network, batch):
    output = network(**batch)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def site_of(component, layer=1, **kwargs):
    return Site(component, layer=None if component in UNLAYERED else layer, **kwargs)


def check_unit(family, component, columns, site):
    """Read and edit through the engine and through a raw hook on a literal path; values and gradients agree."""
    network, batch = network_of(family), prompts((6, 6))
    seen = []
    handle = raw_hook(network, family, component, 1, columns, lambda h: seen.append(h.clone()) or h)
    final(network, batch)
    handle.remove()
    torch.testing.assert_close(iit.capture(network, batch, site)[site], seen[0], atol=0, rtol=0)

    generator = torch.Generator().manual_seed(3)
    added = torch.randn(seen[0].shape[-1], generator=generator)
    ours, oracle = added.clone().requires_grad_(), added.clone().requires_grad_()
    edited = iit.IntervenedModel(network, {site: iit.LambdaIntervention(lambda h: h * 0.5 + ours)})
    out = edited(batch)
    found = out.logits if hasattr(out, "logits") else out.last_hidden_state
    handle = raw_hook(network, family, component, 1, columns, lambda h: h * 0.5 + oracle)
    expected = final(network, batch)
    handle.remove()
    assert not torch.allclose(expected, final(network, batch), atol=1e-4), "the oracle's edit must show"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(ours.grad, oracle.grad, atol=1e-5, rtol=1e-4)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(("family", "component"), CASES)
def test_component_equals_raw_hooks(family, component):
    check_unit(family, component, ORACLES[family][component][2], site_of(component))


@pytest.mark.parametrize("family", list(ORACLES))
@pytest.mark.parametrize("component", HEADED)
def test_heads_equal_raw_hooks(family, component):
    n = ORACLES[family]["heads"]["keys"] if component in ("key_output", "value_output") else 4
    check_unit(family, component, head_columns(family, component, n - 1), site_of(component, head=n - 1))
    if n > 2:
        both = head_columns(family, component, 2) + head_columns(family, component, 0)
        check_unit(family, component, both, site_of(component, head=[2, 0]))
    with pytest.raises(ValueError, match=f"head={n} is out of range.*0 to {n - 1}"):
        resolve(network_of(family), site_of(component, head=n))


@pytest.mark.parametrize("family", [f for f in ORACLES if f not in ("bert", "falcon_old", "esm")])
def test_writes_sum_to_the_change_of_the_residual_stream(family):
    network, batch = network_of(family), prompts((6, 6))
    sites = [Site(c, layer=1) for c in ("block_input", "block_output", "attention_write", "mlp_write")]
    before, after, attention, mlp = iit.capture(network, batch, sites).values()
    torch.testing.assert_close(after - before, attention + mlp, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", list(ORACLES))
def test_heads_times_output_weight_is_the_attention_output(family):
    network, batch = network_of(family), prompts((6, 6))
    sites = [Site("attention_value_output", layer=0, head=h) for h in range(4)]
    found = iit.capture(network, batch, [*sites, Site("attention_output", layer=0)])
    projection = network.get_submodule(ORACLES[family]["attention_output"][0].format(i=0))
    weight = projection.weight.T if type(projection).__name__ != "Conv1D" else projection.weight
    total = sum(found[site] @ weight[head_columns(family, "attention_value_output", h)] for h, site in enumerate(sites))
    if projection.bias is not None:
        total = total + projection.bias
    torch.testing.assert_close(total, found[Site("attention_output", layer=0)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "falcon_new", "gemma3"])
def test_queries_keys_and_values_are_told_apart(family):
    """Values scale the head's output; equal keys everywhere make attention uniform over what is visible."""
    network, batch = network_of(family), prompts((5, 5))
    zero = iit.IntervenedModel(network, {Site("value_output", layer=0): iit.ZeroIntervention()})
    heads = Site("attention_value_output", layer=0)
    assert float(iit.capture(zero, batch, heads)[heads].abs().max()) == 0.0
    values = iit.capture(network, batch, Site("value_output", layer=0)).popitem()[1]
    if family == "gpt2":
        flat = iit.IntervenedModel(network, {Site("key_output", layer=0): iit.ZeroIntervention()})
        mean = values.cumsum(1) / torch.arange(1, 6).view(1, 5, 1)
        torch.testing.assert_close(iit.capture(flat, batch, heads)[heads], mean, atol=1e-5, rtol=1e-5)


def test_final_norm_and_embedding_need_no_layer():
    assert set(UNLAYERED) < set(COMPONENTS)
    with pytest.raises(ValueError, match="has no layer"):
        Site("embedding_output", layer=0)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"component": "block_outptu", "layer": 1}, "Did you mean 'block_output'.*mlp_activation"),
        ({}, "component or a module"),
        ({"component": "block_output", "layer": 0, "module": "h"}, "component or a module"),
        ({"component": "block_output"}, "needs a layer"),
        ({"component": "block_output", "layer": 0, "head": 1}, "has no heads"),
        ({"component": "block_output", "layer": 0, "side": "input"}, "`side` belongs to modules"),
        ({"module": "h", "side": "in"}, "neither 'input' nor 'output'"),
        ({"module": "h", "layer": 1}, "belong to components"),
        ({"component": "block_output", "layer": 0, "position": []}, "position is empty"),
    ],
)
def test_impossible_sites(kwargs, said):
    with pytest.raises(ValueError, match=said):
        Site(**kwargs)


def test_sites_are_values_that_print_themselves():
    assert Site("block_output", layer=1, position=[1, 2]) == Site("block_output", layer=1, position=(1, 2))
    assert len({Site("block_output", layer=1), Site("block_output", layer=1)}) == 1
    assert str(Site("block_output", layer=17, position="s2")) == "block_output[17] @ s2"
    assert str(Site("query_output", layer=3, head=[0, 5], position=-1)) == "query_output[3].head[0, 5] @ -1"
    assert str(Site(module="h.3.mlp")) == "h.3.mlp:output"


def test_what_a_network_lacks_is_named(tiny_gpt2):
    for site, said in [
        (Site("block_output", layer=2), "layer=2 is out of range.*0 to 1"),
        (Site(module="transformer.h.0.mpl"), "no module.*transformer.h.0.mlp"),
    ]:
        with pytest.raises(ValueError, match=said):
            resolve(tiny_gpt2, site)
    with pytest.raises(ValueError, match="family 'mixtral'.*mlp_activation"):
        resolve(network_of("mixtral"), Site("mlp_activation", layer=0))
    with pytest.raises(ValueError, match="no transformers model.*Name a module"):
        resolve(nn.Linear(2, 2), Site("block_output", layer=0))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_vectors_have_one_position():
    network, x = Pair(), torch.randn(5, 3)
    site = Site(module="first")
    assert iit.capture(network, x, site)[site].shape == (5, 1, 4)
    edited = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})
    torch.testing.assert_close(edited(x), network.second(torch.zeros(5, 4)))


def test_images_have_pixels_as_positions():
    network, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), torch.randn(2, 1, 5, 4)
    site = Site(module="0", position=[0, 3])
    found = iit.capture(network, x, site)[site]
    image = network[0](x)
    torch.testing.assert_close(found, torch.stack([image[:, :, 0, 0], image[:, :, 1, 1]], 1))
    out = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})(x)
    expected = image.clone()
    expected[:, :, 0, 0] = expected[:, :, 1, 1] = 0
    torch.testing.assert_close(out, expected.relu())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_have_time_steps_as_positions(kind, batch_first):
    network = nn.Sequential()
    network.add_module("rnn", kind(3, 4, batch_first=batch_first))
    x = torch.randn(2, 5, 3)
    given = x if batch_first else x.transpose(0, 1)
    site = Site(module="rnn", position=-1)
    out = network(given)[0]
    torch.testing.assert_close(iit.capture(network, given, site)[site][:, 0], out[:, -1] if batch_first else out[-1])
    edited, state = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})(given)
    last = edited[:, -1] if batch_first else edited[-1]
    assert float(last.detach().abs().max()) == 0.0
    torch.testing.assert_close(state, network(given)[1])
