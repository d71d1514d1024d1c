"""A dry run finds in words what a run would stumble over, and says what memory a run will need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import open_dict
from transformers import LlamaConfig

from iit.job.dry_run import dry_run
from iit.network import load_network
from iit.run import run
from tests.conftest import composing

ROOT = Path(__file__).resolve().parents[2]
FEW = ("data.n_train=16", "data.n_val=8", "data.n_test=8")
IOI = ("+experiment=das_ioi", "site.layer=2", *FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2):
    """SmolLM2's tokenizer and the configuration of a small network, without weights."""
    path = tmp_path_factory.mktemp("network")
    smollm2.tokenizer.save_pretrained(path)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=49_152, intermediate_size=96, **sizes)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    return path


@pytest.fixture
def dry(folder, tmp_path, monkeypatch):
    """Compose a dry run on that folder; by default of das_ioi."""
    always = ("dry_run=true", "network=hub", f"network.name={folder}", "site.layer=2")
    compose = composing(None, tmp_path, monkeypatch, *always)
    monkeypatch.setattr("iit.network.load_network", load_network)
    return lambda *overrides, experiment=IOI: compose(*experiment, *overrides)


def printed(capsys):
    """What the table says, without its frame and line breaks."""
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_good_job_passes_without_weights_and_writes_nothing(dry, folder, tmp_path, capsys):
    assert not list(folder.glob("*.safetensors"))
    assert run(dry()) is None
    text = printed(capsys)
    assert "block_output[2] @ s2" in text
    for row in ("network", "sites", "pairs", "prompts", "roles", "weights", "store", "training"):
        assert f"{row}: pass" in text
    assert "; 0 of" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["site.layer=9"], "layer=9 is out of range: this network has layers 0 to 3"),
        (["site.position=s3"], "has no role 's3'"),
        (["site.component=block_ouput"], "Did you mean 'block_output'"),
        (
            ["site.component=attention_value_output", "+site.head=4"],
            "head=4 is out of range.*heads 0 to 3",
        ),
        (
            ["~site.component", "~site.layer", "+site.module=model.layers.4.mlp"],
            "has no module 'model.layers.4.mlp'",
        ),
        (["rank=65"], "65.*64"),
        (["network.name=nobody/nothing"], "There is no network 'nobody/nothing'"),
        (["variable=colour"], "has no variable 'colour'"),
        (["objective=counterfactual_latent", "data.natural=false"], "natural counterparts"),
        (["module=iit"], "module=das trains interventions"),
        (["job=atlas", "job.layers=[2,7]"], "layer=7 is out of range"),
    ],
)
def test_bad_input_is_found_in_words(dry, overrides, said, capsys):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        run(dry(*overrides))
    assert ": fail" in printed(capsys)


def test_all_that_is_wrong_is_said_at_once(dry):
    wrong = dry_run(dry("site.layer=9", "data.pairs=nothing")).wrong
    assert [line.partition(":")[0] for line in wrong] == ["sites", "pairs"]


def test_labels_of_several_tokens_are_named(dry, tmp_path, capsys):
    rows = [
        {
            "split": split,
            "base": f"The Eiffel Tower is in {word}",
            "source": f"The Needle Tower is in {word}",
            "base_roles": {"place": [4, 16]},
            "source_roles": {"place": [11, 16]},
            "label": label,
            "base_answer": " Paris",
        }
        for split in ("train", "validation", "test")
        for word, label in (("Paris", " Paris"), ("town", " Xanthippe"))
    ]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows))
    own = ("data=file", f"data.path={path}", "variable=place", "site.position=place")
    wrong = dry_run(dry(*own, experiment=())).wrong
    text = printed(capsys)
    assert "1 of 2 labels have several tokens [' Xanthippe']" in text
    # The role has more tokens in the base than in the source.
    assert len(wrong) == 1
    assert wrong[0].startswith("roles: ")
    assert "spans must be of equal length" in wrong[0]


@pytest.mark.parametrize(
    ("experiment", "site"),
    [
        ("patching_ioi", "block_output[0] @ s2"),
        pytest.param("path_patching_ioi", "block_output[0]", marks=pytest.mark.long),
        pytest.param("das_ioi_atlas", "block_output[0] @ s1", marks=pytest.mark.long),
        ("steering", "block_output[2]"),
        ("train_equality", "the config names none"),
        ("das_equality", "layers"),
        ("ground_truth", "the config names none"),
    ],
)
def test_each_job_has_a_table(experiment, site, tmp_path, monkeypatch, folder, capsys):
    compose = composing(None, tmp_path, monkeypatch, "dry_run=true")
    monkeypatch.setattr("iit.network.load_network", load_network)
    overrides = [f"+experiment={experiment}"]
    if experiment not in ("steering", "ground_truth"):
        overrides += FEW
    cfg = compose(*overrides)
    if "experiment" not in cfg.network and "wheel" in cfg.network:
        with open_dict(cfg):
            cfg.network = compose("network=hub", f"network.name={folder}").network
            if "component" in cfg.site:
                cfg.site.layer = 2
            if experiment == "path_patching_ioi":
                # Its receivers are in layers that this network lacks.
                cfg.job.maps = {"direct": next(iter(cfg.job.maps.values()))}
    result = dry_run(cfg)
    assert result.wrong == []
    assert result.memory["weights"] > 0
    assert site in printed(capsys)


@pytest.mark.long
def test_a_multirun_prints_a_table_for_each_job(tmp_path):
    command = [sys.executable, "train.py", "-m", "+experiment=das_ioi", "dry_run=true", *FEW]
    command += ["rank=4,577", f"paths.outputs={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout.count("Dry run of das_ioi") == 2
    assert "577" in done.stderr


@pytest.mark.long
def test_the_command_ends_with_a_plain_sentence(tmp_path):
    command = [sys.executable, "train.py", "+experiment=das_ioi", "dry_run=true", *FEW]
    command += [f"paths.outputs={tmp_path}"]
    good = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert good.returncode == 0
    bad = subprocess.run(
        [*command, "site.layer=99"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert bad.returncode != 0
    assert "Traceback" not in bad.stderr
    assert "layer=99 is out of range" in bad.stderr.splitlines()[-1]
