import json
import shutil
import subprocess
import sys

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from iit.intervention import All, Basis, Coordinates, Identity, Intervention, Operation, SoftGate
from iit.intervention.operation import Swap
from iit.result import ROW_FIELDS, Row
from tests import seeds
from tests.families import make, prompts
from tests.intervention.test_intervention import MAKERS
from tests.seeds import shifted

SITE = Site("mlp_activation", layer=1, position=[1, -1])


def network():
    """Its MLP activations are as wide as the interventions of the other test."""
    import transformers as t

    torch.manual_seed(shifted(0))
    sizes = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 8,
    }
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return t.LlamaForCausalLM(t.LlamaConfig(**sizes, **tokens)).eval().requires_grad_(False)


def edited_with(name, net):
    torch.manual_seed(shifted(1))
    intervention = MAKERS[name]()
    return IntervenedModel(
        net, {"x" if not intervention.blocks else SITE: Edit(SITE, intervention)}
    ).eval()


def logits(edited):
    base, source = prompts((6, 5), 1), prompts((6, 5), 2)
    return edited(base, source if edited.needs_source else None).logits


@pytest.mark.parametrize("name", MAKERS)
def test_saved_and_loaded_gives_the_same_bits(name, tmp_path):
    net = network()
    edited = edited_with(name, net)
    edited.save_pretrained(tmp_path / "saved")
    back = IntervenedModel.from_pretrained(tmp_path / "saved", network())
    assert back.variables == edited.variables
    assert torch.equal(logits(back), logits(edited))
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "config.json",
        "interventions.safetensors",
    ]


def test_a_fresh_process_gives_the_same_bits_for_every_type(tmp_path):
    expected = {}
    for name in MAKERS:
        edited = edited_with(name, network())
        for intervention in edited.interventions:  # away from where a training starts
            for parameter in intervention.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            if isinstance(intervention.gate, SoftGate):
                intervention.gate.temperature.fill_(0.7)
        edited.save_pretrained(tmp_path / name)
        expected[name] = logits(edited)
    code = (
        "import sys, torch; sys.path.insert(0, '.'); from tests import seeds\n"
        f"seeds.SEED = {seeds.SEED}\n"
        "from tests.intervened.test_saving import *\n"
        f"found = {{name: IntervenedModel.from_pretrained(f'{tmp_path}/{{name}}', network()) for "
        f"name in MAKERS}}\n"
        f"torch.save({{name: logits(edited) for name, edited in found.items()}}, "
        f"{str(tmp_path / 'out.pt')!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert [name for name in MAKERS if not torch.equal(found[name], expected[name])] == []


def test_a_gates_temperature_and_mode_survive(tmp_path):
    edited = edited_with("boundless", network())
    edited.interventions[0].gate.temperature.fill_(0.7)
    edited.save_pretrained(tmp_path / "s")
    back = IntervenedModel.from_pretrained(tmp_path / "s", network())
    assert not back.training
    assert not any(module.training for module in back.modules())
    assert torch.equal(logits(back.train()), logits(edited.train()))
    edited.interventions[0].gate.temperature.fill_(2.0)
    assert not torch.equal(logits(back), logits(edited))


def test_a_network_in_bf16_and_weights_in_fp64(tmp_path):
    for name, dtype in (
        ("low_rank", torch.float32),
        ("autoencoder", torch.float32),
        ("pca", torch.float64),
    ):
        net = network().to(torch.bfloat16)
        edited = edited_with(name, net).to(dtype)
        edited.save_pretrained(tmp_path / name)
        back = IntervenedModel.from_pretrained(tmp_path / name, network().to(torch.bfloat16))
        assert {t.dtype for t in back.state_dict().values() if t.is_floating_point()} == {dtype}
        assert torch.equal(logits(back), logits(edited))
    with pytest.raises(ValueError, match="dtype: saved for 'bfloat16', given 'float32'"):
        IntervenedModel.from_pretrained(tmp_path / "pca", network())


def test_everything_an_edit_says_survives(tmp_path):
    both = iit.RotatedSpaceIntervention(16, {"u": 2, "v": 3})
    residual = [
        Site("block_output", layer=layer, position=p) for layer, p in ((0, -1), (1, "role"))
    ]
    edits = {
        "several": Edit(
            residual,
            both,
            source_sites=[Site("block_output", layer=0, position=p) for p in (0, "role")],
        ),
        "joint": Edit(
            Site("block_input", layer=1, position=[2, 0]),
            iit.LowRankRotatedSpaceIntervention(32, 4),
            joint=True,
        ),
        Site("query_output", layer=0, head=[3, 1]): Edit(
            Site("query_output", layer=1, head=2), iit.ZeroIntervention()
        ),
        Site(module="model.layers.0.mlp.act_fn", side="output", position=-1): iit.NoiseIntervention(
            0.1, seed=4
        ),
    }
    edited = IntervenedModel(network(), edits, source_grad=True)
    edited.save_pretrained(tmp_path / "s")
    back = IntervenedModel.from_pretrained(tmp_path / "s", network())
    assert list(back.edits) == list(edited.edits)
    assert back.variables == edited.variables
    assert back.source_grad is True
    for key, edit in edited.edits.items():
        there = back.edits[key]
        assert (there.sites, there.source_sites, there.joint) == (
            edit.sites,
            edit.source_sites,
            edit.joint,
        )
        assert there.intervention.config() == edit.intervention.config()


def test_shared_weights_stay_shared(tmp_path):
    net = network()
    shared = iit.LowRankRotatedSpaceIntervention(16, 2)
    sites = [Site("block_output", layer=layer, position=1) for layer in (0, 1)]
    IntervenedModel(
        net, {"a": Edit(sites[0], shared), "b": Edit(sites[1], shared)}
    ).save_pretrained(tmp_path / "s")
    back = IntervenedModel.from_pretrained(tmp_path / "s", net)
    assert back.edits["a"].intervention is back.edits["b"].intervention


def test_another_network_is_refused(tmp_path):
    edited_with("low_rank", network()).save_pretrained(tmp_path / "s")
    with pytest.raises(
        ValueError,
        match=r"another network \(class: saved for 'LlamaForCausalLM', given 'GPT2LMHeadModel'",
    ):
        IntervenedModel.from_pretrained(tmp_path / "s", make("gpt2"))
    other = network()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    with pytest.raises(ValueError, match="same shape, other weights"):
        IntervenedModel.from_pretrained(tmp_path / "s", other)
    IntervenedModel.from_pretrained(tmp_path / "s", other, check_network=False)


def test_damaged_folders_are_refused(tmp_path):
    net = network()
    folder = tmp_path / "s"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        edited_with("low_rank", net).save_pretrained(folder)

    def load():
        return IntervenedModel.from_pretrained(folder, net)

    fresh()
    weights = folder / "interventions.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"interventions\.safetensors is damaged"):
        load()
    fresh()
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not in the format"):
        load()
    fresh()
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"interventions\.safetensors is missing"):
        load()


