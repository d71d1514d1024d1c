import gc

import pytest
import torch
from torch import nn

import iit
from iit import Edit, IntervenedModel, Site
from tests.families import DECODERS, make, prompts

FAMILIES = ["gpt2", "llama", "gemma3", "qwen3", "gpt_neox"]
COMPONENTS = ["block_input", "block_output", "mlp_output", "attention_output"]
_made = {}


def network_of(family):
    return _made.setdefault(family, make(family))


def logits(network, batch):
    return network(**{k: v for k, v in batch.items() if k not in ("positions", "answer")}).logits


def state(network):
    return {
        "tensors": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in network.modules()
        ],
        "modes": [m.training for m in network.modules()],
        "grads": [p.requires_grad for p in network.parameters()],
        "attributes": [sorted(vars(m)) for m in network.modules()],
        "config": network.config.to_dict(),
    }


def assert_same_state(before, after):
    for name, tensor in before.pop("tensors").items():
        assert torch.equal(tensor, after["tensors"][name]), name
    after.pop("tensors")
    assert before == after


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", COMPONENTS)
def test_vanilla_interchange_equals_raw_hooks(family, component):
    """One position of the base takes the source's activation: oracle with raw hooks on literal
    paths.
    """
    from tests.oracles import raw_hook

    network, base, source = network_of(family), prompts((7, 5), seed=1), prompts((6, 7), seed=2)
    base["positions"], source["positions"] = (
        {"x": torch.tensor([4, 2])},
        {"x": torch.tensor([5, 3])},
    )
    site = Site(component, layer=1, position="x")
    held = []
    handle = raw_hook(network, family, component, 1, None, lambda h: held.append(h.clone()) or h)
    logits(network, source)
    handle.remove()

    def patch(h):
        new = h.clone()
        new[0, 4], new[1, 2] = held[0][0, 5], held[0][1, 3]
        return new

    handle = raw_hook(network, family, component, 1, None, patch)
    expected = logits(network, base)
    handle.remove()
    found = IntervenedModel(network, {site: iit.VanillaIntervention()})(base, source).logits
    torch.testing.assert_close(
        found[base["attention_mask"].bool()],
        expected[base["attention_mask"].bool()],
        atol=1e-5,
        rtol=1e-5,
    )
    assert (found - logits(network, base)).abs().max() > 1e-3


