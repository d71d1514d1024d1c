import json
import shutil
import subprocess
import sys

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from tests.families import make, prompts
from tests.intervention.test_intervention import MAKERS

SITE = Site("mlp_activation", layer=1, position=[1, -1])


def network():
    """Its MLP activations are as wide as the interventions of the other test."""
    import transformers as t

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return t.LlamaForCausalLM(t.LlamaConfig(**sizes, **tokens)).eval().requires_grad_(False)


def edited_with(name, net):
    torch.manual_seed(1)
    intervention = MAKERS[name]()
    return IntervenedModel(net, {"x" if not intervention.blocks else SITE: Edit(SITE, intervention)}).eval()


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
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["config.json", "interventions.safetensors"]


def test_a_fresh_process_gives_the_same_bits(tmp_path):
    edited = edited_with("blocks", network())
    edited.save_pretrained(tmp_path / "saved")
    code = (
        "import sys, torch; sys.path.insert(0, '.'); from tests.intervened.test_saving import *\n"
        f"torch.save(logits(IntervenedModel.from_pretrained({str(tmp_path / 'saved')!r}, network())), {str(tmp_path / 'out.pt')!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), logits(edited))


def test_shared_weights_stay_shared(tmp_path):
    net = network()
    shared = iit.LowRankRotatedSpaceIntervention(16, 2)
    sites = [Site("block_output", layer=layer, position=1) for layer in (0, 1)]
    IntervenedModel(net, {"a": Edit(sites[0], shared), "b": Edit(sites[1], shared)}).save_pretrained(tmp_path / "s")
    back = IntervenedModel.from_pretrained(tmp_path / "s", net)
    assert back.edits["a"].intervention is back.edits["b"].intervention


def test_another_network_is_refused(tmp_path):
    edited_with("low_rank", network()).save_pretrained(tmp_path / "s")
    with pytest.raises(ValueError, match=r"another network \(class: saved for 'LlamaForCausalLM', given 'GPT2LMHeadModel'"):
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
    with pytest.raises(ValueError, match="truncated or altered"):
        load()
    fresh()
    config = json.loads((folder / "config.json").read_text())
    config["interventions"][0]["basis"]["rank"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json was altered"):
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
    with pytest.raises(ValueError, match=r"basis\.weight of LowRankRotatedSpaceIntervention has values that are not finite"):
        IntervenedModel.from_pretrained(tmp_path / "s", network())


def test_functions_are_refused_and_leave_nothing(tmp_path):
    edited = IntervenedModel(network(), {SITE: iit.LambdaIntervention(lambda h: h)})
    with pytest.raises(ValueError, match="cannot be saved"):
        edited.save_pretrained(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="other files"):
        edited_with("low_rank", network()).save_pretrained(tmp_path / "s")
    assert (tmp_path / "s" / "thesis.tex").read_text() == "years of work"


def test_an_alignments_folder_tells_its_variables(tmp_path):
    alignment = iit.Alignment(network(), {"x": Edit(SITE, MAKERS["low_rank"]())})
    alignment.save_pretrained(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "alignment.json").read_text()) == {"variables": ["x"], "rows": []}
    assert isinstance(iit.Alignment.from_pretrained(tmp_path / "s", network()), iit.Alignment)
