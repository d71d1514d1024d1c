"""A network that has changed is noticed; and one that has not is let alone."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules

import iit
from iit.intervened import ActivationStore
from iit.intervened.snapshot import NetworkSnapshot
from tests.families import DECODERS, make, prompts


def frozen(family="llama", **options):
    return make(family, **options).eval().requires_grad_(False)


def _replaced(network):
    network.lm_head.weight = nn.Parameter(
        network.lm_head.weight.detach().clone(), requires_grad=False
    )


def _in_place(network):
    with torch.no_grad():
        network.model.norm.weight[3] += 1


def _attribute(where, name, value):
    return lambda network: setattr(network.get_submodule(where), name, value)


CHANGES = {
    "weights in place": (_in_place, "weights"),
    "a parameter replaced": (_replaced, "module"),
    "data replaced": (
        lambda network: setattr(network.lm_head.weight, "data", torch.zeros(60, 16)),
        "weights",
    ),
    "a submodule replaced": (_attribute("model.layers.1", "mlp", nn.Identity().eval()), "module"),
    "scaling": (_attribute("model.layers.1.self_attn", "scaling", 0.3), "module"),
    "eps": (_attribute("model.norm", "variance_epsilon", 0.1), "module"),
    "a method of its own": (_attribute("model.layers.1.mlp", "forward", lambda x: x), "module"),
    "the mode of one module": (lambda network: network.model.layers[1].mlp.train(), "module"),
    "an entry of the config": (
        lambda network: setattr(network.config, "sliding_window", 3),
        "config",
    ),
    "inside of an entry": (
        lambda network: network.config.rope_parameters.update(rope_theta=5.0),
        "config",
    ),
    "the attention": (lambda network: network.set_attn_implementation("eager"), "config"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_changes_are_noticed(how):
    network = frozen()
    snapshot, (change, message) = NetworkSnapshot(network), CHANGES[how]
    assert snapshot.change() is None
    change(network)
    assert message in (snapshot.change() or "")


@pytest.mark.parametrize("family", DECODERS)
def test_a_run_is_no_change(family):
    network = frozen(family)
    snapshot = NetworkSnapshot(network)
    store = ActivationStore(network)
    edited = iit.IntervenedModel(
        network, {iit.Site("block_output", layer=0, position=2): iit.VanillaIntervention()}
    )
    edited.store = store
    for _ in range(2):
        edited.answer_logits(prompts((9, 6), 1), prompts((9, 6), 2))
    assert snapshot.change() is None
    assert not snapshot.content_changed()
    assert snapshot.run_fingerprint() == NetworkSnapshot(frozen(family)).run_fingerprint()


def test_autocast_is_a_change():
    snapshot = NetworkSnapshot(frozen())
    with torch.autocast("cpu", torch.bfloat16):
        assert snapshot.change() == "autocast"
    assert snapshot.change() is None


def test_any_byte_counts_when_all_are_read():
    network = frozen()
    weight = network.model.layers[0].mlp.up_proj.weight
    snapshot = NetworkSnapshot(network)
    weight.data[5, 3] += 1e-3
    assert snapshot.change() is None, "torch does not count what is written through `.data`"
    assert not snapshot.sample_changed(), "one value, and not one of the sample"
    assert snapshot.content_changed()
    weight.data.mul_(2)
    assert snapshot.change() is None
    assert snapshot.sample_changed()


def test_a_store_forgets_what_a_changed_network_left():
    network = frozen()
    site = iit.Site("block_output", layer=0, position=2)
    base, source = prompts((9, 6), 1), prompts((9, 6), 2)

    def answers(store):
        edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
        edited.store = store
        return edited.answer_logits(base, source)

    store = ActivationStore(network)
    for change in (
        lambda: network.model.layers[0].mlp.up_proj.weight.mul_(3),
        lambda: setattr(network.model.layers[0].self_attn, "scaling", 3.0),
        lambda: (network.model.layers[0].mlp.up_proj.weight.data[5].mul_(30), store.check()),
    ):
        before = answers(store)
        change()
        torch.testing.assert_close(answers(store), answers(None), atol=1e-5, rtol=1e-5)
        assert (answers(store) - before).abs().max() > 1e-4
        assert store.is_trusted(1, {"": None})


@pytest.mark.parametrize("where", ["network", "one module"])
def test_a_mode_that_is_not_eval_is_refused(where):
    network = frozen()
    (network if where == "network" else network.model.layers[1].self_attn).train()
    assert "not frozen in eval mode" in (NetworkSnapshot(network).refusal() or "")


@pytest.mark.parametrize(
    "register",
    [
        lambda network, hook: network.model.layers[1].register_forward_hook(hook),
        lambda network, hook: network.model.layers[1].register_forward_pre_hook(hook),
        lambda network, hook: network.model.layers[1].register_full_backward_hook(hook),
        lambda network, hook: modules.register_module_forward_hook(hook),
        lambda network, hook: modules.register_module_forward_pre_hook(hook),
        lambda network, hook: modules.register_module_full_backward_hook(hook),
    ],
)
def test_hooks_are_refused_while_they_are_there(register):
    network = frozen()
    snapshot = NetworkSnapshot(network)
    handle = register(network, lambda *args: None)
    assert "hooks that are not the engine's" in (snapshot.refusal() or "")
    handle.remove()
    assert snapshot.refusal() is None


def _permuted(network):
    weight = network.model.embed_tokens.weight
    weight.data[[7, 8]] = weight.data[[8, 7]]


@pytest.mark.parametrize(
    "change",
    [
        _permuted,
        lambda network: network.model.rotary_emb.inv_freq.mul_(1.5),  # a buffer that is not saved
        lambda network: network.bfloat16(),
        lambda network: network.set_attn_implementation("eager"),
        _attribute("model.layers.1.self_attn", "scaling", 0.3),
        lambda network: setattr(network.config, "sliding_window", 3),
    ],
)
def test_networks_that_differ_have_different_identities(change):
    network = frozen()
    fingerprint = NetworkSnapshot(network).run_fingerprint()
    assert fingerprint == NetworkSnapshot(frozen()).run_fingerprint()
    change(network)
    assert NetworkSnapshot(network).run_fingerprint() != fingerprint