@pytest.mark.parametrize("family", DECODERS)
def test_every_position_of_the_last_block_gives_the_sources_logits(family):
    network, base, source = network_of(family), prompts((6, 6), 1), prompts((6, 6), 2)
    edited = IntervenedModel(network, {Site("block_output", layer=1): iit.VanillaIntervention()})
    torch.testing.assert_close(
        edited(base, source).logits, logits(network, source), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_source_equal_to_base_changes_nothing(family):
    network, base = network_of(family), prompts((6, 4))
    width = 16
    for intervention in (
        iit.VanillaIntervention(),
        iit.LowRankRotatedSpaceIntervention(width, 4),
        iit.RotatedSpaceIntervention(width),
    ):
        edited = IntervenedModel(
            network, {Site("block_output", layer=0, position=[1, 3]): intervention}
        )
        torch.testing.assert_close(
            edited(base, base).logits, logits(network, base), atol=1e-5, rtol=1e-5
        )


def test_a_full_rotation_equals_vanilla_patching(tiny_llama):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    site = Site("block_output", layer=0, position=2)
    rotated = IntervenedModel(tiny_llama, {site: iit.RotatedSpaceIntervention(16)})(
        base, source
    ).logits
    vanilla = IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})(base, source).logits
    torch.testing.assert_close(rotated, vanilla, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_padding_and_batch_do_not_matter(family):
    """Left, right and no padding, alone or in a batch: the same logits, by position and by role."""
    network = network_of(family)
    right = prompts((7, 4), seed=5)
    source = prompts((5, 6), seed=6)
    site = Site("block_output", layer=0, position=-2)
    edited = IntervenedModel(network, {site: iit.VanillaIntervention()})
    together = edited(right, source).logits
    left = {
        "input_ids": torch.stack([right["input_ids"][0], right["input_ids"][1].roll(3)]),
        "attention_mask": torch.stack(
            [right["attention_mask"][0], right["attention_mask"][1].roll(3)]
        ),
    }
    padded_left = edited(left, source).logits
    for row, n in enumerate((7, 4)):
        alone = edited(
            {"input_ids": right["input_ids"][row : row + 1, :n]},
            {"input_ids": source["input_ids"][row : row + 1, : (5, 6)[row]]},
        )
        torch.testing.assert_close(together[row, :n], alone.logits[0], atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(padded_left[row, 7 - n :], alone.logits[0], atol=2e-5, rtol=2e-5)


def test_answer_logits_are_the_full_logits_at_the_answer(tiny_llama):
    base, source = prompts((7, 4), 1), prompts((7, 4), 2)
    site = Site("block_output", layer=0, position="last")
    edited = IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})
    base["answer"] = torch.tensor([[9, 11, 12], [8, -100, -100]])
    found = edited.answer_logits(base, source)
    assert found.shape == (2, 3, 60)
    longer = {
        "input_ids": torch.tensor([[*base["input_ids"][0].tolist(), 9, 11]]),
        "attention_mask": torch.ones(1, 9, dtype=torch.long),
    }
    by_hand = IntervenedModel(
        tiny_llama, {Site("block_output", layer=0, position=6): iit.VanillaIntervention()}
    )
    whole = by_hand(
        longer, {k: v[:1] for k, v in (source | {"positions": {}}).items() if k != "positions"}
    )
    with pytest.raises(AssertionError):
        torch.testing.assert_close(whole.logits[:, 6:9], found[:1] + 1)
    # the source's last token is its seventh, the base's seventh is edited, whatever is
    # teacher-forced after it
    torch.testing.assert_close(found[:1], whole.logits[:, 6:9], atol=1e-5, rtol=1e-5)
    short = edited.answer_logits(
        {k: v[1:] if k != "answer" else v[1:, :1] for k, v in base.items()},
        {k: v[1:] for k, v in source.items()},
    )
    torch.testing.assert_close(found[1:, :1], short, atol=1e-5, rtol=1e-5)


def test_answer_logits_without_tokens_are_class_logits():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    base, source = torch.randn(5, 3), torch.randn(5, 3)
    edited = IntervenedModel(network, {Site(module="1"): iit.VanillaIntervention()})
    torch.testing.assert_close(
        edited.answer_logits((base,), (source,)), network(source).unsqueeze(1)
    )


@pytest.mark.parametrize(
    "activation",
    [torch.randn(5, 1, 4), torch.randn(5, 3), torch.zeros(5, 4, dtype=torch.long)],
    ids=["dimensions", "width", "kind"],
)
def test_a_bare_tensor_unlike_the_networks_input_is_no_input(activation):
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    site = Site(module="1")
    edited = IntervenedModel(network, {site: iit.VanillaIntervention()})
    base = torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"bare tensor of shape.*\(5, 4\).*iit\.Activations"):
        edited(base, {site: activation})
    source = torch.randn(5, 4)
    assert torch.equal(edited(base, {site: source}), network(source)), "alike, it is an input"
    held = iit.capture(network, (source,), site)
    assert torch.equal(edited(base, {site: held}), network(source))


def test_each_variable_has_its_own_source_and_each_source_runs_once(tiny_llama):
    base, a, b = (prompts((6, 6), s) for s in (1, 2, 3))
    runs = []
    handle = tiny_llama.model.layers[0].register_forward_hook(lambda *_: runs.append(1) and None)
    sites = {
        name: Site("block_output", layer=layer, position=p)
        for name, layer, p in (("x", 0, 1), ("y", 1, 2), ("z", 1, 4))
    }
    edited = IntervenedModel(
        tiny_llama, {n: Edit(s, iit.VanillaIntervention()) for n, s in sites.items()}
    )
    out = edited(base, {"x": a, "y": b, "z": a}).logits
    assert len(runs) == 3, "two sources and the base"
    handle.remove()
    given = {
        "x": iit.capture(tiny_llama, a, sites["x"]),
        "y": iit.capture(tiny_llama, b, sites["y"]),
        "z": iit.capture(tiny_llama, a, sites["z"]),
    }
    assert torch.equal(out, edited(base, given).logits)
    only = IntervenedModel(tiny_llama, {sites["y"]: iit.VanillaIntervention()})(base, b).logits
    assert torch.equal(edited(base, {"y": b}, active={"x": False, "z": False}).logits, only)


