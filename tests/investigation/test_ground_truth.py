"""Ground truth: methods join by an entry; what is near the truth is told apart from what only
works.
"""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import iit
from iit.report.results import tables
from iit.result import read_metrics
from iit.run import run

CASES = [
    f"~job.cases.{name}"
    for name in ("clean_rank_1", "clean_rank_4", "leaky", "wrong", "illusion", "planted_by_iit")
]
SMALL = ["trainer.max_epochs=3", "logger=csv", "job.seeds=2", *CASES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "cases",
    [["clean_rank_2"], pytest.param(["clean_rank_2", "redundant"], marks=pytest.mark.long)],
    ids=len,
)
def test_methods_beside_the_truth(cases, configured, tmp_path, capsys):
    overrides = [
        f"~job.cases.{name}" for name in ("clean_rank_2", "redundant") if name not in cases
    ]
    overrides += ["job.methods=[das,random]", "trust.thresholds.task=[1.1,1.05]"]
    overrides += ["trust.resamples=100", "+trust.interventions=100", "trust.random_subspaces=1"]
    run(configured("+experiment=ground_truth", *SMALL, *overrides))
    metrics = read_metrics(tmp_path / "run")
    pooled = {
        (row.network, row.method): row.value
        for row in metrics.rows
        if (row.seed, row.control, row.subset, row.metric) == (None, None, "changing", "iia")
    }
    assert set(pooled) == {(case, method) for case in cases for method in ("das", "random")}
    truth = [row for row in metrics.rows if row.control == "truth"]
    angles = {
        (row.network, row.method): row.value for row in truth if row.metric == "principal_angle"
    }
    assert set(angles) == set(pooled)
    figures = {"principal_angle", "found_in_truth", "projection_distance"}
    assert {row.metric for row in truth} == {
        name + space for name in figures for space in ("", "/natural", "/read")
    }
    assert all(row.n == 2 for row in truth)
    for case in cases:
        assert pooled[case, "das"] > 0.9 > 0.5 > pooled[case, "random"]
        assert angles[case, "das"] < 60 < angles[case, "random"]
        judged = metrics.facts["verdicts"][f"{case}/random"]
        outcomes = {finding["criterion"]: finding["outcome"] for finding in judged["findings"]}
        assert (
            outcomes["task"]
            == outcomes["accuracy"]
            == outcomes["abstraction"]
            == judged["outcome"]
            == "fail"
        )
        assert "shuffled_label" in judged["not_run"], "nothing is trained"
    told = capsys.readouterr().out
    assert "Methods where the truth is known" in told
    brief, page = tables(metrics, brief=True), tables(metrics, brief=False)
    assert [table.header for table in page[:1]] == [table.header for table in brief]
    assert len(page) == 2
    line = next(line for line in page[0].lines if line[:2] == [cases[0], "das"])
    assert line[3].startswith(f"{round(angles[cases[0], 'das'], 2):g} (")
    assert all("; natural " in cell and "; read " in cell for cell in line[3:6])
    assert (tmp_path / "run" / "ground_truth.png").is_file()
    assert (tmp_path / "run" / "choice.json").is_file()


def test_a_method_is_an_entry(configured):
    with pytest.raises(ValueError, match=r"dsa.*'das'"):
        run(configured("+experiment=ground_truth", *SMALL, "job.methods=[dsa]"))
    entries = OmegaConf.load(Path(iit.__file__).parent / "conf" / "methods.yaml")
    names = {"das", "boundless", "unit_mask", "rotated_mask", "pca", "mdas", "revnet", "random"}
    assert names <= set(entries)
