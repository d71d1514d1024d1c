"""What holds for every intervention: on tiny networks, with any lengths, positions and padding."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import iit
from iit import Edit, IntervenedModel, Site
from iit.intervened import ActivationStore
from iit.intervention import named
from tests.families import V, make, prompts
from tests.seeds import shifted

W = 16


def weights(**kwargs):
    generator = torch.Generator().manual_seed(shifted(0))
    shapes = {"encoder": (W, 20), "decoder": (20, W), "encoder_bias": (20,), "decoder_bias": (W,)}
    return {
        name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
    } | kwargs


def fitted():
    return torch.randn(50, W, generator=torch.Generator().manual_seed(shifted(1)))


def lora():
    made = iit.LoRAIntervention(W, 3)
    torch.nn.init.normal_(made.operation.up.weight)
    return made


def revnet():
    made = iit.RevNetIntervention(W, 3, depth=2, hidden=5)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


MAKERS = {
    "vanilla": lambda: iit.VanillaIntervention(),
    "units": lambda: iit.VanillaIntervention(W, units=[1, 4]),
    "zero": lambda: iit.ZeroIntervention(),
    "mean": lambda: iit.MeanIntervention(torch.arange(W) / 3),
    "mean_of_source": lambda: iit.MeanIntervention(),
    "addition": lambda: iit.AdditionIntervention(torch.arange(W) / 3),
    "addition_of_source": lambda: iit.AdditionIntervention(),
    "subtraction": lambda: iit.SubtractionIntervention(torch.arange(W) / 3),
    "subtraction_of_source": lambda: iit.SubtractionIntervention(scale=0.5),
    "noise": lambda: iit.NoiseIntervention(0.5, seed=3),
    "collect": lambda: iit.CollectIntervention(),
    "skip": lambda: iit.SkipIntervention(),
    "lambda": lambda: iit.LambdaIntervention(lambda h: h.tanh()),
    "lambda_of_source": lambda: iit.LambdaIntervention(lambda h, s: h * s, needs_source=True),
    "rotated": lambda: iit.RotatedSpaceIntervention(W),
    "blocks": lambda: iit.RotatedSpaceIntervention(W, blocks={"u": 2, "v": 3}),
    "low_rank": lambda: iit.LowRankRotatedSpaceIntervention(W, 3),
    "boundless": lambda: iit.BoundlessRotatedSpaceIntervention(W, temperature=2.0),
    "sigmoid_mask": lambda: iit.SigmoidMaskIntervention(W),
    "pca": lambda: iit.PCARotatedSpaceIntervention(W, 2, fitted()),
    "autoencoder": lambda: iit.AutoencoderIntervention(W, 20, features=[0, 3, 5], **weights()),
    "top_k": lambda: iit.AutoencoderIntervention(
        W, 20, activation="top_k", k=4, centred=True, **weights()
    ),
    "jump_relu": lambda: iit.JumpReLUAutoencoderIntervention(
        W, 20, **weights(threshold=torch.full((20,), 0.3))
    ),
    "revnet": revnet,
    "loreft": lambda: iit.LoReFTIntervention(W, 3),
    "lora": lora,
}
SWAPS = [
    *("vanilla", "units", "rotated", "blocks", "low_rank", "boundless"),
    *("sigmoid_mask", "pca", "autoencoder", "top_k", "jump_relu", "revnet"),
]
NETWORKS = {family: make(family) for family in ("gpt2", "llama")}
kinds = pytest.mark.parametrize("kind", MAKERS)
families = pytest.mark.parametrize("family", NETWORKS)


def edited_model(kind, family="llama", position=2, layer=0):
    torch.manual_seed(shifted(5))
    edit = Edit(Site("block_output", layer=layer, position=position), MAKERS[kind]())
    return IntervenedModel(NETWORKS[family], {"x": edit})


def run(edited, base, source, active=None):
    return edited(base, source if edited.needs_source else None, active).logits


def final(network, batch):
    return network(**{k: v for k, v in batch.items() if k != "positions"}).logits


def real(logits, batch):
    return [row[mask.bool()] for row, mask in zip(logits, batch["attention_mask"], strict=True)]


def close(found, expected, tolerance=4e-5):  # 4.7e-6 is the largest difference seen
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_every_named_intervention_is_here():
    names = {
        n for n, f in vars(named).items() if n.endswith("Intervention") and inspect.isfunction(f)
    }
    assert names == {make().name for make in MAKERS.values()}


@kinds
def test_it_changes_the_logits_from_its_position_on_and_not_before(kind):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    found, plain = run(edited_model(kind), base, source), final(NETWORKS["llama"], base)
    close(found[:, :2], plain[:, :2])
    if kind == "collect":
        assert torch.equal(found, plain)
    else:
        assert float((found - plain)[:, 2:].detach().abs().amax((1, 2)).min()) > 1e-3


@pytest.mark.parametrize("kind", SWAPS)
@families
def test_source_equal_to_base_changes_nothing(kind, family):
    base = prompts((6, 4), 1)
    for position in (None, -1, [0, 2]):
        for training in (True, False):
            edited = edited_model(kind, family, position).train(training)
            for found, expected in zip(
                real(run(edited, base, base), base),
                real(final(NETWORKS[family], base), base),
                strict=True,
            ):
                close(found, expected)


@st.composite
def batch_pairs(draw):
    """(prompts of any lengths, as many sources of the same lengths, each with its own padding
    before and after).
    """
    lengths = draw(st.lists(st.integers(2, 7), min_size=1, max_size=4))
    rows = [
        [draw(st.lists(st.integers(4, V - 1), min_size=n, max_size=n)) for n in lengths]
        for _ in range(2)
    ]
    return (
        rows,
        draw(st.sampled_from(["left", "right"])),
        draw(st.sampled_from(["left", "right"])),
        draw(st.integers(0, 2)),
    )


def padded(rows, side, extra):
    """Token ids with as much padding as the longest needs, and `extra` more."""
    width = max(map(len, rows)) + extra
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


@kinds
@families
@settings(max_examples=4)
@given(case=batch_pairs(), position=st.sampled_from([None, 0, -1, [-2, -1], "last"]))
def test_batch_and_padding_do_not_matter(kind, family, case, position):
    (bases, sources), side, other_side, extra = case
    edited = edited_model(kind, family, position)
    batch = padded(bases, side, extra)
    together = real(run(edited, batch, padded(sources, other_side, extra)), batch)
    for row, (base, source) in enumerate(zip(bases, sources, strict=True)):
        alone = run(
            edited, {"input_ids": torch.tensor([base])}, {"input_ids": torch.tensor([source])}
        )[0]
        close(together[row], alone)


@kinds
def test_nothing_is_remembered_of_other_batches_and_failures(kind):
    base, source = prompts((6, 4), 1), prompts((5, 7), 2)
    edited = edited_model(kind, position=-2)
    first = run(edited, base, source)
    run(edited, prompts((3, 7, 4), 3), prompts((7, 3, 5), 4))
    with pytest.raises(ValueError, match="is outside example 0"):
        run(edited, prompts((1, 1), 3), source)
    handle = NETWORKS["llama"].model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(edited, base, prompts((6, 6), 5))
    handle.remove()
    assert torch.equal(run(edited, base, source), first)


# those that hook differently
@pytest.mark.parametrize("kind", ["vanilla", "skip", "collect", "blocks"])
def test_a_failure_anywhere_leaves_no_hook(kind):
    network, base, source = NETWORKS["llama"], prompts((6, 4), 1), prompts((5, 7), 2)
    edited = edited_model(kind)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.ModuleList):
            continue  # never called
        handle = module.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(edited, base, source)
        assert list(module._forward_hooks) == [handle.id], name
        handle.remove()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert all("forward" not in vars(m) for m in network.modules())


@kinds
def test_active_says_which_examples_are_touched(kind):
    base, source = prompts((6, 6, 6), 1), prompts((6, 6, 6), 2)
    edited = edited_model(kind)
    plain, whole = final(NETWORKS["llama"], base), run(edited, base, source)
    flags = torch.tensor([True, False, True])
    for active, touched in (
        (flags, flags),
        (False, torch.zeros(3, dtype=torch.bool)),
        (True, torch.ones(3, dtype=torch.bool)),
        (torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)),
    ):
        found = run(edited, base, source, dict.fromkeys(edited.variables, active))
        close(found, torch.where(touched.view(-1, 1, 1), whole, plain))


@kinds
def test_a_source_is_needed_or_needless(kind):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    edited = edited_model(kind)
    if edited.needs_source:
        with pytest.raises(ValueError, match=r"needs a source; none was given"):
            edited(base)
        idle = dict.fromkeys(edited.variables, False)
        close(edited(base, active=idle).logits, final(NETWORKS["llama"], base))
    else:
        with pytest.raises(ValueError, match=r"reads (one|none)"):
            edited(base, source)


@kinds
def test_single_examples(kind):
    base, source = prompts((1,), 1), prompts((1,), 2)
    assert run(edited_model(kind, position=0), base, source).shape == (1, 1, V)


def test_empty_batches_of_tokens_are_refused():
    """Transformers' attention cannot tell how many heads nothing has."""
    some = prompts((6, 6), 1)
    edited = edited_model("vanilla")
    for empty in ({k: v[:0] for k, v in some.items()}, {"input_ids": some["input_ids"][:, :0]}):
        for call in (
            lambda e=empty: edited(e, some),
            lambda e=empty: edited(some, e),
            lambda e=empty: iit.capture(edited.network, e, []),
        ):
            with pytest.raises(ValueError, match=r"The batch is empty: its tokens have shape \("):
                call()


