"""What a config declares acts, or is refused before weights load."""

import sys

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

import iit
from iit.job import trained_network
from iit.result import read_metrics
from iit.run import run
from tests.conftest import SMALL

BOTH = "{_target_: iit.alignment.several, _partial_: true, _convert_: all, edits: {a: %s, b: %s}}"


def part(units):
    return (
        "{site: {_target_: iit.Site, component: block_output, layer: 3, position: s2}, "
        f"intervention: {{_target_: iit.VanillaIntervention, _partial_: true, units: '{units}'}}}}"
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.max_epochs=0"], r"trainer\.max_epochs=0: training needs an epoch"),
        (
            ["module=iit"],
            r"module._target_=iit\.alignment\.IIT .*module=das trains interventions",
        ),
        (["start=kmeans"], "start='kmeans' is none of"),
        (
            ["monitor=val/task_accuracy"],
            (
                "monitor='val/task_accuracy'.*choose one of val/loss, val/iia, val/iia_changing, "
                "val/disentangle"
            ),
        ),
        (["module.temperature.steps=0"], "at least one step.*steps=0"),
        (["module.temperature.stop=0"], "stays above 0"),
        (["module.temperature.start=inf"], "finite numbers"),
        (["objective=kl", "objective.smoothing=1.5"], r"smoothing=1\.5"),
        (["+trust.thresholds.luck=[1,2]"], r"\['luck'\] are no criteria"),
        (
            ["alignment=" + BOTH % (part("0:8"), part("7:9"))],
            r"'a' and the edit of 'b' overlap at block_output\[3\] @ s2: both take units 7",
        ),
        (["job=atlas", "job.seeds=[0,1,0]"], r"job\.seeds=\[0, 1, 0\] names 0 twice"),
        (["job=atlas", "job.layers=[3,3]"], r"job\.layers=\[3, 3\] names 3 twice"),
        (["job=atlas", "job.positions=[s2,s2]"], "names 's2' twice"),
        (["job=atlas", "job.ranks=[4,4]"], "names 4 twice"),
        (["job=ladder", "module=iit"], "does not train what module"),
    ],
)
def test_bad_declarations_are_refused_before_weights_load(configured, monkeypatch, overrides, said):
    config = [override for override in overrides if not override.startswith("alignment={")]
    cfg = configured("+experiment=das_ioi", *SMALL, *config)
    for override in set(overrides) - set(config):
        with open_dict(cfg):
            cfg.alignment = OmegaConf.create(override.removeprefix("alignment="))

    def loading(*args, **kwargs):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("iit.network.load_network", loading)
    with pytest.raises((ValueError, HydraException), match=f"(?s){said}"):
        run(cfg)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["module=das"],
            "_target_=iit.alignment.DAS .*module=iit trains the network",
        ),
        (["trainer.max_epochs=0"], "needs an epoch"),
        (["trust=full"], "trust=quick, then job=align"),
        (["module.trained=[]"], r"trained=\[\] names no variable"),
        (["objective=counterfactual_latent"], "CounterfactualLatent.*objective=cross_entropy"),
        (["module.penalty=-1"], "penalty=-1.*cannot be negative"),
    ],
)
def test_bad_trainings_of_a_network_are_refused(configured, monkeypatch, overrides, said):
    monkeypatch.setattr(
        "lightning.Trainer.fit", lambda *args, **kwargs: pytest.fail("training has begun")
    )
    with pytest.raises((ValueError, HydraException), match=f"(?s){said}"):
        run(configured("+experiment=iit_equality", *SMALL, *overrides))


@pytest.mark.filterwarnings("ignore")
def test_a_network_is_trained_with_the_start_and_scored_with_the_trust_of_the_config(
    configured, monkeypatch, tmp_path
):
    seen = {}
    module = sys.modules["iit.job.train_network"]
    setup = sys.modules["iit.job.setup"]
    real = setup.fit
    monkeypatch.setattr(
        setup, "fit", lambda *args, **kwargs: seen.update(kwargs) or real(*args, **kwargs)
    )
    overrides = [
        "+experiment=iit_equality",
        *SMALL,
        "alignment=one",
        "site=module",
        "site.module=layers.2.0",
        "site.side=input",
    ]
    overrides += [
        "variable=left_equal",
        "module.trained=null",
        "rank=2",
        "start=pca",
        "trust.random_subspaces=3",
    ]
    overrides += ["data.n_test=64"]  # so many that the accuracy is judged
    run(configured(*overrides, "+trust.thresholds.accuracy=[0.0,0.0]"))
    assert seen["start"] == "pca"
    metrics = read_metrics(tmp_path / "run")
    draws = {
        row.draw for row in metrics.rows if row.split == "test" and row.control == "random_subspace"
    }
    assert draws == {0, 1, 2, None}
    (judged,) = metrics.facts["verdict"]
    assert [
        found["outcome"] for found in judged["findings"] if found["criterion"] == "accuracy"
    ] == ["pass"]
    monkeypatch.setattr(module, "OVERRIDES", SMALL)
    first = trained_network("train_equality").revision
    monkeypatch.setattr(module, "OVERRIDES", (*SMALL, "start=pca"))
    assert trained_network("train_equality").revision != first, (
        "weights depend on where training starts"
    )


@pytest.mark.filterwarnings("ignore")
def test_an_atlas_of_a_head_stands_beside_that_head_alone(configured_on_either, tmp_path, studied):
    overrides = [
        "+experiment=das_ioi_atlas",
        *SMALL,
        "site.component=attention_value_output",
        "site.head=2",
        "rank=2",
    ]
    run(
        configured_on_either(
            *overrides, "job.layers=[14]", "job.positions=[last]", "job.screen=null"
        )
    )
    rows = read_metrics(tmp_path / "run").rows
    assert {row.head for row in rows if row.control == "vanilla"} == {2}
    alignment = iit.Alignment.from_pretrained(tmp_path / "run" / "alignment", studied)
    (edit,) = alignment.edits.values()
    assert edit.sites[0].head == 2
    (theirs,) = [
        r
        for r in rows
        if (r.split, r.control, r.metric, r.subset) == ("test", "vanilla", "iia", "all")
    ]
    (swept,) = [
        r
        for r in rows
        if (r.split, r.control, r.metric, r.subset) == ("validation", "vanilla", "iia", "all")
    ]
    assert (theirs.head, swept.head) == (2, 2)
