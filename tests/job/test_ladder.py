"""A ladder: every rung in the network and in an untrained one, on seen and unseen pairs."""

import json

import pytest

from iit.result import read_metrics
from iit.run import run
from tests.conftest import SMALL

OVERRIDES = ["+experiment=das_equality_by_hand", "job=ladder", "job.ranks=[1,full]", "job.depths=[1]", "job.depth_rank=1"]


@pytest.mark.filterwarnings("ignore")
def test_a_ladder(configured, tmp_path, capsys):
    run(configured(*OVERRIDES, *SMALL))
    folder = tmp_path / "run"
    rows = read_metrics(folder).rows
    rungs = {row.method.rpartition(", ")[2] for row in rows if row.method}
    assert rungs == {"rank 1", "rank full", "depth 1"}
    assert {row.split for row in rows} == {"train", "validation", "test"}
    for rung in rungs:
        of = [r for r in rows if r.method.endswith(rung) and (r.split, r.subset) == ("test", "changing")]
        values = {(r.control, r.metric): r.value for r in of}
        ours, theirs = values[None, "iia"], values["untrained_network", "iia"]
        assert values["untrained_network", "iia_difference"] == pytest.approx(ours - theirs)
    full = [r for r in rows if r.method.endswith("rank full") and r.control is None and r.metric == "iia"]
    assert {row.rank for row in full} == {64}
    assert set(json.loads((folder / "choice.json").read_text())["validation_iia"]) == {row.method for row in rows}
    assert (folder / "ladder.png").is_file()
    assert "by capacity" in capsys.readouterr().out


def test_a_ladder_has_no_checkpoint(configured):
    with pytest.raises(ValueError, match="ckpt_path"):
        run(configured(*OVERRIDES, *SMALL, "ckpt_path=x.ckpt"))