def test_active_says_which_examples_are_touched(tiny_llama):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    site = Site("block_output", layer=0, position=1)
    edited = IntervenedModel(tiny_llama, {"x": Edit(site, iit.VanillaIntervention())})
    out = edited(base, source, active={"x": torch.tensor([True, False])}).logits
    assert torch.equal(out[0], edited(base, source).logits[0])
    torch.testing.assert_close(out[1], logits(tiny_llama, base)[1], atol=1e-6, rtol=1e-6)


def test_blocks_of_one_rotation_serve_several_variables(tiny_llama):
    base, a, b = (prompts((6, 6), s) for s in (1, 2, 3))
    site = Site("block_output", layer=0, position=2)
    rotation = iit.RotatedSpaceIntervention(16, blocks={"u": 3, "v": 2})
    edited = IntervenedModel(tiny_llama, {site: rotation})
    assert edited.variables == ("u", "v")
    h, s, t = (iit.capture(tiny_llama, x, site)[site] for x in (base, a, b))
    q = rotation.basis.vectors()
    new = h + (s - h) @ q[:, :3] @ q[:, :3].T + (t - h) @ q[:, 3:] @ q[:, 3:].T
    expected = IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})(
        base, iit.Activations({site: new})
    ).logits
    torch.testing.assert_close(
        edited(base, {"u": a, "v": b}).logits, expected, atol=1e-5, rtol=1e-5
    )
    one = edited(base, {"u": a}, active={"v": False}).logits
    new = h + (s - h) @ q[:, :3] @ q[:, :3].T
    expected = IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})(
        base, iit.Activations({site: new})
    ).logits
    torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)


def test_serial_interchanges(tiny_llama):
    """A source run that is itself intervened on: by hand, the inner edit's later activation goes
    into the outer base.
    """
    base, source, third = (prompts((6, 6), s) for s in (1, 2, 3))
    early, later = (
        Site("block_output", layer=0, position=1),
        Site("block_output", layer=1, position=4),
    )
    inner = IntervenedModel(tiny_llama, {early: iit.VanillaIntervention()})
    outer = IntervenedModel(tiny_llama, {later: iit.VanillaIntervention()})
    serial = outer(base, iit.capture(inner, source, [later], sources=third)).logits
    held = {}
    handles = [
        tiny_llama.model.layers[0].register_forward_hook(
            lambda m, a, o: held.update(third=o.clone()) and None
        )
    ]
    logits(tiny_llama, third)
    handles[0].remove()

    def patch_early(m, a, o):
        o = o.clone()
        o[:, 1] = held["third"][:, 1]
        return o

    handles = [
        tiny_llama.model.layers[0].register_forward_hook(patch_early),
        tiny_llama.model.layers[1].register_forward_hook(
            lambda m, a, o: held.update(later=o.clone()) and None
        ),
    ]
    logits(tiny_llama, source)
    for handle in handles:
        handle.remove()

    def patch_later(m, a, o):
        o = o.clone()
        o[:, 4] = held["later"][:, 4]
        return o

    handle = tiny_llama.model.layers[1].register_forward_hook(patch_later)
    torch.testing.assert_close(serial, logits(tiny_llama, base), atol=1e-6, rtol=1e-6)
    handle.remove()


