"""transformers' own recording hooks (`output_hidden_states`): an edit always shows, and they do not
stop resuming.
"""

import pytest
import torch

import iit
from iit.intervened import ActivationStore
from iit.intervened.snapshot import NetworkSnapshot
from tests.families import DECODERS, make, prompts
from tests.oracles import raw_hook


def recorded(network, batch):
    with torch.no_grad():
        return network(**batch, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("asked_before", [False, True])
def test_an_edit_shows_in_hidden_states_whatever_came_first(family, asked_before):
    network, fresh = make(family), make(family)
    base, source = prompts((6, 6)), prompts((6, 6), 2)
    there = recorded(make(family), source)[1]
    # The oracle's hook stands before those of transformers, which are installed when they are first
    # asked for.
    raw_hook(fresh, family, "block_output", 0, None, lambda _: there)
    want = recorded(fresh, base)
    if asked_before:
        recorded(network, base)
    edited = iit.IntervenedModel(
        network, {iit.Site("block_output", layer=0): iit.VanillaIntervention()}
    )
    for _ in range(2):
        got = edited({**base, "output_hidden_states": True}, source).hidden_states
        assert len(got) == len(want) == 3
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[1], there)


def test_edits_inside_show_too():
    network = make("mixtral")
    asked = {**prompts((6, 6)), "output_router_logits": True, "output_attentions": True}
    network.set_attn_implementation("eager")
    network(**asked)
    router = iit.Site("router_output", layer=0)
    for site in (router, iit.Site(module="model.layers.0.mlp.gate")):
        edited = iit.IntervenedModel(network, {site: iit.ZeroIntervention()})
        assert not edited(asked).router_logits[0].any()
    weights = iit.IntervenedModel(
        network, {iit.Site("attention_weight", layer=1): iit.ZeroIntervention()}
    )
    assert not weights(asked).attentions[1].any()


def test_the_users_hooks_fire_where_they_did_and_all_order_is_as_before():
    network = make("llama")
    block, seen = network.model.layers[0], []
    block.register_forward_hook(lambda *_: seen.append("before"))
    asked = {**prompts((6, 6)), "output_hidden_states": True}
    network(**asked)
    block.register_forward_hook(lambda _m, _a, out: seen.append("after") or out + 1)
    order = list(block._forward_hooks)
    site = iit.Site("block_output", layer=0)
    plain = iit.capture(network, prompts((6, 6)), site)[site]
    got = iit.IntervenedModel(network, {site: iit.AdditionIntervention(vector=torch.ones(16))})(
        asked
    )
    torch.testing.assert_close(got.hidden_states[1], plain + 1)
    assert list(block._forward_hooks) == order
    assert seen == ["before"] + 2 * ["before", "after"]


def test_recording_hooks_are_not_foreign():
    network = make("llama")
    asked = {**prompts((6, 6)), "output_hidden_states": True}
    site = iit.Site("block_output", layer=0, position=2)
    edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
    store = edited.store = ActivationStore(network)
    fingerprint = NetworkSnapshot(network).run_fingerprint()
    base, source = prompts((6, 6)), prompts((6, 6), 2)
    want = edited.answer_logits(base, source)
    known = len(store)
    network(**asked)
    assert store.refuses(network, iit.network.inputs.prepare(network, base)) is None
    assert len(store) == known, "nothing was forgotten"
    torch.testing.assert_close(edited.answer_logits(base, source), want)
    snapshot = NetworkSnapshot(network)
    assert snapshot.refusal() is None
    assert snapshot.run_fingerprint() == fingerprint
    network.model.layers[0].register_forward_hook(lambda *_: None)
    assert "not the engine's" in (snapshot.refusal() or "")