@kinds
@pytest.mark.parametrize("position", [2, -1, None, [1, 3]])
def test_resumed_equals_full(kind, position):
    """Also its gradients, where it is trained."""
    base, source = prompts((9, 6), 1), prompts((9, 6), 2)
    found = []
    for store in (None, ActivationStore(NETWORKS["llama"])):
        edited = edited_model(kind, position=position, layer=1)
        edited.store = store
        for _ in range(1 if store is None else 2):
            edited.zero_grad()
            logits = edited.answer_logits(base, source if edited.needs_source else None)
            if logits.requires_grad:
                logits.square().mean().backward()
        found.append(
            [logits.detach(), *(p.grad for p in edited.parameters() if p.grad is not None)]
        )
    for full, resumed in zip(*found, strict=True):
        torch.testing.assert_close(resumed, full, atol=1e-5, rtol=1e-4)


@kinds
def test_the_users_hooks_fire_and_see_the_edit(kind):
    network, base, source = NETWORKS["llama"], prompts((6, 6), 1), prompts((6, 6), 2)
    edited, seen = edited_model(kind, layer=0), []
    early = network.model.layers[0].register_forward_hook(
        lambda m, a, out: seen.append(("hook", out))
    )
    late = network.model.layers[1].register_forward_pre_hook(
        lambda m, args: seen.append(("pre", args[0]))
    )
    run(edited, base, source)
    early.remove()
    late.remove()
    assert [name for name, _ in seen][-2:] == ["hook", "pre"]
    own = iit.capture(
        edited, base, Site("block_input", layer=1), sources=source if edited.needs_source else None
    )
    close(seen[-1][1], next(iter(own.values())))
