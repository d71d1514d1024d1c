"""A ladder: every rung in the network and in an untrained one, on seen and unseen pairs."""

import json

import pytest

from iit.result import read_metrics
from iit.run import run
from tests.conftest import SMALL

FEW = ("data.n_train=16", "data.n_val=16", "data.n_test=16")
OVERRIDES = [
    "+experiment=das_equality_by_hand",
    "job=ladder",
    "job.ranks=[1,full]",
    "job.depths=[1]",
    "job.depth_rank=1",
]


@pytest.mark.filterwarnings("ignore")
def test_a_ladder(configured, tmp_path, capsys):
    run(configured(*OVERRIDES, "job.seeds=2", *SMALL))
    folder = tmp_path / "run"
    rows = read_metrics(folder).rows
    rungs = {row.method.rpartition(", ")[2] for row in rows if row.method}
    assert rungs == {"rank 1", "rank full", "depth 1"}
    assert {row.split for row in rows} == {"train", "validation", "test"}
    for rung in rungs:
        of = [
            r
            for r in rows
            if r.method.endswith(rung) and (r.split, r.subset) == ("test", "changing")
        ]
        values = {(r.control, r.metric): r.value for r in of}
        ours, theirs = values[None, "iia"], values["untrained_network", "iia"]
        assert values["untrained_network", "iia_difference"] == pytest.approx(ours - theirs)
    full = [
        r
        for r in rows
        if r.method.endswith("rank full") and r.control is None and r.metric == "iia"
    ]
    assert {row.rank for row in full} == {64}
    assert set(json.loads((folder / "choice.json").read_text())["validation_iia"]) == {
        row.method for row in rows
    }
    assert (folder / "ladder.png").is_file()
    assert "by capacity" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_language_models_ladder_compares_the_pairs_own_answers(
    configured_on_either, tmp_path, capsys
):
    run(
        configured_on_either(
            "+experiment=ladder_ioi", *SMALL, "job.ranks=[1,2]", "job.depths=[]", *FEW
        )
    )
    rows = read_metrics(tmp_path / "run").rows
    assert {row.metric for row in rows} == {"iia_forced", "iia_forced_difference"}
    changing = {
        (r.control, r.metric): r for r in rows if (r.split, r.subset) == ("test", "changing")
    }
    chance = [
        changing[name, "iia_forced"]
        for name in ("no_intervention", "untrained_network/no_intervention")
    ]
    trained, untrained = (changing[name, "iia_forced"] for name in (None, "untrained_network"))
    assert {row.n for row in chance} == {trained.n} == {untrained.n}
    assert changing["untrained_network", "iia_forced_difference"].value == pytest.approx(
        trained.value - untrained.value
    )
    assert "by capacity" in capsys.readouterr().out


def test_an_unknown_metric(configured):
    with pytest.raises(ValueError, match="metric='accuracy' is one of"):
        run(configured(*OVERRIDES, *SMALL, "job.metric=accuracy"))


def test_a_ladder_has_no_checkpoint(configured):
    with pytest.raises(ValueError, match="ckpt_path"):
        run(configured(*OVERRIDES, *SMALL, "ckpt_path=x.ckpt"))
