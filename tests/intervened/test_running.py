"""Runs under precisions, checkpointing, training and chains of edits."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import iit
from iit import Edit, IntervenedModel, Site
from iit.intervened import ActivationStore
from iit.intervention import Frame
from tests.families import make, prompts
from tests.oracles import ORACLES, raw_hook
from tests.seeds import shifted

BASE, SOURCE = prompts((6, 6), 1), prompts((6, 6), 2)


def low_rank(network, component="block_output", layer=0, source_grad=False):
    torch.manual_seed(shifted(0))
    site = Site(component, layer=layer, position=2)
    return IntervenedModel(
        network,
        {"x": Edit(site, iit.LowRankRotatedSpaceIntervention(16, 3))},
        source_grad=source_grad,
    )


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_bf16_network_with_an_fp32_basis(family, store):
    network = make(family).to(torch.bfloat16)
    edited, full = low_rank(network), low_rank(make(family))
    edited.store = ActivationStore(network) if store else None
    for _ in range(2):
        edited.zero_grad()
        found = edited.answer_logits(BASE, SOURCE)
        found.float().square().mean().backward()
    expected = full.answer_logits(BASE, SOURCE)
    expected.square().mean().backward()
    (ours,), (theirs,) = edited.parameters(), full.parameters()
    assert (found.dtype, ours.dtype, ours.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    assert float((found.float() - expected).detach().norm() / expected.detach().norm()) < 0.05
    assert (
        float(nn.functional.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0))
        > 0.97
    )


def checkpointed(family, use_reentrant):
    network = make(family, attention="eager").requires_grad_(True).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with warnings.catch_warnings():
        # transformers is about to give it another name
        warnings.simplefilter("ignore", FutureWarning)
        network.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    return network


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("component", "layer"), [("block_input", 1), ("block_output", 0), ("embedding_output", None)]
)
def test_checkpointed_networks_have_the_same_gradients(family, use_reentrant, component, layer):
    found = []
    for network in (
        make(family, attention="eager").requires_grad_(True),
        checkpointed(family, use_reentrant),
    ):
        edited = low_rank(network, component, layer, source_grad=True)
        logits = edited.answer_logits(BASE, SOURCE)
        logits.square().mean().backward()
        found.append(
            [
                logits.detach(),
                *(p.grad for p in edited.parameters()),
                *(p.grad for p in network.parameters()),
            ]
        )
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-4)


# torch, when a reentrant one has no backward
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("component", ["mlp_output", "attention_value_output", "attention_weight"])
def test_inside_a_checkpointed_layer_only_what_has_no_backward_runs(component, use_reentrant):
    network = checkpointed("llama", use_reentrant)
    site, calls = Site(component, layer=1, position=2), []
    edited = IntervenedModel(network, {"x": Edit(site, iit.VanillaIntervention())})
    handle = network.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    for call in (lambda: edited(BASE, SOURCE), lambda: iit.capture(network, BASE, site, grad=True)):
        with pytest.raises(
            ValueError,
            match=rf"Site {component}\[1\] @ 2 is inside a layer under gradient checkpointing",
        ):
            call()
    handle.remove()
    assert not calls
    expected = IntervenedModel(
        make("llama", attention="eager"), {"x": Edit(site, iit.VanillaIntervention())}
    )(BASE, SOURCE).logits
    with torch.no_grad():
        torch.testing.assert_close(edited(BASE, SOURCE).logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        edited.network.eval() and edited(BASE, SOURCE).logits, expected, atol=1e-5, rtol=1e-5
    )


class OwnCheckpoint(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.inner, self.outer, self.use_reentrant = nn.Linear(3, 4), nn.Linear(4, 2), use_reentrant

    def forward(self, x):
        return self.outer(
            checkpoint(lambda h: self.inner(h).relu(), x, use_reentrant=self.use_reentrant)
        )


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_in_ones_own_modules_is_noticed(use_reentrant):
    network, x = OwnCheckpoint(use_reentrant), torch.randn(2, 3)
    site = Site(module="inner")
    edited = IntervenedModel(network, {site: iit.AdditionIntervention(torch.ones(4))})
    with pytest.raises(RuntimeError, match="inner:output is inside a checkpointed"):
        edited(x)
    expected = network.outer((network.inner(x) + 1).relu())
    with torch.no_grad():
        torch.testing.assert_close(edited(x), expected)
    network.requires_grad_(False)
    torch.testing.assert_close(edited(x), expected)
    outside = IntervenedModel(
        network.requires_grad_(True),
        {Site(module="outer"): iit.AdditionIntervention(torch.ones(2))},
    )
    torch.testing.assert_close(outside(x), network(x) + 1)


def test_a_compiled_network_is_refused_by_everything_that_runs(tiny_llama):
    compiled = torch.compile(tiny_llama, backend="eager")
    site = Site("block_output", layer=0)
    for call in (
        lambda: IntervenedModel(compiled, {site: iit.VanillaIntervention()}),
        lambda: iit.capture(compiled, BASE, site),
    ):
        with pytest.raises(ValueError, match=r"compiled.*_orig_mod"):
            call()
    IntervenedModel(compiled._orig_mod, {site: iit.VanillaIntervention()})(BASE, SOURCE)


def grads_by_hand(source_grad):
    """The gradients of a network in one graph: source run, edit, base run, all with raw hooks."""
    network = make("llama").requires_grad_(True)
    q = low_rank(network).interventions[0].basis.vectors().detach()
    held = []
    handle = raw_hook(network, "llama", "block_output", 0, None, lambda h: held.append(h) or h)
    network(**SOURCE)
    handle.remove()
    there = held[0] if source_grad else held[0].detach()

    def edit(h):
        new = h.clone()
        new[:, 2] = h[:, 2] + (there[:, 2] - h[:, 2]) @ q @ q.T
        return new

    handle = raw_hook(network, "llama", "block_output", 0, None, edit)
    network(**BASE).logits[:, -1].square().mean().backward()
    handle.remove()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("source_grad", [False, True])
def test_gradients_of_the_networks_parameters_equal_raw_hooks(source_grad):
    network = make("llama").requires_grad_(True)
    low_rank(network, source_grad=source_grad).answer_logits(
        BASE, SOURCE
    ).square().mean().backward()
    expected = grads_by_hand(source_grad)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=3e-6, rtol=1e-4)


def by_hooks(network, batch, patches, read=None):
    """One run with raw hooks: patches {(component, layer, position): value}; what passes at `read`,
    or the logits.
    """
    held, handles = [], []
    for (component, layer, position), value in patches.items():

        def edit(h, position=position, value=value):
            new = h.clone()
            new[:, position] = value
            return new

        handles.append(
            raw_hook(network, "gpt2", component, layer, ORACLES["gpt2"][component][2], edit)
        )
    if read is not None:
        component, layer, position = read
        columns = ORACLES["gpt2"][component][2]
        index = range(columns[0], columns[-1] + 1) if columns else None
        path = ORACLES["gpt2"][component][0].format(i=layer)

        def hold(module, args, out):
            held.append((out if index is None else out[..., list(index)])[:, position].clone())

        handles.append(network.get_submodule(path).register_forward_hook(hold))
    logits = network(**batch).logits
    for handle in handles:
        handle.remove()
    return logits if read is None else held[0]


@pytest.mark.parametrize("depth", [2, 3])
def test_serial_interchanges_equal_raw_hooks(depth, tiny_gpt2):
    """third → source → base (→ one more), each handing on what the edit before it made of it."""
    places = [
        ("mlp_output", 0, 1),
        ("block_output", 0, 3),
        ("query_output", 1, 4),
        ("block_output", 1, 5),
    ][: depth + 1]
    batches = [prompts((6, 6), seed) for seed in range(depth + 2)]
    value, expected = None, None
    patches = {}
    for batch, place in zip(batches[:-1], places, strict=True):
        value = by_hooks(tiny_gpt2, batch, patches, read=place)
        patches = {place: value}
    expected = by_hooks(tiny_gpt2, batches[-1], patches)

    sites = [
        Site(component, layer=layer, position=position) for component, layer, position in places
    ]
    source = batches[0]
    for batch, site, later in zip(batches[1:-1], sites[:-1], sites[1:], strict=True):
        edited = IntervenedModel(tiny_gpt2, {site: iit.VanillaIntervention()})
        source = iit.capture(edited, batch, later, sources=source)
    found = IntervenedModel(tiny_gpt2, {sites[-1]: iit.VanillaIntervention()})(
        batches[-1], source
    ).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, tiny_gpt2(**batches[-1]).logits, atol=1e-4)


def test_gradients_flow_through_serial_interchanges(tiny_llama):
    inner, outer = low_rank(tiny_llama), low_rank(tiny_llama, "block_input", 1)
    later = Site("block_input", layer=1, position=2)
    third = prompts((6, 6), 3)
    handed = iit.capture(inner, SOURCE, later, sources=third, grad=True)
    outer(BASE, handed).logits[:, -1].square().mean().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in (*inner.parameters(), *outer.parameters()))


def test_a_source_runs_once_however_many_sites_read_it(tiny_llama):
    other = prompts((6, 6), 3)
    sites = [
        Site(c, layer=n, position=p)
        for c, n, p in (("block_output", 0, 1), ("mlp_output", 1, 2), ("key_output", 1, 3))
    ]
    edited = IntervenedModel(
        tiny_llama,
        {
            "several": Edit(sites, iit.LambdaIntervention(lambda h, s: s, needs_source=True)),
            "one": Edit(Site("query_output", layer=1, position=4), iit.VanillaIntervention()),
            "two": Edit(
                Site("block_output", layer=0, position=5),
                iit.RotatedSpaceIntervention(16, blocks={"u": 3, "v": 2}),
            ),
            "free": Edit(Site("block_output", layer=1, position=0), iit.ZeroIntervention()),
        },
    )
    calls = []
    handle = tiny_llama.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    for sources, n_runs in (
        (SOURCE, 2),
        ({"several": SOURCE, "one": SOURCE, "u": SOURCE, "v": SOURCE}, 2),
        ({"several": SOURCE, "one": other, "u": SOURCE, "v": other}, 3),
        ({"several": SOURCE, "one": dict(SOURCE), "u": other, "v": SOURCE}, 4),
    ):
        calls.clear()
        edited(BASE, sources)
        assert len(calls) == n_runs
    calls.clear()
    edited(
        BASE,
        iit.capture(
            tiny_llama, SOURCE, [s for e in list(edited.edits.values())[:3] for s in e.source_sites]
        ),
    )
    assert len(calls) == 2, "the capture, and the base"
    handle.remove()


def test_activations_are_as_good_as_their_batch(tiny_llama):
    site = Site("block_output", layer=0, position=[1, 3])
    edited = IntervenedModel(
        tiny_llama, {"x": Edit(site, iit.LowRankRotatedSpaceIntervention(16, 3))}
    )
    acts = iit.capture(tiny_llama, SOURCE, site)
    expected = edited(BASE, SOURCE).logits
    for given in (acts, {"x": acts}, {"x": acts[site]}, acts[site]):
        assert torch.equal(edited(BASE, given).logits, expected)
    with pytest.raises(
        ValueError, match=r"hold \['block_output\[1\] @ 1'\], not the source site block_output\[0\]"
    ):
        edited(BASE, iit.capture(tiny_llama, SOURCE, Site("block_output", layer=1, position=1)))


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("blocks", [None, {"u": 3, "v": 5}], ids=["rotation", "blocks"])
def test_a_step_makes_its_rotation_once_for_all_sites(blocks, store, monkeypatch):
    network = make("llama")
    sites = [
        Site("block_output", layer=layer, position=position)
        for layer in (0, 1)
        for position in (2, -1)
    ]
    torch.manual_seed(shifted(0))
    edited = IntervenedModel(network, {"x": Edit(sites, iit.RotatedSpaceIntervention(16, blocks))})
    edited.store = ActivationStore(network) if store else None
    sources = SOURCE if blocks is None else dict.fromkeys(blocks, SOURCE)
    real, made = Frame.vectors, []

    def step(at_every_site):
        edited.zero_grad()
        with monkeypatch.context() as patch:
            patch.setattr(Frame, "vectors", lambda self: made.append(1) or real(self))
            if at_every_site:
                patch.setattr(Frame, "ready", Frame.coordinates)
            edited.answer_logits(BASE, sources).square().mean().backward()
        return next(edited.parameters()).grad.clone()

    expected = step(True)
    assert len(made) >= len(sites)
    step(False)  # with a store the first is compared with a whole run, which is one more
    made.clear()
    torch.testing.assert_close(step(False), expected, atol=1e-6, rtol=1e-5)
    assert len(made) == 1
    with torch.no_grad():
        next(edited.parameters()).add_(0.1 * torch.eye(16)[:, : 16 if blocks is None else 8])
    changed = edited.answer_logits(BASE, sources)
    monkeypatch.setattr(Frame, "ready", Frame.coordinates)
    torch.testing.assert_close(changed, edited.answer_logits(BASE, sources), atol=1e-6, rtol=1e-5)