def test_weights_that_are_not_finite_are_refused(tmp_path):
    edited = edited_with("low_rank", network())
    with torch.no_grad():
        next(edited.parameters())[0, 0] = torch.nan
    edited.save_pretrained(tmp_path / "s")
    with pytest.raises(
        ValueError,
        match=r"basis\.weight of LowRankRotatedSpaceIntervention has values that are not finite",
    ):
        IntervenedModel.from_pretrained(tmp_path / "s", network())


def test_functions_are_refused_and_leave_nothing(tmp_path):
    edited = IntervenedModel(network(), {SITE: iit.LambdaIntervention(lambda h: h)})
    with pytest.raises(ValueError, match="cannot be saved"):
        edited.save_pretrained(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def forged(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["interventions"][0]["basis"].update(type="os.system"),
            "There is no part 'os.system'",
        ),
        (
            lambda c: c["interventions"][0]["operation"].update(type="Function"),
            "There is no part 'Function'",
        ),
        (lambda c: c["interventions"][0]["basis"].update(type="Swap", width=8), "Swap is no Basis"),
        (
            lambda c: c["interventions"][0]["basis"].update(command="rm"),
            "Frame cannot be made of .*command",
        ),
        (lambda c: c["interventions"][0]["basis"].update(rank=2), "does not hold the weights of"),
        (lambda c: c["edits"][0].update(intervention=7), "is damaged: IndexError"),
        (lambda c: c["edits"][0]["sites"][0].update(run="me"), "is damaged: TypeError"),
        (lambda c: c.pop("edits"), "is damaged: KeyError"),
    ],
)
def test_forged_folders_are_refused_and_run_nothing(change, said, tmp_path):
    edited_with("low_rank", network()).save_pretrained(tmp_path / "s")
    forged(tmp_path / "s", change)
    with pytest.raises(ValueError, match=said):
        IntervenedModel.from_pretrained(tmp_path / "s", network())


def test_loading_draws_nothing_from_the_callers_randomness(tmp_path):
    edited_with("low_rank", network()).save_pretrained(tmp_path / "s")
    net = network()
    torch.manual_seed(shifted(5))
    expected = torch.rand(3)
    torch.manual_seed(shifted(5))
    IntervenedModel.from_pretrained(tmp_path / "s", net)
    assert torch.equal(torch.rand(3), expected)


class Scale(Operation):
    def __init__(self, factor):
        super().__init__(factor=factor)
        self.factor = factor

    def forward(self, base, source, activation):
        return self.factor * base


class Diagonal(Basis):
    """One learned factor a unit; drawn when it is made."""

    def __init__(self, width, **kept):
        super().__init__(width=width, **kept)
        self.width = self.rank = width
        self.scale = torch.nn.Parameter(torch.rand(width) + 0.5)

    def coordinates(self):
        return Coordinates(
            lambda h: h * self.scale, lambda h, old, new: h + (new - old) / self.scale
        )