def test_several_sites_share_weights_but_not_activations(tiny_llama):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    sites = [Site("block_output", layer=layer, position=2) for layer in (0, 1)]
    shared = iit.LowRankRotatedSpaceIntervention(16, 3)
    edited = IntervenedModel(tiny_llama, {"x": Edit(sites, shared)})
    assert len(list(edited.parameters())) == 1
    first = IntervenedModel(tiny_llama, {sites[0]: shared})
    second = IntervenedModel(tiny_llama, {sites[1]: shared})
    acts = iit.capture(tiny_llama, source, sites)
    mid = iit.capture(first, base, [sites[1]], sources=source)[sites[1]]
    new = shared(mid, acts[sites[1]])
    both = IntervenedModel(tiny_llama, {sites[0]: shared, sites[1]: iit.VanillaIntervention()})
    expected = both(base, {sites[0]: acts, sites[1]: iit.Activations({sites[1]: new})}).logits
    torch.testing.assert_close(edited(base, source).logits, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(edited(base, source).logits, second(base, source).logits)


def test_joint_concatenates_positions(tiny_llama):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    site = Site("block_output", layer=0, position=[1, 3])
    joint = iit.LowRankRotatedSpaceIntervention(32, 5)
    edited = IntervenedModel(tiny_llama, {"x": Edit(site, joint, joint=True)})
    h, s = (iit.capture(tiny_llama, x, site)[site].reshape(2, 1, 32) for x in (base, source))
    new = joint(h, s).reshape(2, 2, 16)
    expected = IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})(
        base, iit.Activations({site: new})
    ).logits
    torch.testing.assert_close(edited(base, source).logits, expected, atol=1e-5, rtol=1e-5)


def test_skip_leaves_a_block_out(tiny_llama):
    batch = prompts((6, 6))
    edited = IntervenedModel(tiny_llama, {Site("block_output", layer=0): iit.SkipIntervention()})
    expected = IntervenedModel(
        tiny_llama,
        {
            Site("block_output", layer=0): iit.LambdaIntervention(
                lambda h: tiny_llama.model.embed_tokens(batch["input_ids"])
            )
        },
    )
    torch.testing.assert_close(edited(batch).logits, expected(batch).logits)


def test_run_tells_what_edits_saw(tiny_llama):
    batch = prompts((6, 6))
    site = Site("block_output", layer=0, position=[1, 2])
    run = IntervenedModel(tiny_llama, {"x": Edit(site, iit.CollectIntervention())}).run(batch)
    assert torch.equal(run.activations["x"], iit.capture(tiny_llama, batch, site)[site])
    assert torch.equal(run.output.logits, run.base_output.logits)


def test_gradients_reach_the_intervention_and_through_the_source_only_if_asked(tiny_llama):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    site = Site("block_output", layer=0, position=2)
    network = make("llama").requires_grad_(True)
    grads = {}
    for through in (False, True):
        network.zero_grad()
        edited = IntervenedModel(
            network, {site: iit.LowRankRotatedSpaceIntervention(16, 4)}, source_grad=through
        )
        edited.answer_logits(base, source).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in edited.parameters())
        grads[through] = network.model.embed_tokens.weight.grad.clone()
    only_source = [t for t in set(source["input_ids"][0].tolist()) if t not in base["input_ids"]]
    assert only_source
    assert float(grads[False][only_source].abs().sum()) == 0.0
    assert float(grads[True][only_source].abs().sum()) > 0.0


def test_the_network_is_as_before_also_after_exceptions(tiny_llama):
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    site = Site("block_output", layer=0, position=2)
    before = state(tiny_llama)
    IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})(base, source)
    assert_same_state(dict(before), state(tiny_llama))

    def fail(h):
        raise KeyError("in the edit")

    with pytest.raises(KeyError, match="in the edit"):
        IntervenedModel(tiny_llama, {site: iit.LambdaIntervention(fail)})(base)
    assert_same_state(dict(before), state(tiny_llama))

    def user_hook(*_):
        raise RuntimeError("of the user")

    handle = tiny_llama.model.layers[1].register_forward_hook(user_hook)
    with pytest.raises(RuntimeError, match="of the user"):
        IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})(base, source)
    handle.remove()
    assert_same_state(before, state(tiny_llama))


def test_user_hooks_stay_and_fire(tiny_llama):
    fired = []
    handle = tiny_llama.model.layers[1].mlp.register_forward_hook(
        lambda *_: fired.append(1) and None
    )
    edited = IntervenedModel(tiny_llama, {Site("mlp_output", layer=1): iit.ZeroIntervention()})
    edited(prompts())
    edited(prompts())
    assert len(fired) == 2
    handle.remove()


