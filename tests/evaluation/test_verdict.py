"""The verdict: what each criterion compares, and from which figures on it passes, warns or fails."""

import pytest
from hydra.utils import instantiate

import iit
from iit.evaluation.trust import THRESHOLDS
from iit.evaluation.verdict import CRITERIA, NULLS
from iit.result import Row

CELL = dict.fromkeys(("experiment", "network", "task", "method", "component", "layer", "head", "position", "rank", "seed"))


def row(value, control=None, subset="changing", split="test", metric="iia", variable="v", **more):
    told = {"low": value, "high": value, "n": 100} | more
    return Row(**CELL, variable=variable, split=split, subset=subset, control=control, metric=metric, value=value, **told)


GOOD = {
    "task": row(0.95, metric="task_accuracy", subset="all"),
    "accuracy": row(0.9),
    "all": row(0.93, subset="all"),
    "isolation": row(0.97, subset="unchanging"),
    "pca": row(0.5, "pca_subspace"),
    "train": row(0.95, split="train"),
    "kind": row(0.88, subset="kind/v+w"),
    "inert": row(0.9, "inert_resampled", "all"),
    "up": row(0.02, None, "all", metric="abstraction_error/up", variable="v+w", low=0.01, high=0.03, n=1000),
    "down": row(0.01, None, "all", metric="abstraction_error/down", variable="v+w", n=1000),
    "off_target": row(0.03, "off_target/v", variable="w"),
    "seed": row(0.87, "seed/1"),
    "seeds": row(0.9, "seeds"),
    "angles": row(10.0, "seeds", "all", metric="principal_angle", low=8.0, high=12.0, n=3),
    "random_angles": row(82.0, "random_subspace", "all", metric="principal_angle", low=80.0, high=84.0, n=50),
    "read": row(0.89, "read_part"),
    "divergence": row(0.06, metric="divergence"),
    **{name: row(0.05, name) for name in NULLS},
}


def judged(**changed):
    rows = [r for r in (GOOD | changed).values() if r is not None]
    (found,) = iit.verdict(rows)
    return found


def test_where_everything_is_good_everything_passes_and_nothing_was_left_out():
    found = judged()
    assert found.outcome == "pass"
    assert [f.criterion for f in found.findings] == list(CRITERIA)
    assert set(CRITERIA) == set(THRESHOLDS)
    assert found.not_run == ()
    assert found.line() == f"Verdict on v: PASS; {len(CRITERIA)} of {len(CRITERIA)} criteria pass."


@pytest.mark.parametrize(
    ("key", "value", "criterion", "outcome", "word"),
    [
        ("accuracy", row(0.9, low=0.7, high=1.0, n=20), "precision", "warn", "0.300 wide"),
        ("accuracy", row(0.9, low=0.025, high=1.0, n=1), "precision", "fail", "n = 1"),
        ("task", row(0.7, metric="task_accuracy", subset="all"), "task", "warn", "70.0%"),
        ("task", row(0.5, metric="task_accuracy", subset="all"), "task", "fail", "50.0%"),
        ("isolation", row(0.5, subset="unchanging"), "isolation", "fail", "should stay"),
        ("shuffled_label", row(0.7, "shuffled_label"), "selectivity", "warn", "shuffled_label"),
        ("untrained_network", row(0.85, "untrained_network"), "selectivity", "fail", "untrained_network"),
        ("pca", row(0.9, "pca_subspace"), "beyond_pca", "warn", "principal components"),
        ("train", row(1.0, split="train"), "generalisation", "pass", "1.000"),
        ("train", row(1.05, split="train"), "generalisation", "warn", "1.050"),
        ("kind", row(0.3, subset="kind/v"), "worst_kind", "fail", "differ in v"),
        ("inert", row(0.75, "inert_resampled", "all"), "faithfulness", "warn", "third input"),
        ("inert", row(0.5, "inert_resampled", "all"), "faithfulness", "fail", "third input"),
        ("up", row(0.1, None, "all", metric="abstraction_error/up"), "abstraction", "warn", "from the network"),
        ("down", row(0.3, None, "all", metric="abstraction_error/down"), "abstraction", "fail", "from the causal model"),
        ("off_target", row(0.6, "off_target/v", variable="w"), "off_target", "fail", "w's interchange"),
        ("seed", row(0.5, "seed/1"), "seed_spread", "fail", "0.500 to 0.900"),
        ("angles", row(41.0, "seeds", "all", metric="principal_angle", low=40.0, high=42.0), "same_subspace", "warn", "82°"),
        ("angles", row(81.0, "seeds", "all", metric="principal_angle", low=80.0, high=82.0), "same_subspace", "fail", "81°"),
        ("read", row(0.3, "read_part"), "illusion", "fail", "downstream reads"),
        ("divergence", row(0.9, metric="divergence"), "divergence", "fail", "95%"),
    ],
)
def test_each_criterion_speaks_for_itself(key, value, criterion, outcome, word):
    found = judged(**{key: value})
    bad = {f.criterion: f for f in found.findings if f.outcome != "pass"}
    if outcome == "pass":
        assert not bad
        return
    assert set(bad) == {criterion}
    assert bad[criterion].outcome == found.outcome == outcome
    assert word in bad[criterion].reason
    assert f"{criterion} ({outcome})" in found.line()


