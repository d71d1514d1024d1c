import json
import pickle
import shutil
import warnings

import pytest
import torch

import iit
from tests.families import make, prompts
from tests.seeds import shifted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pyvene as pv

pytestmark = pytest.mark.filterwarnings("ignore")
BASE, SOURCE = prompts((6, 6), 1), prompts((6, 6), 2)
PLACES = [[2], [4]], [[1], [3]]  # of two examples: in the base, in the source
ROLE = {"positions": {"r": torch.tensor([2, 4])}}, {"positions": {"r": torch.tensor([1, 3])}}


def spec(component="block_output", layer=1, unit="pos", n=1, **kwargs):
    return {
        "layer": layer,
        "component": component,
        "unit": unit,
        "max_number_of_units": n,
        **kwargs,
    }


def saved(folder, net, specs, kind, change=lambda intervention: None):
    """What pyvene saves after its rotations have moved from where they start, and the model that it
    saved.
    """
    torch.manual_seed(shifted(3))
    model = pv.IntervenableModel(
        pv.IntervenableConfig([pv.RepresentationConfig(**r) for r in specs], kind), net
    )
    for intervention in dict.fromkeys(model.interventions.values()):
        for name, parameter in intervention.named_parameters():
            if name.startswith("rotate_layer"):  # the diagonal of its parametrization holds signs
                parameter.data.add_((0.3 * torch.randn_like(parameter)).tril(-1))
        change(intervention)
    model.save(str(folder))
    return model


def theirs(model, sources, base=None, **kwargs):
    """pyvene's logits. sources, base: the locations of each representation, as pyvene wants
    them.
    """
    locations = {"sources->base": (sources, base if base is not None else sources)}
    given = [SOURCE if location is not None else None for location in sources]
    return model(BASE, given, locations, **kwargs)[1].logits


def ours(folder, net, positions, sources=SOURCE, **kwargs):
    edited = iit.IntervenedModel.from_pyvene(folder, net, positions, **kwargs)
    return edited(BASE | ROLE[0], sources | ROLE[1] if sources is not None else None).logits


def check(found, expected, net):
    assert not torch.allclose(expected, net(**BASE).logits, atol=1e-2), (
        "the intervention does something"
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


COMPONENTS = (
    *(
        "block_input",
        "block_output",
        "mlp_input",
        "mlp_activation",
        "mlp_output",
        "attention_input",
        "attention_output",
    ),
    *("attention_value_output", "query_output", "key_output", "value_output"),
)


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "mistral", "qwen2", "gemma", "gemma2", "gpt_neo", "gpt_neox"]
)
def test_every_component_gives_pyvenes_logits(family, tmp_path):
    net = make(family)
    done = []
    for component in COMPONENTS:
        try:
            model = saved(tmp_path / component, net, [spec(component)], pv.VanillaIntervention)
        except (KeyError, AttributeError):
            continue  # a component that pyvene itself lacks, or looks for in the wrong place
        places = PLACES if component != "key_output" else ([[2], [2]], [[1], [3]])
        expected = theirs(model, [places[1]], [places[0]])
        edited = iit.IntervenedModel.from_pyvene(tmp_path / component, net, ["r"])
        base = BASE | {"positions": {"r": torch.tensor(places[0])}}
        check(edited(base, SOURCE | ROLE[1]).logits, expected, net)
        done.append(component)
    assert len(done) >= 7
    if family in ("gpt2", "llama"):
        assert tuple(done) == COMPONENTS


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "component", ["block_output", "mlp_activation", "attention_value_output", "query_output"]
)
def test_trained_rotations_give_pyvenes_logits(family, component, tmp_path):
    net = make(family)
    low = saved(
        tmp_path / "low",
        net,
        [spec(component, low_rank_dimension=3)],
        pv.LowRankRotatedSpaceIntervention,
    )
    check(ours(tmp_path / "low", net, ["r"]), theirs(low, [PLACES[1]], [PLACES[0]]), net)
    part = saved(
        tmp_path / "part",
        net,
        [spec(component)],
        pv.RotatedSpaceIntervention,
        lambda i: i.set_interchange_dim(5),
    )
    check(ours(tmp_path / "part", net, {"x": "r"}), theirs(part, [PLACES[1]], [PLACES[0]]), net)
    back = iit.Alignment.from_pyvene(tmp_path / "part", net, {"x": "r"})
    assert back.variables == ("x",)
    assert back.edits["x"].intervention.rank == 5
    back.save_pretrained(tmp_path / "ours")
    again = iit.Alignment.from_pretrained(tmp_path / "ours", net)
    torch.testing.assert_close(
        again(BASE | ROLE[0], SOURCE | ROLE[1]).logits,
        theirs(part, [PLACES[1]], [PLACES[0]]),
        atol=1e-4,
        rtol=1e-4,
    )


