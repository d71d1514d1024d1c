"""Parity with pyvene 0.1.8 where it is right; where it is wrong, raw hooks on literal module paths
agree with iit and not with it.
"""

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from tests.families import make, prompts
from tests.oracles import ORACLES, head_columns, raw_hook
from tests.seeds import shifted

pytestmark = pytest.mark.filterwarnings("ignore")  # pyvene's own: it is written for transformers 4
pyvene = pytest.importorskip("pyvene")

W, AT, FROM = 16, [2, 4], [3, 1]  # positions in the base and in the source, one for each example


def pyvene_model(network, *representations):
    return pyvene.IntervenableModel(pyvene.IntervenableConfig(list(representations)), network)


def pyvene_logits(model, base, source, locations):
    return model(base, [source] * len(model._intervention_group), locations)[1].logits


def located(at=AT, start=FROM, heads=None, n=1):
    """pyvene's nest: (source, base) × interventions × (heads ×) examples × units."""
    rows = [[[p] for p in positions] for positions in (start, at)]
    return {
        "sources->base": tuple(
            [row if heads is None else [[[heads]] * len(row), row]] * n for row in rows
        )
    }


def batches(lengths=(6, 6), at=AT, start=FROM):
    base, source = prompts(lengths, seed=1), prompts(lengths, seed=2)
    return (
        base,
        source,
        base | {"positions": {"x": torch.tensor(at)}},
        source | {"positions": {"x": torch.tensor(start)}},
    )


def run(network, batch):
    return network(**{k: v for k, v in batch.items() if k != "positions"}).logits


def by_hooks(network, family, component, layer, base, source, change, head=None, at=AT, start=FROM):
    """The base's logits with change(base vector, source vector) at its positions."""
    columns = (
        ORACLES[family][component][2] if head is None else head_columns(family, component, head)
    )
    held, rows = [], torch.arange(len(at))
    handle = raw_hook(
        network, family, component, layer, columns, lambda h: held.append(h.clone()) or h
    )
    run(network, source)
    handle.remove()

    def edit(h):
        new = h.clone()
        new[rows, at] = change(h[rows, at], held[0][rows, start])
        return new

    handle = raw_hook(network, family, component, layer, columns, edit)
    try:
        return run(network, base)
    finally:
        handle.remove()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def far(found, expected):
    assert float((found - expected).abs().max()) > 1e-3


PLACES = [
    *[
        (c, None)
        for c in (
            "block_input",
            "block_output",
            "mlp_input",
            "mlp_output",
            "attention_input",
            "attention_output",
        )
    ],
    *[(c, None) for c in ("attention_value_output", "query_output", "key_output", "value_output")],
    *[(c, 1) for c in ("attention_value_output", "query_output", "key_output", "value_output")],
]