def test_what_was_not_run_is_named():
    found = judged(up=None, down=None, inert=None, shuffled_label=None, read=None, seed=None, angles=None)
    assert found.outcome == "pass"
    assert any(name.startswith("faithfulness (the alignment declares nothing inert") for name in found.not_run)
    assert any(name.startswith("abstraction (only with trust=full, where a causal model") for name in found.not_run)
    assert {"shuffled_label", "illusion", "seed_spread", "same_subspace"} <= set(found.not_run)
    assert "Not run: faithfulness" in found.line()


def test_thresholds_are_settable_and_unknown_ones_refused():
    rows = list(GOOD.values())
    (strict,) = iit.verdict(rows, {"accuracy": [0.99, 0.95]})
    assert {f.criterion for f in strict.findings if f.outcome == "fail"} == {"accuracy"}
    for refused in (lambda given: iit.evaluation.Trust(thresholds=given), lambda given: iit.verdict(rows, given)):
        with pytest.raises(ValueError, match=r"accurcy.*accuracy"):
            refused({"accurcy": [1, 1]})
        with pytest.raises(ValueError, match=r"accuracy takes .*the higher first.*got \[0.5, 0.9\]"):
            refused({"accuracy": [0.5, 0.9]})
        with pytest.raises(ValueError, match=r"divergence takes .*the lower first"):
            refused({"divergence": [0.9, 0.5]})
        with pytest.raises(ValueError, match="task takes"):
            refused({"task": 0.8})


@pytest.mark.parametrize("level", ["quick", "full"])
def test_thresholds_stand_in_conf_and_each_can_be_changed(configured, level):
    cfg = configured(f"trust={level}", "trust.thresholds.accuracy=[0.95,0.9]")
    trust = instantiate(cfg.trust)
    assert dict(trust.thresholds) == {name: list(pair) for name, pair in THRESHOLDS.items()} | {"accuracy": [0.95, 0.9]}
    (strict,) = iit.verdict(list(GOOD.values()), trust.thresholds)
    assert {f.criterion: f.outcome for f in strict.findings if f.outcome != "pass"} == {"accuracy": "warn"}
    assert trust.full == (level == "full")


def test_a_kind_of_few_pairs_is_not_judged_and_validation_rows_do_not_count():
    few = row(0.0, subset="kind/v", n=5)
    assert judged(few=few).outcome == "pass"
    assert judged(validation=row(0.0, split="validation")).outcome == "pass"


def test_without_changing_pairs_all_pairs_are_judged():
    rows = [row(0.9, subset="all"), row(0.2, "no_intervention", "all")]
    (found,) = iit.verdict(rows)
    assert {f.criterion: f.value for f in found.findings} == {"accuracy": 0.9, "precision": 0, "selectivity": pytest.approx(0.7)}


def test_where_all_is_interchanged_together_all_is_judged_together():
    rows = [row(0.9, subset="all", variable="v+w"), row(0.01, None, "all", metric="abstraction_error/up", variable="v+w+x")]
    (found,) = iit.verdict(rows)
    assert (found.variable, found.outcome) == ("v+w", "pass")
    assert {f.criterion for f in found.findings} == {"accuracy", "precision", "abstraction"}
    (alone,) = iit.verdict([*rows, row(0.9, subset="all")])
    assert alone.variable == "v"