def trained(folder, net, optimizer):
    torch.manual_seed(shifted(0))
    specs = [pv.RepresentationConfig(**spec(layer=0, low_rank_dimension=2))]
    model = pv.IntervenableModel(
        pv.IntervenableConfig(specs, pv.LowRankRotatedSpaceIntervention), net
    )
    steps = optimizer(model.get_trainable_parameters(), lr=0.05)
    losses = []
    for _ in range(10):
        loss = -theirs(model, [PLACES[1]], [PLACES[0]])[:, -1, 7].mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    model.save(str(folder))
    return model, losses


def test_a_training_of_pyvenes_own_is_carried_over(tmp_path):
    net = make("gpt2")
    model, losses = trained(tmp_path, net, torch.optim.Adam)
    assert losses[-1] < losses[0] - 0.01
    check(ours(tmp_path, net, ["r"]), theirs(model, [PLACES[1]], [PLACES[0]]), net)


def test_a_training_with_weight_decay_has_zeroed_pyvenes_low_rank_rotation(tmp_path):
    net = make("gpt2")
    model, _ = trained(tmp_path, net, torch.optim.AdamW)
    torch.testing.assert_close(theirs(model, [PLACES[1]], [PLACES[0]]), net(**BASE).logits)
    with pytest.raises(
        ValueError, match="2 of the 2 columns of its rotation are zero, in pyvene, too"
    ):
        ours(tmp_path, net, ["r"])


@pytest.mark.parametrize(
    "kind", [pv.AdditionIntervention, pv.SubtractionIntervention, pv.VanillaIntervention]
)
def test_localist_ones_with_a_source_or_a_vector(kind, tmp_path):
    net = make("llama")
    model = saved(tmp_path / "source", net, [spec()], kind)
    check(ours(tmp_path / "source", net, ["r"]), theirs(model, [PLACES[1]], [PLACES[0]]), net)
    given = torch.randn(16, generator=torch.Generator().manual_seed(shifted(1)))
    model = saved(tmp_path / "vector", net, [spec(source_representation=given)], kind)
    expected = model(BASE, unit_locations={"base": [PLACES[0]]})[1].logits
    check(ours(tmp_path / "vector", net, ["r"], None), expected, net)


def test_zero_and_some_units(tmp_path):
    net = make("gpt2")
    model = saved(tmp_path / "zero", net, [spec("mlp_output")], pv.ZeroIntervention)
    check(
        ours(tmp_path / "zero", net, [[1, 4]], None),
        model(BASE, unit_locations={"base": [[[1, 4]] * 2]})[1].logits,
        net,
    )
    model = saved(
        tmp_path / "units",
        net,
        [spec()],
        pv.VanillaIntervention,
        lambda i: i.set_interchange_dim(6),
    )
    check(ours(tmp_path / "units", net, ["r"]), theirs(model, [PLACES[1]], [PLACES[0]]), net)