def test_own_parts_are_saved_and_loaded_by_name(tmp_path):
    net = network()
    edited = IntervenedModel(
        net, {SITE: Intervention("Mine", Diagonal(8), All(), Scale(0.5))}
    ).eval()
    before = torch.get_rng_state()
    edited.save_pretrained(tmp_path / "s")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"There is no part 'Diagonal'.*types=\{name: class\}"):
        IntervenedModel.from_pretrained(tmp_path / "s", net)
    back = IntervenedModel.from_pretrained(
        tmp_path / "s", net, types={"Scale": Scale, "Diagonal": Diagonal}
    )
    assert torch.equal(logits(back), logits(edited))
    assert (
        "types={'Diagonal': Diagonal, 'Scale': Scale}" in (tmp_path / "s" / "README.md").read_text()
    )
    with pytest.raises(ValueError, match="is a class that extends Basis, Gate or Operation"):
        IntervenedModel.from_pretrained(tmp_path / "s", net, types={"Scale": lambda factor: None})
    with pytest.raises(ValueError, match="'Swap', which is one of iit's own parts"):
        IntervenedModel.from_pretrained(tmp_path / "s", net, types={"Swap": Scale})


def forgetful():
    class Forgetful(Operation):
        def __init__(self, factor):
            super().__init__()

        def forward(self, base, source, activation):
            return base

    return Intervention(
        "Mine", Identity(), All(), Forgetful(2.0)
    ), "Forgetful cannot be saved: it is made again .*which are {}"


def no_json():
    return Intervention(
        "Mine", Identity(), All(), Scale(torch.ones(2))
    ), "Scale cannot be saved.*as JSON"


def tuples():
    return Intervention("Mine", Identity(), All(), Scale((1, 2))), "Scale cannot be saved.*as JSON"


def grown():
    basis = Diagonal(8)
    basis.register_buffer("more", torch.ones(2))
    return Intervention("Mine", basis, All(), Swap()), "Diagonal cannot be saved.*state_dict"


def namesake():
    class Zero(Operation):
        def forward(self, base, source, activation):
            return base + 1

    return Intervention(
        "Mine", Identity(), All(), Zero()
    ), "Your class Zero has the name of one of iit's own.*Rename it"


def subclass():
    class Mine(Intervention):
        def forward(self, base, source=None, active=None):
            return base

    return Mine(
        "Mine", Identity(), All(), Scale(1.0)
    ), "Mine is a subclass of Intervention.*Basis, Gate or Operation"


def infinite():
    return iit.AdditionIntervention(
        torch.ones(8), scale=float("inf")
    ), r"config\.json holds JSON, which has no such value"


@pytest.mark.parametrize("make", [forgetful, no_json, tuples, grown, namesake, subclass, infinite])
def test_what_could_not_be_loaded_again_is_not_saved(make, tmp_path):
    intervention, said = make()
    with pytest.raises(ValueError, match=said):
        IntervenedModel(network(), {SITE: intervention}).save_pretrained(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def row(**values):
    told = dict.fromkeys(ROW_FIELDS) | {
        "network": "n",
        "task": "ioi",
        "variable": "x",
        "seed": 0,
        "split": "test",
        "subset": "all",
    }
    return Row(
        **{**told, "metric": "iia", "value": 0.75, "low": 0.7, "high": 0.8, "n": 200, **values}
    )


def test_an_alignments_folder_tells_its_variables_and_rows(tmp_path):
    alignment = iit.Alignment(network(), {"x": Edit(SITE, MAKERS["low_rank"]())})
    alignment.save_pretrained(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "alignment.json").read_text()) == {
        "variables": ["x"],
        "inert": {},
        "rows": [],
    }
    alignment.rows = [row(), row(control="vanilla", position=[1, 2])]
    alignment.save_pretrained(tmp_path / "s")
    back = iit.Alignment.from_pretrained(tmp_path / "s", network())
    assert isinstance(back, iit.Alignment)
    assert back.rows == alignment.rows
    plain = IntervenedModel.from_pretrained(tmp_path / "s", network())
    assert type(plain) is IntervenedModel
    plain.save_pretrained(tmp_path / "plain")
    assert list(iit.Alignment.from_pretrained(tmp_path / "plain", network()).rows) == []
    alignment.rows = [row(value=float("nan"))]
    with pytest.raises(ValueError, match=r"alignment\.json holds JSON, which has no such value"):
        alignment.save_pretrained(tmp_path / "s")
    assert iit.Alignment.from_pretrained(tmp_path / "s", network()).rows == back.rows


def test_a_save_does_not_tell_where_the_network_lay(tmp_path):
    net = network()
    net.config._name_or_path = str(tmp_path)
    edited_with("low_rank", net).save_pretrained(tmp_path / "s")
    config, card = ((tmp_path / "s" / name).read_text() for name in ("config.json", "README.md"))
    assert json.loads(config)["network"]["name"] == tmp_path.name
    assert str(tmp_path) not in config + card