@pytest.mark.parametrize(("component", "head"), PLACES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_vanilla_at_each_component(family, component, head):
    base, source, own_base, own_source = batches()
    site = Site(component, layer=1, head=head, position="x")
    found = IntervenedModel(make(family), {site: iit.VanillaIntervention()})(
        own_base, own_source
    ).logits
    named = {"layer": 1, "component": component, "unit": "pos"}
    if head is not None:
        named |= {"component": f"head_{component}", "unit": "h.pos"}
    model = pyvene_model(make(family), named | {"intervention_type": pyvene.VanillaIntervention})
    close(found, pyvene_logits(model, base, source, located(heads=head)))
    close(found, by_hooks(make(family), family, component, 1, base, source, lambda h, s: s, head))
    far(found, run(make(family), base))


KINDS = {
    "addition": (lambda: iit.AdditionIntervention(), lambda: pyvene.AdditionIntervention()),
    "subtraction": (
        lambda: iit.SubtractionIntervention(),
        lambda: pyvene.SubtractionIntervention(),
    ),
    "zero": (lambda: iit.ZeroIntervention(), lambda: pyvene.ZeroIntervention()),
    "rotated": (
        lambda: iit.RotatedSpaceIntervention(W),
        lambda: pyvene.RotatedSpaceIntervention(embed_dim=W),
    ),
    "low_rank": (
        lambda: iit.LowRankRotatedSpaceIntervention(W, 3),
        lambda: pyvene.LowRankRotatedSpaceIntervention(embed_dim=W, low_rank_dimension=3),
    ),
    "sigmoid_mask": (
        lambda: iit.SigmoidMaskIntervention(W, temperature=0.7),
        lambda: pyvene.SigmoidMaskIntervention(embed_dim=W),
    ),
}


def alike(kind):
    """The same intervention of both, with the same weights."""
    torch.manual_seed(shifted(3))
    ours, theirs = (make() for make in KINDS[kind])
    with torch.no_grad():
        if kind in ("rotated", "low_rank"):
            ours.basis.weight.copy_(theirs.rotate_layer.weight)
        if kind == "sigmoid_mask":
            ours.gate.mask.copy_(torch.linspace(-1, 1, W))
            theirs.mask.copy_(ours.gate.mask)
            theirs.set_temperature(torch.tensor(0.7))
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("component", ["block_output", "mlp_output"])
def test_each_intervention_with_the_same_weights(kind, family, component):
    base, source, own_base, own_source = batches()
    ours, theirs = alike(kind)
    edited = IntervenedModel(make(family), {Site(component, layer=0, position="x"): ours})
    found = edited(own_base, own_source if ours.needs_source else None).logits
    model = pyvene_model(make(family), {"layer": 0, "component": component, "intervention": theirs})
    close(found, pyvene_logits(model, base, source, located()))
    far(found, run(make(family), base))


def test_gradients_of_a_mask():
    base, source, own_base, own_source = batches()
    ours, theirs = alike("sigmoid_mask")
    edited = IntervenedModel(make("llama"), {Site("block_output", layer=0, position="x"): ours})
    edited(own_base, own_source).logits.square().mean().backward()
    model = pyvene_model(
        make("llama"), {"layer": 0, "component": "block_output", "intervention": theirs}
    )
    pyvene_logits(model, base, source, located()).square().mean().backward()
    close(ours.gate.mask.grad, theirs.mask.grad)
    assert float(ours.gate.mask.grad.abs().min()) > 0


def test_collect():
    base, _, own_base, _ = batches()
    site = Site("block_output", layer=1, position="x")
    found = IntervenedModel(make("gpt2"), {"seen": Edit(site, iit.CollectIntervention())}).run(
        own_base
    )
    kind = {
        "layer": 1,
        "component": "block_output",
        "intervention_type": pyvene.CollectIntervention,
    }
    collected = pyvene_model(make("gpt2"), kind)(
        base, unit_locations={"sources->base": (None, [[[p] for p in AT]])}
    )[0][1]
    close(found.activations["seen"], torch.cat(list(collected)).reshape(2, 1, W))


def test_joint_positions():
    """pyvene concatenates several positions of a trained edit; here that is asked for."""
    base, source, own_base, own_source = batches()
    own_base["positions"], own_source["positions"] = (
        {"x": torch.tensor(rows)} for rows in ([[1, 3], [0, 5]], [[2, 4], [1, 2]])
    )
    theirs = pyvene.LowRankRotatedSpaceIntervention(embed_dim=2 * W, low_rank_dimension=5)
    ours = iit.LowRankRotatedSpaceIntervention(2 * W, 5)
    with torch.no_grad():
        ours.basis.weight.copy_(theirs.rotate_layer.weight)
    edited = IntervenedModel(
        make("llama"), {"x": Edit(Site("block_output", layer=0, position="x"), ours, joint=True)}
    )
    kind = {
        "layer": 0,
        "component": "block_output",
        "intervention": theirs,
        "max_number_of_units": 2,
    }
    locations = {"sources->base": ([[[2, 4], [1, 2]]], [[[1, 3], [0, 5]]])}
    close(
        edited(own_base, own_source).logits,
        pyvene_logits(pyvene_model(make("llama"), kind), base, source, locations),
    )


VANILLA = {"layer": 0, "component": "block_output"}


def test_a_location_for_all_does_not_stick():
    base, source, own_base, own_source = batches()
    model = pyvene_model(make("gpt2"), VANILLA | {"intervention_type": pyvene.VanillaIntervention})
    edited = IntervenedModel(
        make("gpt2"), {Site("block_output", layer=0, position="x"): iit.VanillaIntervention()}
    )
    expected = by_hooks(make("gpt2"), "gpt2", "block_output", 0, base, source, lambda h, s: s)
    close(pyvene_logits(model, base, source, located()), expected)
    pyvene_logits(model, base, source, {"sources->base": 2})
    edited(*({**b, "positions": {"x": torch.tensor([2, 2])}} for b in (base, source)))
    close(edited(own_base, own_source).logits, expected)
    far(pyvene_logits(model, base, source, located()), expected)


def test_sites_that_share_weights_keep_their_own_activations():
    base, source, own_base, own_source = batches()
    ours, theirs = alike("low_rank")
    sites = [Site("block_output", layer=layer, position="x") for layer in (0, 1)]
    found = IntervenedModel(make("gpt2"), {"x": Edit(sites, ours)})(own_base, own_source).logits
    network, held, rows = make("gpt2"), [], torch.arange(2)
    q = theirs.rotate_layer.weight.detach()
    reading = [
        raw_hook(network, "gpt2", "block_output", n, None, lambda h: held.append(h) or h)
        for n in (0, 1)
    ]
    run(network, source)
    for handle in reading:
        handle.remove()

    def editor(n):
        def edit(h):
            new = h.clone()
            new[rows, AT] = h[rows, AT] + (held[n][rows, FROM] - h[rows, AT]) @ q @ q.T
            return new

        return edit

    for n in (0, 1):
        raw_hook(network, "gpt2", "block_output", n, None, editor(n))
    expected = run(network, base)
    close(found, expected)
    shared = [
        {
            "layer": n,
            "component": "block_output",
            "intervention": theirs,
            "intervention_link_key": 0,
        }
        for n in (0, 1)
    ]
    far(pyvene_logits(pyvene_model(make("gpt2"), *shared), base, source, located(n=2)), expected)


@pytest.mark.parametrize("component", ["key_output", "value_output"])
def test_no_position_means_all_of_this_component(component):
    base, source, _, _ = batches()
    expected_network, held = make("gpt2"), []
    columns = ORACLES["gpt2"][component][2]
    handle = raw_hook(
        expected_network, "gpt2", component, 1, columns, lambda h: held.append(h.clone()) or h
    )
    run(expected_network, source)
    handle.remove()
    raw_hook(expected_network, "gpt2", component, 1, columns, lambda h: held[0])
    expected = run(expected_network, base)
    close(
        IntervenedModel(make("gpt2"), {Site(component, layer=1): iit.VanillaIntervention()})(
            base, source
        ).logits,
        expected,
    )
    kind = {"layer": 1, "component": component, "intervention_type": pyvene.VanillaIntervention}
    theirs = pyvene_logits(pyvene_model(make("gpt2"), kind), base, source, None)
    far(theirs, expected)
    query = IntervenedModel(
        make("gpt2"), {Site("query_output", layer=1): iit.VanillaIntervention()}
    )(base, source).logits
    close(theirs, query)


def test_the_users_hooks_and_the_networks_state_stay():
    base, source, own_base, own_source = batches()
    ours, theirs = (
        make("gpt2").requires_grad_(True).train(),
        make("gpt2").requires_grad_(True).train(),
    )
    fired = {id(network): 0 for network in (ours, theirs)}
    for network in (ours, theirs):
        network.transformer.h[1].register_forward_hook(
            lambda m, a, o, n=network: fired.update({id(n): fired[id(n)] + 1})
        )
    edited = IntervenedModel(
        ours, {Site("block_output", layer=0, position="x"): iit.VanillaIntervention()}
    )
    model = pyvene_model(theirs, VANILLA | {"intervention_type": pyvene.VanillaIntervention})
    for _ in range(2):
        edited(own_base, own_source)
        pyvene_logits(model, base, source, located())
    assert fired[id(ours)] >= 2, "once a base run (the source run stops below this block)"
    assert fired[id(theirs)] < 2
    assert ours.training
    assert not theirs.training
    assert all(p.requires_grad for p in ours.parameters())
    assert not any(p.requires_grad for p in theirs.parameters())


def test_a_rank_is_not_ignored():
    base, source, own_base, own_source = batches()
    kind = {
        **VANILLA,
        "intervention_type": pyvene.RotatedSpaceIntervention,
        "low_rank_dimension": 2,
    }
    theirs = pyvene_logits(pyvene_model(make("gpt2"), kind), base, source, located())
    close(theirs, by_hooks(make("gpt2"), "gpt2", "block_output", 0, base, source, lambda h, s: s))
    ours = iit.LowRankRotatedSpaceIntervention(W, 2)
    q = ours.basis.vectors().detach()
    expected = by_hooks(
        make("gpt2"), "gpt2", "block_output", 0, base, source, lambda h, s: h + (s - h) @ q @ q.T
    )
    found = IntervenedModel(make("gpt2"), {Site("block_output", layer=0, position="x"): ours})(
        own_base, own_source
    ).logits
    close(found, expected)
    far(theirs, expected)
    with pytest.raises(TypeError, match="low_rank_dimension"):
        iit.RotatedSpaceIntervention(W, low_rank_dimension=2)


def test_padding_on_the_left():
    """The same token, counted from the right: pyvene runs GPT-2 with the positions of the
    padding.
    """
    right = prompts((6, 3), seed=1)
    left = {k: torch.stack([v[0], v[1].roll(3)]) for k, v in right.items()}
    source = prompts((6, 6), seed=2)
    site = Site("block_output", layer=0, position=-1)
    alone = {k: v[1:, :3] for k, v in right.items()}
    one = {k: v[1:] for k, v in source.items()}
    expected = by_hooks(
        make("gpt2"), "gpt2", "block_output", 0, alone, one, lambda h, s: s, at=[2], start=[5]
    )[0]
    edited = IntervenedModel(make("gpt2"), {site: iit.VanillaIntervention()})
    close(edited(left, source).logits[1, 3:], expected)
    close(edited(right, source).logits[1, :3], expected)
    model = pyvene_model(make("gpt2"), VANILLA | {"intervention_type": pyvene.VanillaIntervention})
    far(pyvene_logits(model, left, source, located([5, 5], [5, 5]))[1, 3:], expected)


def test_spans_of_different_length_are_refused():
    """Without locations pyvene writes the source's padding over the base's tokens: the padding's
    token id decides.
    """
    base, source = prompts((6, 6), 1), prompts((6, 4), 2)
    other = source | {
        "input_ids": torch.where(source["attention_mask"].bool(), source["input_ids"], 7)
    }
    model = pyvene_model(make("gpt2"), VANILLA | {"intervention_type": pyvene.VanillaIntervention})
    far(*(pyvene_logits(model, base, batch, None)[1] for batch in (source, other)))
    with pytest.raises(ValueError, match=r"example 1.*6 positions in the base and 4 in the source"):
        IntervenedModel(make("gpt2"), {Site("block_output", layer=0): iit.VanillaIntervention()})(
            base, source
        )


@pytest.mark.parametrize("component", ["attention_value_output", "query_output"])
def test_heads_together_may_be_wider_than_the_residual_stream(component):
    """Gemma's four heads of 6 make 24 columns; pyvene swaps as many as the residual stream has,
    16.
    """
    base, source, own_base, own_source = batches()
    expected = by_hooks(make("gemma"), "gemma", component, 1, base, source, lambda h, s: s)
    site = Site(component, layer=1, position="x")
    close(
        IntervenedModel(make("gemma"), {site: iit.VanillaIntervention()})(
            own_base, own_source
        ).logits,
        expected,
    )
    kind = {"layer": 1, "component": component, "intervention_type": pyvene.VanillaIntervention}
    far(pyvene_logits(pyvene_model(make("gemma"), kind), base, source, located()), expected)


def test_the_first_coordinate_of_a_boundary_is_swapped_whole():
    """pyvene multiplies by sigmoid(i/temperature): at i = 0 that is a half, however far the
    boundary is.
    """
    torch.manual_seed(shifted(0))
    theirs = pyvene.BoundlessRotatedSpaceIntervention(embed_dim=W)
    theirs.set_temperature(torch.tensor(0.01))
    theirs.set_intervention_boundaries(8.7 / W)
    ours = iit.BoundlessRotatedSpaceIntervention(W, start=8.7 / W, temperature=0.01)
    with torch.no_grad():
        ours.basis.weight.copy_(theirs.rotate_layer.weight)
    q = ours.basis.vectors().detach()
    base, source = torch.randn(3, 1, W), torch.randn(3, 1, W)
    found, other = (
        ours(base, source) @ q,
        theirs(base[:, 0].clone(), source[:, 0].clone()).unsqueeze(1) @ q,
    )
    close(found[..., 1:], other[..., 1:])
    close(found[..., 0], (source @ q)[..., 0])
    close(other[..., 0], ((base + source) @ q)[..., 0] / 2)


def test_an_optimizer_leaves_temperatures_alone():
    base, source = torch.randn(3, 1, W), torch.randn(3, 1, W)
    theirs, ours = pyvene.SigmoidMaskIntervention(embed_dim=W), iit.SigmoidMaskIntervention(W)
    assert "temperature" in dict(theirs.named_parameters())
    assert "temperature" not in dict(ours.named_parameters())
    assert ours(base, source).requires_grad