def test_collected_activations(tmp_path):
    net = make("gpt2")
    model = saved(tmp_path, net, [spec("mlp_output", n=2)], pv.CollectIntervention)
    expected = torch.stack(model(BASE, unit_locations={"base": [[[1, 4]] * 2]})[0][1])
    seen = (
        iit.IntervenedModel.from_pyvene(tmp_path, net, {"seen": [1, 4]})
        .run(BASE)
        .activations["seen"]
    )
    torch.testing.assert_close(seen.flatten(), expected.flatten(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_several_positions_are_one_vector_for_rotations(family, tmp_path):
    net = make(family)
    model = saved(
        tmp_path, net, [spec(n=2, low_rank_dimension=3)], pv.LowRankRotatedSpaceIntervention
    )
    check(ours(tmp_path, net, [[4, 1]]), theirs(model, [[[4, 1]] * 2]), net)
    for wrong in (None, 2, [1, 2, 3]):
        with pytest.raises(
            ValueError, match="edits 2 positions as one vector; its position is a role or 2 indices"
        ):
            ours(tmp_path, net, [wrong])


HEADS = ("attention_value_output", "query_output", "key_output", "value_output")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("component", [f"head_{name}" for name in HEADS])
def test_heads(family, component, tmp_path):
    net = make(family)
    head = 1
    model = saved(tmp_path / "v", net, [spec(component, unit="h.pos")], pv.VanillaIntervention)
    expected = theirs(model, [[[[head]] * 2, [[3]] * 2]])
    check(ours(tmp_path / "v", net, [3], heads=[head]), expected, net)
    wide = {"unit": "h.pos", "n": 2, "low_rank_dimension": 3}
    model = saved(
        tmp_path / "r", net, [spec(component, **wide)], pv.LowRankRotatedSpaceIntervention
    )
    expected = theirs(model, [[[[1, 0]] * 2, [[3]] * 2]])
    check(ours(tmp_path / "r", net, [3], heads=[[1, 0]]), expected, net)


def test_modules_by_path(tmp_path):
    net = make("llama")
    for path, width in (("model.layers[0].mlp.up_proj.output", 24), ("model.layers[1].input", 16)):
        made = pv.LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=3)
        representation = {
            "component": path,
            "unit": "pos",
            "max_number_of_units": 1,
            "intervention": made,
        }
        model = saved(tmp_path / path, net, [representation], pv.LowRankRotatedSpaceIntervention)
        check(ours(tmp_path / path, net, ["r"]), theirs(model, [PLACES[1]], [PLACES[0]]), net)


def test_several_representations_and_shared_weights(tmp_path):
    net = make("gpt2")
    specs = [
        spec(layer=0, low_rank_dimension=3),
        spec(layer=1, low_rank_dimension=3),
        spec(layer=1, low_rank_dimension=2),
    ]
    model = saved(tmp_path / "three", net, specs, pv.LowRankRotatedSpaceIntervention)
    expected = theirs(model, [[[1]] * 2, [[2]] * 2, [[2]] * 2])
    check(ours(tmp_path / "three", net, {"a": 1, "b": 2, "c": 2}), expected, net)
    with pytest.raises(
        ValueError, match=r"at the site of another one, block_output\[1\] @ 2; name them"
    ):
        ours(tmp_path / "three", net, [1, 2, 2])
    linked = [spec(layer=layer, low_rank_dimension=3, intervention_link_key=0) for layer in (0, 1)]
    model = saved(tmp_path / "linked", net, linked, pv.LowRankRotatedSpaceIntervention)
    edited = iit.IntervenedModel.from_pyvene(tmp_path / "linked", net, {"a": 1, "b": 2})
    assert edited.edits["a"].intervention is edited.edits["b"].intervention
    # pyvene's own second site gets the first one's output: only one of them at a time is right
    # there
    for sources, active in (([[[1]] * 2, None], {"b": False}), ([None, [[2]] * 2], {"a": False})):
        check(
            edited(BASE, SOURCE, active).logits, theirs(model, sources, [[[1]] * 2, [[2]] * 2]), net
        )


@pytest.mark.parametrize("kind", [pv.LowRankRotatedSpaceIntervention, pv.RotatedSpaceIntervention])
def test_a_subspace_partition_becomes_blocks(kind, tmp_path):
    net = make("gpt2")
    partition = [[0, 2], [4, 2, 3]]
    model = saved(tmp_path, net, [spec(low_rank_dimension=5, subspace_partition=partition)], kind)
    edited = iit.IntervenedModel.from_pyvene(tmp_path, net, {("u", "v"): "r"})
    base, source = BASE | ROLE[0], SOURCE | ROLE[1]
    for chosen, active in (([0], {"v": False}), ([1], {"u": False})):
        expected = theirs(model, [PLACES[1]], [PLACES[0]], subspaces=[[chosen] * 2])
        check(edited(base, source, active).logits, expected, net)
    for names in (["r"], {"u": "r"}, {("u",): "r"}, {("u", "u"): "r"}):
        with pytest.raises(ValueError, match="has 2 subspaces: give as many different names"):
            ours(tmp_path, net, names)


REFUSED = {
    "boundless": (
        [spec()],
        pv.BoundlessRotatedSpaceIntervention,
        "never swapped by more than half",
    ),
    "sigmoid": ([spec()], pv.SigmoidMaskIntervention, "stays soft in evaluation"),
    "skip": ([spec()], pv.SkipIntervention, "passes on the base's own"),
    "unit": ([spec(unit="t")], pv.VanillaIntervention, "has the unit 't'; carried over are 'pos'"),
    "expert": ([spec(moe_key=1)], pv.VanillaIntervention, "moe_key"),
    "weights": (
        [spec("attention_weight")],
        pv.VanillaIntervention,
        "this component is not carried over; those that are",
    ),
    "partition": (
        [spec(subspace_partition=[[0, 2]])],
        pv.VanillaIntervention,
        "has 1 subspaces|is carried over for Rotated",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_carried_over_exactly_is_refused(name, tmp_path):
    specs, kind, said = REFUSED[name]
    net = make("gpt2")
    saved(tmp_path, net, [r if "moe_key" not in r else r | {"moe_key": None} for r in specs], kind)
    if name == "expert":
        rewrite(tmp_path, lambda c: c["representations"][0].__setitem__(10, 1))
    with pytest.raises(ValueError, match=said):
        ours(tmp_path, net, ["r"])


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_what_the_caller_has_to_say(tmp_path):
    net = make("gpt2")
    saved(tmp_path / "two", net, [spec(layer=0), spec(layer=1)], pv.VanillaIntervention)
    with pytest.raises(
        ValueError, match="has 2 representations and needs as many positions; got 1"
    ):
        ours(tmp_path / "two", net, ["r"])
    with pytest.raises(ValueError, match="has the unit 'pos' and has no heads; heads: 2"):
        ours(tmp_path / "two", net, [1, 2], heads=[2, None])
    rewrite(tmp_path / "two", lambda c: c.update(mode="serial"))
    with pytest.raises(ValueError, match="mode 'serial'"):
        ours(tmp_path / "two", net, [1, 2])
    rewrite(
        tmp_path / "two",
        lambda c: c.update(mode="parallel", model_type="<class 'transformers.x.LlamaForCausalLM'>"),
    )
    with pytest.raises(
        ValueError, match="saved for LlamaForCausalLM, the network is GPT2LMHeadModel"
    ):
        ours(tmp_path / "two", net, [1, 2])
    saved(
        tmp_path / "heads", net, [spec("head_query_output", unit="h.pos")], pv.VanillaIntervention
    )
    with pytest.raises(ValueError, match=r"unit 'h\.pos' and needs heads"):
        ours(tmp_path / "heads", net, [1])
    with pytest.raises(ValueError, match="components of the family 'bert' are not carried over"):
        ours(tmp_path / "heads", make("bert"), [1], heads=[1])
    saved(
        tmp_path / "wide",
        make("llama"),
        [spec("mlp_activation", low_rank_dimension=2)],
        pv.LowRankRotatedSpaceIntervention,
    )
    with pytest.raises(ValueError, match="has width 64, its intervention was made for width 24"):
        ours(tmp_path / "wide", net, [1])


def test_damaged_folders_are_refused_and_nothing_is_run(tmp_path):
    net = make("gpt2")
    good = tmp_path / "good"
    saved(good, net, [spec(low_rank_dimension=3)], pv.LowRankRotatedSpaceIntervention)
    name = next(p.name for p in good.iterdir() if p.suffix == ".bin")
    state = torch.load(good / name, weights_only=True)
    weight = "rotate_layer.parametrizations.weight.original"

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    def broken(write):
        folder = shutil.copytree(good, tmp_path / "broken", dirs_exist_ok=True)
        write(folder)
        return folder

    def holding(changed):
        return lambda folder: torch.save(changed, folder / name)

    dead = state[weight].clone()
    dead[1, 1] = -0.999
    cases = {
        "holds more than tensors": lambda f: (f / name).write_bytes(pickle.dumps({"x": Bomb()})),
        "is damaged": lambda f: (f / name).write_bytes((good / name).read_bytes()[:-200]),
        "not orthonormal .* or not finite": holding(state | {weight: state[weight] * torch.nan}),
        "1 of the 3 columns of its rotation are zero": holding(state | {weight: dead}),
        "not as torch's orthogonal parametrization keeps them": holding(
            {k: v for k, v in state.items() if "base" not in k}
        ),
        "interchange dimension is 16 in config.json, 3 in the weights": holding(
            state | {"interchange_dim": torch.tensor(3)}
        ),
        "is not as pyvene 0.1 saves it": lambda f: (f / "config.json").write_text("{}"),
        r"is not as pyvene 0.1 saves it.*intervention_types has 2 entries": lambda f: rewrite(
            f, lambda c: c.update(intervention_types=["a", "b"])
        ),
    }
    for said, write in cases.items():
        with pytest.raises(ValueError, match=said):
            ours(broken(write), net, ["r"])
    assert not (tmp_path / "ran").exists()
    for missing in (name, "config.json"):
        with pytest.raises(FileNotFoundError, match="is missing"):
            ours(broken(lambda f, missing=missing: (f / missing).unlink()), net, ["r"])
