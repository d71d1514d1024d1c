"""Every experiment composes and runs a few steps; a run folder holds what it should, and nothing
half-written.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf

import iit
from iit.data import Pairs
from iit.job import trained_network
from iit.network import content, equality_by_hand, fingerprint
from iit.result import read_metrics
from iit.run import run
from iit.tasks import equality, ioi
from tests.conftest import SMALL

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def quick(names, chosen):
    """Parameters of which only the chosen ones are run by `make test`: one of each kind."""
    return [
        name if name in chosen else pytest.param(name, marks=pytest.mark.long) for name in names
    ]


ALIGNMENTS = quick(
    [name for name in EXPERIMENTS if name.startswith("das_") and not name.endswith("_atlas")],
    ("das_ioi", "das_addition", "das_equality_by_hand", "das_pvr"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("experiment", ALIGNMENTS)
def test_every_alignment_runs(experiment, configured, tmp_path, smollm2, capsys):
    before = fingerprint(smollm2.model)
    cfg = configured(
        f"+experiment={experiment}", *SMALL, "data.n_train=16", "data.n_val=16", "data.n_test=16"
    )
    ours = "experiment" not in cfg.network
    if not ours:  # a network that is hardly trained answers hardly anything
        cfg.data.right_only = False
    value = run(cfg)
    folder = tmp_path / "run"
    metrics = read_metrics(folder)
    found = [
        r
        for r in metrics.rows
        if (r.split, r.subset, r.control, r.metric) == ("validation", "changing", None, "iia")
    ]
    variables = [cfg.variable] if isinstance(cfg.variable, str) else list(cfg.variable)
    assert np.mean([row.value for row in found]) == pytest.approx(value)
    assert {row.variable for row in found} == set(variables)
    assert len(found) == len(variables)
    assert {row.experiment for row in metrics.rows} == {experiment}
    assert {row.control for row in metrics.rows if row.split == "test"} >= {
        None,
        "vanilla",
        "random_subspace",
        "no_intervention",
    }
    network = smollm2 if ours else trained_network(cfg.network.experiment)
    if "by_hand" in experiment:
        network = equality_by_hand()
    assert fingerprint(smollm2.model) == before
    assert fingerprint(network.model) == metrics.facts["network"]["fingerprint"]
    config = OmegaConf.load(folder / "config.yaml")
    assert config.name == experiment
    assert set(metrics.facts) >= {"git", "versions", "command", "data", "fit"}
    assert all((folder / f"{name}.png").is_file() for name in ("training_curve", "causal_model"))
    back = iit.Alignment.from_pretrained(folder / "alignment", network)
    assert back.variables == tuple(variables)
    saved = json.loads((folder / "alignment" / "alignment.json").read_text())
    assert len(saved["rows"]) == len(metrics.rows)
    told = capsys.readouterr().out
    assert all(f"Verdict on {variable}: " in told for variable in variables)
    choice = json.loads((folder / "choice.json").read_text())
    assert np.mean([figure["value"] for figure in choice["validation_iia"]]) == pytest.approx(value)
    assert {cell["variable"] for cell in choice["cells"]} == set(variables)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("train_")])
def test_every_network_is_trained(experiment, configured, tmp_path, capsys):
    run(configured(f"+experiment={experiment}", *SMALL))
    metrics = read_metrics(tmp_path / "run")
    assert [(row.split, row.metric, row.experiment) for row in metrics.rows] == [
        (split, "task_accuracy", experiment) for split in ("validation", "test")
    ]
    network = iit.load_network(str(tmp_path / "run" / "network"))
    assert fingerprint(network.model) == metrics.facts["network"]["fingerprint"]
    assert "task accuracy" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "experiment",
    quick([name for name in EXPERIMENTS if name.startswith("iit_")], ("iit_equality",)),
)
def test_every_network_is_trained_with_interchanges(experiment, configured, tmp_path):
    cfg = configured(f"+experiment={experiment}", *SMALL)
    run(cfg)
    rows = read_metrics(tmp_path / "run").rows
    variables = {cfg.variable} if isinstance(cfg.variable, str) else set(cfg.variable)
    assert {
        row.variable
        for row in rows
        if row.metric == "iia" and row.split == "test" and row.control is None
    } == variables
    assert [row.split for row in rows if row.metric == "task_accuracy"] == ["validation", "test"]
    network = iit.load_network(str(tmp_path / "run" / "network"))
    back = iit.Alignment.from_pretrained(tmp_path / "run" / "alignment", network)
    assert set(back.variables) == variables
    assert len(back.rows) == len(rows)


METHODS = (
    "boundless",
    "sigmoid_mask",
    "rotated_mask",
    "pca",
    "pca_mask",
    "revnet",
    "vanilla",
    "rotated",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", quick(METHODS, ("boundless", "pca", "revnet")))
def test_a_method_is_one_word(method, configured, tmp_path):
    """`intervention=NAME` alone changes the method, whatever the experiment."""
    cfg = configured(
        "+experiment=das_equality_by_hand",
        *SMALL,
        f"intervention={method}",
        "module=mdas",
        "objective=logit_difference",
    )
    cfg.data.n_train = 160  # more activations than components
    run(cfg)
    rows = read_metrics(tmp_path / "run").rows
    assert {"vanilla", "no_intervention"} <= {row.control for row in rows}
    (row,) = [
        r
        for r in rows
        if (r.split, r.subset, r.control, r.metric) == ("test", "all", None, "disentangle")
    ]
    assert 0 <= row.value <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "objective",
    quick(
        ["cross_entropy", "kl", "logit_difference", "mean_squared_error", "counterfactual_latent"],
        ("counterfactual_latent",),
    ),
)
def test_an_objective_is_one_word(objective, configured, tmp_path):
    run(
        configured(
            "+experiment=das_equality_by_hand",
            *SMALL,
            f"objective={objective}",
            "start=difference_of_means",
        )
    )
    assert read_metrics(tmp_path / "run").rows


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_opens_with_its_command_and_has_a_page(experiment):
    first = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1]
    assert first == f"# python train.py +experiment={experiment}"
    assert (
        f"python train.py +experiment={experiment}"
        in (ROOT / "experiments" / experiment / "README.md").read_text()
    )
    assert (ROOT / "experiments" / experiment / "result.json").is_file()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
@pytest.mark.parametrize("experiment", ["das_equality_by_hand", "das_ioi"])
def test_one_seed_gives_the_same_figures_and_weights(experiment, configured, tmp_path):
    found = []
    for name in ("a", "b"):
        run(configured(f"+experiment={experiment}", *SMALL, folder=tmp_path / name))
        metrics = read_metrics(tmp_path / name)
        facts = {k: v for k, v in metrics.facts.items() if k not in ("command", "git")}
        found.append(
            (
                metrics.rows,
                facts,
                (tmp_path / name / "alignment" / "interventions.safetensors").read_bytes(),
            )
        )
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore")
def test_a_run_repeats_bit_by_bit_whether_its_network_was_trained_before_or_not(
    configured, tmp_path, monkeypatch
):
    """A network that is trained on the way (a cold cache), one that was (a warm cache), and one
    trained again give the same run.
    """
    repeats = []
    for name, cache in (("cold", "one"), ("warm", "one"), ("cold again", "another")):
        monkeypatch.setenv("IIT_CACHE", str(tmp_path / cache))
        run(
            configured(
                "+experiment=das_equality", *SMALL, "data.right_only=false", folder=tmp_path / name
            )
        )
        metrics = read_metrics(tmp_path / name)
        weights = (tmp_path / name / "alignment" / "interventions.safetensors").read_bytes()
        repeats.append(
            (
                content(trained_network("train_equality").model),
                metrics.rows,
                metrics.facts["fit"],
                weights,
            )
        )
    assert repeats[0] == repeats[1] == repeats[2]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["numbers", pytest.param("texts", marks=pytest.mark.long)])
def test_own_pairs_run_the_whole_job_without_a_causal_model(kind, configured, tmp_path, smollm2):
    sizes = {"n_train": 24, "n_val": 12, "n_test": 12, "seed": 0}
    overrides = [
        "data=file",
        f"data.path={tmp_path / 'mine.parquet'}",
        "trainer.max_epochs=1",
        "callbacks=none",
        "logger=csv",
    ]
    if kind == "texts":
        sampled = Pairs.sample(ioi(), smollm2, **sizes)
        overrides += ["site.layer=17", "site.position=s2"]
    else:
        sampled = Pairs.sample(equality(), equality_by_hand(), **sizes)
        overrides += [
            "network=equality_by_hand",
            "site=module",
            "site.module=layers.2.0",
            "site.side=input",
            "rank=1",
        ]
    sampled.save(tmp_path / "mine.parquet")
    run(configured(*overrides, "variable=mine"))
    metrics = read_metrics(tmp_path / "run")
    assert {(row.task, row.variable) for row in metrics.rows} == {("file", "mine")}
    assert metrics.facts["data"]["causal_model"] is False
    assert {row.control for row in metrics.rows if row.split == "test"} >= {
        None,
        "vanilla",
        "random_subspace",
        "no_intervention",
    }


def test_a_label_that_is_no_class_is_found_before_training_in_whichever_split(configured, tmp_path):
    rows = [
        {"base": [[0.1 * i] * 4] * 4, "source": [[0.5] * 4] * 4, "label": i % 2, "split": split}
        for i, split in enumerate(["train"] * 4 + ["validation"] * 4 + ["test"] * 4)
    ]
    rows[9]["label"] = 7
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    site = ["site=module", "site.module=layers.0.0", "site.side=output", "network=equality_by_hand"]
    with pytest.raises(
        ValueError, match=r"label: 7 \(pair 1 of the test split\) is none of the 2 classes"
    ):
        run(
            configured(
                "data=file",
                f"data.path={tmp_path / 'mine.jsonl'}",
                *site,
                "variable=v",
                "rank=1",
                "logger=csv",
            )
        )
    assert not (tmp_path / "run" / "choice.json").exists()
    sizes = "~data.n_test ~data.n_train ~data.n_val"
    with pytest.raises(ValueError, match=f"takes no data.n_test .*leave it out, {sizes}."):
        run(
            configured(
                "+experiment=das_equality_by_hand",
                "data=file",
                f"data.path={tmp_path / 'mine.jsonl'}",
                "logger=csv",
            )
        )


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_one_basis_hold_several_variables(configured, tmp_path):
    both = ["+experiment=das_equality_by_hand", *SMALL, "variable=[left_equal,right_equal]"]
    with pytest.raises(ValueError, match=r"a block for each; this one's are \[\]"):
        run(configured(*both))
    run(
        configured(
            *both, "intervention=rotated", "+intervention.blocks={left_equal:32,right_equal:32}"
        )
    )
    rows = read_metrics(tmp_path / "run").rows
    assert {row.variable for row in rows if row.split == "test"} >= {"left_equal", "right_equal"}


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_other_steps_is_refused_and_more_epochs_are_not(configured, tmp_path):
    equality = ["+experiment=das_equality_by_hand", *SMALL]
    run(configured(*equality, "callbacks=default", folder=tmp_path / "first"))
    (last,) = (tmp_path / "first").rglob("last.ckpt")
    more = [*equality, f"ckpt_path={last}", "trainer.max_epochs=2"]
    run(configured(*more, folder=tmp_path / "more"))
    with pytest.raises(ValueError, match=r"another configuration .*trainer"):
        run(configured(*more, "trainer.batch_size=7", folder=tmp_path / "other"))


@pytest.mark.filterwarnings("ignore")
def test_what_trains_nothing_is_evaluated(configured_on_either, tmp_path):
    run(configured_on_either("+experiment=das_ioi", *SMALL, "intervention=vanilla"))
    rows = read_metrics(tmp_path / "run").rows
    told = {
        (row.control, row.metric): row.value
        for row in rows
        if (row.split, row.subset) == ("test", "all")
    }
    assert told[None, "iia"] == told["vanilla", "iia"]
    assert told["vanilla", "iia_difference"] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["site.component=block_outptu"], "Did you mean 'block_output'"),
        (["site.layer=30"], "layer=30 is out of range.*0 to 29"),
        (["intervention.rank=0"], "rank=0 .*between 1 and (72|576)"),
        (["intervention.rank=577"], "rank=577 .*between 1 and (72|576)"),
        (["site.position=s3"], "no role 's3'.*'s2'"),
        (["variable=object"], "no variable 'object'"),
        (["network.device=cuda"], "'cuda' is not there"),
        (["ckpt_path=no.ckpt"], "no checkpoint no.ckpt"),
    ],
)
def test_bad_input_is_explained_and_leaves_no_result(
    configured_on_either, tmp_path, monkeypatch, overrides, said
):
    if "network.device=cuda" in overrides:
        monkeypatch.undo()
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    with pytest.raises(Exception, match=f"(?s){said}"):
        run(configured_on_either("+experiment=das_ioi", *SMALL, *overrides))
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "alignment").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], r"Nothing sets causal, variable\. Choose an experiment .*--help lists all"),
        (["data=file", "network=hub"], r"Nothing sets data\.path, network\.name, variable\."),
        (
            ["causal=ioi", "variable=subject_position"],
            r"Nothing sets site\.layer, site\.position\.",
        ),
        (["+experiment=steering", "site.layer=???"], r"Nothing sets site\.layer\."),
    ],
)
def test_what_nothing_sets_is_named_before_weights_load(
    configured, monkeypatch, tmp_path, overrides, said
):
    monkeypatch.setattr("iit.network.load_network", lambda *_, **__: pytest.fail("weights load"))
    with pytest.raises(ValueError, match=said):
        run(configured(*overrides, *SMALL))
    assert not (tmp_path / "run" / "metrics.json").exists()


def _command(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def test_unknown_experiments_and_keys_name_what_there_is(configured):
    with pytest.raises(MissingConfigException, match=r"(?s)das_ioo.*das_ioi"):
        configured("+experiment=das_ioo")
    with pytest.raises(ConfigCompositionException, match="layr"):
        configured("+experiment=das_ioi", "site.layr=3")


@pytest.mark.long
def test_the_command_line_names_them_too_and_a_folder_that_cannot_be(tmp_path):
    unknown = _command("+experiment=das_ioo", cwd=tmp_path)
    assert unknown.returncode != 0
    assert "das_ioo" in unknown.stderr
    assert "das_ioi" in unknown.stderr, "the choices are listed"
    key = _command("+experiment=das_ioi", "site.layr=3", cwd=tmp_path)
    assert key.returncode != 0
    assert "layr" in key.stderr
    (tmp_path / "file").write_text("in the way")
    place = _command("+experiment=das_ioi", f"paths.outputs={tmp_path / 'file'}", cwd=tmp_path)
    assert place.returncode != 0
    assert str(tmp_path / "file") in place.stderr
    assert not list(tmp_path.rglob("metrics.json"))


def test_a_default_run_says_nothing_that_its_user_cannot_act_on(tmp_path):
    small = ("+debug=default", f"paths.outputs={tmp_path}")
    command = [sys.executable, "train.py", "+experiment=das_equality_by_hand", *small]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    lines = process.stdout.splitlines()
    assert any("iit.alignment.fit][INFO] - Epoch 1: train/loss" in line for line in lines)
    # The log, then the tables.
    log = [line for line in lines if line.startswith("[")]
    assert lines[: len(log)] == log
    assert all("][iit." in line for line in log)
    folder = next(tmp_path.glob("*/*/metrics.json")).parent
    assert lines[-2:] == [f"All figures: {folder}/metrics.json", f"Page: {folder}/report.html"]
    assert max(map(len, lines[len(log) : -2])) <= 80
    for line in process.stderr.splitlines():
        assert line.startswith("wandb: "), process.stderr
        assert "WARNING" not in line


def test_jobs_of_a_multirun_show_no_bar(configured, monkeypatch):
    # Set first, so that what the run sets is undone.
    monkeypatch.setenv("TTY_INTERACTIVE", "")
    monkeypatch.delenv("TTY_INTERACTIVE")
    monkeypatch.setattr("iit.run.in_multirun", lambda: True)
    run(configured("+experiment=das_equality_by_hand", *SMALL))
    assert os.environ["TTY_INTERACTIVE"] == "0"
