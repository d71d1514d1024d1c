"""A run of the job for each score, and what is refused before weights load."""

import pytest

from iit.report.results import tables
from iit.result import read_metrics, where
from iit.run import run
from tests.conftest import SMALL, composing

TINY = [
    *("+experiment=das_ioi", *SMALL, "site.layer=0", "rank=4", "intervention=low_rank"),
    *("data.n_train=12", "data.n_val=16", "data.n_test=16", "trust.resamples=50"),
]
WRITES = ["score=generated", "score.max_new_tokens=3", "data.right_only=false"]


@pytest.fixture
def tiny(toy, tmp_path, monkeypatch):
    return composing(toy[0], tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("metric", "overrides"),
    [
        ("iia_forced", ["score=forced"]),
        ("iia_generated", [*WRITES, "score.compare=contains"]),
        ("iia_generated", [*WRITES, "score.compare='^ *{label}'"]),
    ],
)
def test_the_job_by_each_score(tiny, tmp_path, metric, overrides):
    run(tiny(*TINY, *overrides))
    metrics = read_metrics(tmp_path / "run")
    for split in ("validation", "test"):
        rows = where(metrics.rows, split=split, metric=metric, subset="changing")
        controls = {row.control for row in rows}
        assert {None, "vanilla", "random_subspace", "no_intervention"} <= controls
        assert where(metrics.rows, split=split, metric=f"{metric}_difference")
        assert where(metrics.rows, split=split, metric="iia", subset="changing", control=None)
    (verdict,) = metrics.facts["verdict"]
    reasons = [finding["reason"] for finding in verdict["findings"]]
    assert any(metric.upper() in reason for reason in reasons)
    right = metrics.facts["data"]["right"]
    assert bool(right) == (metric == "iia_forced")
    shown = tables(metrics, brief=False)[0].markdown()
    words = "right among the pair's own answers" if metric == "iia_forced" else "as written"
    assert f"{words}, trained" in shown or f"trained intervention, {words}" in shown


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["score=generated", "score.compare=similar"], "compare='similar'.*exact, contains"),
        (["score=generated", "score.compare='({label}'"], "regular expression"),
        (["score=generated", "score.max_new_tokens=0"], "max_new_tokens is 1 or more"),
        (["score=generated", "score.max_new_tokens=ten"], "max_new_tokens is 1 or more"),
        (["score=generated", "site.position='answer[0]'"], "no site at answer"),
        (["score=forced", "job=atlas"], "takes score=argmax"),
    ],
)
def test_what_is_refused(tiny, overrides, said, tmp_path):
    with pytest.raises(Exception, match=f"(?s){said}"):
        run(tiny(*TINY, *overrides))
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_network_that_cannot_write(tiny):
    overrides = ["+experiment=das_equality_by_hand", *SMALL, "score=generated"]
    with pytest.raises(ValueError, match="a decoder that writes text"):
        run(tiny(*overrides))
    with pytest.raises(ValueError, match="a decoder that writes text"):
        run(tiny(*overrides, "dry_run=true"))
