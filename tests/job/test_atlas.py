"""An atlas: cells are chosen on validation, only the chosen one is scored on test, and what was not
trained is told.
"""

import sys

import pytest

import iit
from iit.result import Cell, read_metrics, select
from iit.run import run
from tests.conftest import SMALL

LAYERS, POSITIONS = [12, 17], ["s2", "last"]
OVERRIDES = [
    "+experiment=das_ioi_atlas",
    *SMALL,
    f"job.layers={LAYERS}",
    f"job.positions={POSITIONS}",
    "job.ranks=[2,4]",
]


@pytest.mark.filterwarnings("ignore")
def test_an_atlas(configured_on_either, tmp_path, studied, capsys):
    value = run(configured_on_either(*OVERRIDES, "job.screen=null"))
    metrics = read_metrics(tmp_path / "run")
    rows = metrics.rows
    scored = [
        row
        for row in rows
        if (row.split, row.subset, row.control, row.metric)
        == ("validation", "changing", None, "iia")
    ]
    assert sorted((row.layer, row.position, row.rank) for row in scored) == sorted(
        (layer, position, rank) for layer in LAYERS for position in POSITIONS for rank in (2, 4)
    )
    chosen = select(rows)
    assert value == max(row.value for row in scored)
    test = [row for row in rows if row.split == "test"]
    assert {Cell.of(row) for row in test if row.metric != "task_accuracy"} == {chosen}
    assert {row.control for row in test} >= {None, "vanilla", "random_subspace", "no_intervention"}
    assert metrics.facts["screened"] == {"threshold": None, "sites": []}
    back = iit.Alignment.from_pretrained(tmp_path / "run" / "alignment", studied)
    (edit,) = back.edits.values()
    assert (edit.sites[0].layer, edit.sites[0].position, edit.intervention.rank) == (
        chosen.layer,
        chosen.position,
        chosen.rank,
    )
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 8
    assert {path.name for path in (tmp_path / "run").glob("atlas.*")} == {
        "atlas.png",
        "atlas.svg",
        "atlas.csv",
    }
    # The whole vector beside a cell is what patching that site alone gives.
    best = next(
        row
        for row in rows
        if Cell.of(row) == chosen and row.control == "vanilla" and row.subset == "changing"
    )
    assert best.split == "validation"
    told = capsys.readouterr().out
    assert "by layer and position; the whole vector's in brackets" in " ".join(told.split())
    assert "trained intervention" in told


@pytest.mark.filterwarnings("ignore")
def test_what_is_screened_is_not_trained_and_told(configured_on_either, tmp_path, monkeypatch):
    module = sys.modules["iit.job.atlas"]
    real = module.sweep

    def told(*args, **kwargs):
        from dataclasses import replace

        return [
            replace(row, value=0.4 if (row.layer, row.position) == (17, "s2") else 0.1)
            for row in real(*args, **kwargs)
        ]

    monkeypatch.setattr(module, "sweep", told)
    run(configured_on_either(*OVERRIDES, "job.ranks=null", "job.screen=0.2"))
    metrics = read_metrics(tmp_path / "run")
    trained = {
        (row.layer, row.position)
        for row in metrics.rows
        if row.control is None and row.split == "validation"
    }
    assert trained == {(17, "s2")}
    sites = {"block_output[12] @ s2", "block_output[12] @ last", "block_output[17] @ last"}
    assert (metrics.facts["screened"]["threshold"], set(metrics.facts["screened"]["sites"])) == (
        0.2,
        sites,
    )
    vanilla = {
        (row.layer, row.position)
        for row in metrics.rows
        if row.control == "vanilla" and row.split == "validation"
    }
    assert vanilla == {(layer, position) for layer in LAYERS for position in POSITIONS}
    with pytest.raises(ValueError, match=r"screen=0\.9 leaves no site to train"):
        run(configured_on_either(*OVERRIDES, "job.screen=0.9", folder=tmp_path / "other"))
    assert not (tmp_path / "other" / "metrics.json").exists()


def test_an_atlas_starts_afresh(configured_on_either):
    with pytest.raises(ValueError, match="an atlas has no checkpoint"):
        run(configured_on_either(*OVERRIDES, "ckpt_path=last.ckpt"))