def test_calls_do_not_remember_each_other(tiny_llama):
    """A single location, then one for each example, then the first again."""
    base, source = prompts((6, 6), 1), prompts((6, 6), 2)
    edited = IntervenedModel(
        tiny_llama,
        {"x": Edit(Site("block_output", layer=0, position="r"), iit.VanillaIntervention())},
    )
    same = [x | {"positions": {"r": torch.tensor([2, 2])}} for x in (base, source)]
    own = [x | {"positions": {"r": torch.tensor([1, 4])}} for x in (base, source)]
    first, second, again = edited(*same).logits, edited(*own).logits, edited(*same).logits
    assert torch.equal(first, again)
    for row, position in enumerate((1, 4)):
        alone = IntervenedModel(
            tiny_llama,
            {Site("block_output", layer=0, position=position): iit.VanillaIntervention()},
        )
        torch.testing.assert_close(
            second[row], alone(base, source).logits[row], atol=1e-6, rtol=1e-6
        )


def test_the_network_is_outside_of_the_module(tiny_llama):
    edited = IntervenedModel(
        tiny_llama, {Site("block_output", layer=0): iit.LowRankRotatedSpaceIntervention(16, 4)}
    )
    assert [tuple(p.shape) for p in edited.parameters()] == [(16, 4)]
    assert list(edited.state_dict()) == ["interventions.0.basis.weight"]
    edited.train()
    assert not tiny_llama.training
    gc.collect()


@pytest.mark.parametrize("size", [0, 1])
def test_empty_and_single_batches(size):
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    edited = IntervenedModel(network, {Site(module="0"): iit.LowRankRotatedSpaceIntervention(4, 2)})
    assert edited(torch.randn(size, 3), torch.randn(size, 3)).shape == (size, 2)


def _edited(network, position=2, intervention=None, **kwargs):
    return IntervenedModel(
        network,
        {
            "x": Edit(
                Site("block_output", layer=0, position=position),
                intervention or iit.VanillaIntervention(),
                **kwargs,
            )
        },
    )


def test_bad_input_is_refused_before_the_forward(tiny_llama):
    base, source = prompts((6, 4), 1), prompts((6, 4), 2)
    runs = []
    handle = tiny_llama.model.embed_tokens.register_forward_hook(lambda *_: runs.append(1) and None)
    free = iit.AdditionIntervention(torch.zeros(16))
    cases = [
        (lambda: _edited(tiny_llama)(base), "'x'.*needs a source"),
        (lambda: _edited(tiny_llama, intervention=free)(base, source), "no intervention reads one"),
        (
            lambda: _edited(tiny_llama, intervention=free)(base, {"x": source}),
            "x: a source is given.*reads none",
        ),
        (lambda: _edited(tiny_llama)(base, {"y": source}), r"\['y'\].*variables are \['x'\]"),
        (lambda: _edited(tiny_llama)(base, source, active={"y": True}), "'y'.*'x'"),
        (
            lambda: _edited(tiny_llama)(base, source, active={"x": torch.tensor([True] * 3)}),
            r"\(3,\).*2 examples",
        ),
        (
            lambda: _edited(tiny_llama, 4)(base, source),
            "position 4 is outside example 1.*4 positions",
        ),
        (lambda: _edited(tiny_llama, -5)(base, source), "position -5 is outside example 1"),
        (lambda: _edited(tiny_llama, [1, -5])(base, source), "outside example 1"),
        (lambda: _edited(tiny_llama, [1, -3])(base, source), "occurs twice in example 1"),
        (lambda: _edited(tiny_llama, "s2")(base, source), "no role 's2'"),
        (lambda: _edited(tiny_llama)(base, prompts((5, 5, 5))), "3 examples, the base 2"),
        (
            lambda: _edited(tiny_llama)(base | {"atention_mask": 1}, source),
            "takes no input 'atention_mask'",
        ),
        (
            lambda: _edited(tiny_llama, "r")(base | {"positions": {"r": [[1], [-100]]}}, source),
            "absent in example 1",
        ),
        (
            lambda: _edited(tiny_llama, "r")(base | {"positions": {"r": [[1], [5]]}}, source),
            "'r': position 5 is outside example 1.*4 positions",
        ),
        (
            lambda: _edited(tiny_llama, "r")(
                base | {"positions": {"r": [[1, 2], [1, -100]]}},
                source | {"positions": {"r": [[1, 2], [1, 2]]}},
            ),
            "example 1.*1 positions in the base and 2 in the source",
        ),
        (
            lambda: _edited(tiny_llama, None)(base, prompts((6, 5))),
            "example 1.*4 positions in the base and 5",
        ),
        (
            lambda: _edited(tiny_llama)(base, {"x": torch.zeros(2, 2, 16)}),
            r"\(2, 2, 16\); expected \[2, 1, 16\]",
        ),
        (
            lambda: _edited(tiny_llama, intervention=iit.LowRankRotatedSpaceIntervention(12, 2)),
            "width 16.*width 12",
        ),
        (lambda: IntervenedModel(tiny_llama, {"x": iit.VanillaIntervention()}), "needs an `Edit"),
        (
            lambda: _edited(tiny_llama)(
                {
                    "input_ids": base["input_ids"],
                    "attention_mask": torch.tensor([[1, 0, 1, 1, 1, 1]] * 2),
                },
                source,
            ),
            "holes",
        ),
        (
            lambda: _edited(tiny_llama)(base | {"attention_mask": torch.zeros(2, 6)}, source),
            "no real token",
        ),
    ]
    for call, said in cases:
        with pytest.raises(ValueError, match=said):
            call()
    assert not runs
    handle.remove()


def test_modules_that_run_twice_or_never_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.a(self.a(x))

    with pytest.raises(RuntimeError, match="more than once"):
        IntervenedModel(Twice(), {Site(module="a"): iit.ZeroIntervention()})(torch.zeros(1, 2))
    with pytest.raises(RuntimeError, match="more than once"):
        iit.capture(Twice(), torch.zeros(1, 2), Site(module="a"))
    with pytest.raises(RuntimeError, match="never ran"):
        IntervenedModel(Twice(), {Site(module="b"): iit.ZeroIntervention()})(torch.zeros(1, 2))


def test_a_store_runs_each_source_prompt_once(tiny_llama):
    base, source = prompts((6, 5, 6), 1), prompts((6, 5, 6), 2)
    edited = _edited(tiny_llama, -2)
    expected = edited(base, source).logits
    edited.store = iit.intervened.ActivationStore(tiny_llama)
    torch.testing.assert_close(edited(base, source).logits, expected, atol=1e-6, rtol=1e-6)
    assert len(edited.store) == 3
    calls = []
    import iit.intervened.store as module

    real = module.observe
    module.observe = lambda *a, **k: calls.append(1) or real(*a, **k)
    try:
        flipped = {k: v.flip(0) for k, v in source.items()}
        torch.testing.assert_close(
            edited({k: v.flip(0) for k, v in base.items()}, flipped).logits.flip(0),
            expected,
            atol=1e-6,
            rtol=1e-6,
        )
        assert not calls
        with torch.no_grad():
            tiny_llama.model.norm.weight.add_(0.0)  # an in-place change: what was kept is stale
        edited(base, source)
        assert calls
    finally:
        module.observe = real


def test_an_inactive_block_leaves_the_other_blocks_source_alone(tiny_llama):
    """Both blocks read the same role of the same source; only one of them is asked where that
    is.
    """
    site = Site("block_output", layer=0, position="r")
    both = IntervenedModel(
        tiny_llama, {site: iit.RotatedSpaceIntervention(16, blocks={"u": 2, "v": 3})}
    )
    base, source = prompts((6, 5), 1), prompts((6, 5), 2)
    base["positions"] = source["positions"] = {"r": torch.tensor([2, 3])}
    for idle, other in (("u", "v"), ("v", "u")):
        expected = both(base, {other: source}, {idle: False}).logits
        torch.testing.assert_close(both(base, source, {idle: False}).logits, expected)


def test_without_edits_it_is_the_network(tiny_llama):
    edited, base = IntervenedModel(tiny_llama, {}), prompts((6, 4))
    torch.testing.assert_close(edited(base).logits, tiny_llama(**base).logits)
    with pytest.raises(ValueError, match="no intervention reads one"):
        edited(base, base)
