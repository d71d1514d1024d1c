"""The verdict: what each criterion compares, and for which intervals it passes, fails or stays
open.
"""

from dataclasses import replace
from math import hypot

import pytest
from hydra.utils import instantiate

import iit
from iit.evaluation.trust import THRESHOLDS
from iit.evaluation.verdict import CRITERIA, NULLS
from iit.result import Row

CELL = dict.fromkeys(
    (
        "experiment",
        "network",
        "task",
        "method",
        "component",
        "layer",
        "head",
        "position",
        "rank",
        "seed",
    )
)


def row(value, control=None, subset="changing", split="test", metric="iia", variable="v", **more):
    told = {"low": value, "high": value, "n": 100} | more
    return Row(
        **CELL,
        variable=variable,
        split=split,
        subset=subset,
        control=control,
        metric=metric,
        value=value,
        **told,
    )


GOOD = {
    "task": row(0.95, metric="task_accuracy", subset="all"),
    "accuracy": row(0.9),
    "all": row(0.93, subset="all"),
    "isolation": row(0.97, subset="unchanging"),
    "direction": row(0.02, "placebo_direction"),
    "pair": row(0.3, "placebo_pair"),
    "cut": row(0.95, None, "all", metric="cut"),
    "pca": row(0.5, "pca_subspace"),
    "train": row(0.95, split="train"),
    "kind": row(0.88, subset="kind/v+w"),
    "inert": row(0.9, "inert_resampled"),
    "up": row(
        0.02,
        None,
        "all",
        metric="abstraction_error/up",
        variable="v+w",
        low=0.01,
        high=0.03,
        n=1000,
    ),
    "down": row(0.01, None, "all", metric="abstraction_error/down", variable="v+w", n=1000),
    "off_target": row(0.03, "off_target", draw="v", variable="w"),
    "seed": row(0.87, "seeds", draw=1),
    "seeds": row(0.9, "seeds"),
    "angles": row(10.0, "seeds", "all", metric="principal_angle", low=8.0, high=12.0, n=3),
    "random_angles": row(
        82.0, "random_subspace", "all", metric="principal_angle", low=80.0, high=84.0, n=50
    ),
    "least": row(0.88, "least_rank"),
    "four": row(0.89, "lower_rank", draw=4),
    "read": row(0.89, "read_part"),
    "divergence": row(0.06, metric="divergence"),
    **{name: row(0.05, name) for name in NULLS},
}


def judged(**changed):
    rows = [r for r in (GOOD | changed).values() if r is not None]
    (found,) = iit.verdict(rows)
    return found


def test_rows_of_several_cells_are_refused():
    """The first row of each criterion would decide, whichever cell it is of."""
    rows = list(GOOD.values())
    rows += [replace(row, layer=3) for row in rows]
    with pytest.raises(ValueError, match="these rows are of 2 cells"):
        iit.verdict(rows)


def test_a_few_pairs_of_one_variable_do_not_hide_anothers_many():
    few = row(1.0, "off_target", draw="v", variable="u", n=3)
    found = judged(off_target=row(0.9, "off_target", draw="v", variable="w"), few=few)
    assert next(f for f in found.findings if f.criterion == "off_target").outcome == "fail"
    found = judged(off_target=None, few=few)
    assert next(f for f in found.findings if f.criterion == "off_target").outcome == "not judged"


def test_where_everything_is_good_everything_passes_and_nothing_was_left_out():
    found = judged()
    assert found.outcome == "pass"
    assert [f.criterion for f in found.findings] == list(CRITERIA)
    assert set(CRITERIA) == set(THRESHOLDS)
    assert found.not_run == ()
    n = len(CRITERIA)
    assert found.line() == f"Verdict on v: PASS; {n} of {n} criteria pass. Nothing was left out."


@pytest.mark.parametrize(
    ("key", "value", "criterion", "outcome", "word"),
    [
        ("direction", row(0.7, "placebo_direction"), "placebo", "open", "placebo_direction"),
        ("pair", row(0.85, "placebo_pair"), "placebo", "fail", "placebo_pair"),
        (
            "cut",
            row(0.05, None, "all", metric="cut"),
            "cut",
            "open",
            "source's own answer on 0.050",
        ),
        (
            "cut",
            row(0.85, None, "all", metric="cut", low=0.75, high=0.9),
            "cut",
            "open",
            "0.750 to 0.900",
        ),
        ("least", row(0.417, "least_rank"), "excess_rank", "fail", "0.900 against 0.417"),
        ("least", row(0.417, "least_rank"), "excess_rank", "fail", "; rank 4 reaches 0.890"),
        ("task", row(0.7, metric="task_accuracy", subset="all"), "task", "open", "0.700"),
        ("task", row(0.5, metric="task_accuracy", subset="all"), "task", "fail", "0.500"),
        (
            "task",
            row(0.55, metric="task_accuracy", subset="all", low=0.5, high=0.61),
            "task",
            "open",
            "0.610",
        ),
        ("isolation", row(0.5, subset="unchanging"), "isolation", "fail", "should stay"),
        ("shuffled_label", row(0.7, "shuffled_label"), "selectivity", "open", "shuffled_label"),
        (
            "untrained_network",
            row(0.85, "untrained_network"),
            "selectivity",
            "fail",
            "untrained_network",
        ),
        ("pca", row(0.9, "pca_subspace"), "beyond_pca", "open", "principal components"),
        ("train", row(1.0, split="train"), "generalisation", "pass", ""),
        ("train", row(1.05, split="train"), "generalisation", "open", "1.050"),
        ("kind", row(0.3, subset="kind/v"), "worst_kind", "fail", "differ in v"),
        ("inert", row(0.75, "inert_resampled"), "faithfulness", "open", "third input"),
        ("inert", row(0.5, "inert_resampled"), "faithfulness", "fail", "third input"),
        (
            "up",
            row(0.1, None, "all", metric="abstraction_error/up"),
            "abstraction",
            "open",
            "from the network",
        ),
        (
            "down",
            row(0.3, None, "all", metric="abstraction_error/down"),
            "abstraction",
            "fail",
            "from the causal model",
        ),
        (
            "off_target",
            row(0.6, "off_target", draw="v", variable="w"),
            "off_target",
            "fail",
            "w's interchange",
        ),
        (
            "off_target",
            row(0.3, "off_target", draw="v", variable="w", low=0.1, high=0.4),
            "off_target",
            "open",
            "n = 100",
        ),
        ("seed", row(0.5, "seeds", draw=1), "seed_spread", "fail", "0.500 to 0.900"),
        (
            "angles",
            row(41.0, "seeds", "all", metric="principal_angle", low=38.0, high=42.0, n=3),
            "same_subspace",
            "open",
            "82°",
        ),
        (
            "angles",
            row(82.0, "seeds", "all", metric="principal_angle", low=81.0, high=83.0, n=3),
            "same_subspace",
            "fail",
            "82°",
        ),
        ("read", row(0.3, "read_part"), "illusion", "fail", "downstream reads"),
        ("divergence", row(0.9, metric="divergence"), "divergence", "fail", "95%"),
        ("divergence", row(0.9, metric="divergence", low=0.7), "divergence", "open", "95%"),
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


@pytest.mark.parametrize(
    ("low", "high", "n", "outcome"),
    [
        (0.81, 1.0, 100, "pass"),
        (0.7, 1.0, 20, "open"),
        (0.51, 0.79, 100, "open"),
        (0.3, 0.49, 100, "fail"),
        (0.3, 0.51, 100, "open"),
        (0.9, 1.0, 19, "not judged"),
    ],
)
def test_intervals_decide_and_not_points(low, high, n, outcome):
    figure = row((low + high) / 2, low=low, high=high, n=n)
    (found,) = iit.verdict([figure, replace(figure, subset="all")])
    assert [(f.criterion, f.outcome, f.low, f.high, f.n) for f in found.findings] == [
        ("accuracy", outcome, low, high, n)
    ]
    assert found.outcome == ("open" if outcome == "not judged" else outcome)


def few(changed):
    """The rows that one criterion reads, each of 19 pairs."""
    return {key: replace(GOOD[key], n=19) for key in changed}


@pytest.mark.parametrize(
    ("keys", "criterion"),
    [
        (("task",), "task"),
        (("isolation",), "isolation"),
        (("pair",), "placebo"),
        (("cut",), "cut"),
        (("least",), "excess_rank"),
        (("pca",), "beyond_pca"),
        (("train",), "generalisation"),
        (("inert",), "faithfulness"),
        (("up", "down"), "abstraction"),
        (("off_target",), "off_target"),
        (("seed",), "seed_spread"),
        (("read",), "illusion"),
        (("divergence",), "divergence"),
    ],
)
def test_a_figure_of_fewer_than_20_pairs_is_not_judged(keys, criterion):
    found = judged(**few(keys))
    assert {f.criterion for f in found.findings if f.outcome == "not judged"} == {criterion}
    assert found.outcome == "pass"
    assert f"{criterion} (not judged): " in found.line()
    assert "n = 19" in found.line()


def test_where_the_accuracy_is_not_judged_the_verdict_is_open_at_best():
    found = judged(**few(GOOD))
    assert {f.criterion for f in found.findings if f.outcome == "pass"} == {"same_subspace"}
    assert found.outcome == "open"


def test_a_control_that_cannot_fail_does_not_count():
    """0 on changing pairs supports a claim only where the control could have been right."""
    dead = {
        "untrained_network": row(0.0, "untrained_network"),
        "stays": row(0.0, "untrained_network", "unchanging"),
    }
    found = judged(**dead)
    assert (found.outcome, found.cannot_fail) == ("pass", ("untrained_network",))
    assert "Cannot fail, and not counted: untrained_network." in found.line()
    for alive in (
        {"stays": row(0.01, "untrained_network", "unchanging")},
        {"untrained_network": row(0.01, "untrained_network")},
    ):
        assert judged(**(dead | alive)).cannot_fail == ()
    assert (
        judged(**(dead | {"stays": row(0.0, "untrained_network", "unchanging", n=19)})).cannot_fail
        == ()
    )
    # Who gives every base its own answer is never right where the label is another.
    own = {
        "no_intervention": row(0.0, "no_intervention"),
        "stays": row(1.0, "no_intervention", "unchanging"),
    }
    assert judged(**own).cannot_fail == ("no_intervention",)
    assert judged(**(own | {"no_intervention": row(0.1, "no_intervention")})).cannot_fail == ()
    # Without any other control there is nothing to compare with.
    alone = judged(**(dict.fromkeys(NULLS) | own))
    assert "selectivity" in alone.not_run
    assert "selectivity" not in {f.criterion for f in alone.findings}


def test_differences_are_paired_where_they_can_be():
    """Newcombe's interval by hand for 0.9 (0.8 to 0.95) against 0.5 (0.45 to 0.6); a paired row has
    the word where there is one.
    """
    one, other = row(0.9, low=0.8, high=0.95), row(0.5, "pca_subspace", low=0.45, high=0.6)
    (found,) = (f for f in judged(accuracy=one, pca=other).findings if f.criterion == "beyond_pca")
    assert (found.low, found.high) == pytest.approx(
        (0.4 - hypot(0.1, 0.1), 0.4 + hypot(0.05, 0.05))
    )
    paired = row(0.4, "pca_subspace", metric="iia_difference", low=0.35, high=0.45, n=64)
    (found,) = (
        f
        for f in judged(accuracy=one, pca=other, paired=paired).findings
        if f.criterion == "beyond_pca"
    )
    assert (found.value, found.low, found.high, found.n) == (0.4, 0.35, 0.45, 64)


def test_what_was_not_run_is_named():
    found = judged(
        up=None, down=None, inert=None, shuffled_label=None, read=None, seed=None, angles=None
    )
    assert found.outcome == "pass"
    assert any(
        name.startswith("faithfulness (the alignment declares nothing inert")
        for name in found.not_run
    )
    assert any(
        name.startswith("abstraction (only with trust=full, where a causal model")
        for name in found.not_run
    )
    assert {"shuffled_label", "illusion", "seed_spread", "same_subspace"} <= set(found.not_run)
    assert "Not run: faithfulness" in found.line()


def test_thresholds_are_settable_and_unknown_ones_refused():
    rows = list(GOOD.values())
    (strict,) = iit.verdict(rows, {"accuracy": [0.99, 0.95]})
    assert {f.criterion for f in strict.findings if f.outcome == "fail"} == {"accuracy"}
    for refused in (
        lambda given: iit.evaluation.Trust(thresholds=given),
        lambda given: iit.verdict(rows, given),
    ):
        with pytest.raises(ValueError, match=r"accurcy.*accuracy"):
            refused({"accurcy": [1, 1]})
        with pytest.raises(
            ValueError, match=r"accuracy takes .*the higher first.*got \[0.5, 0.9\]"
        ):
            refused({"accuracy": [0.5, 0.9]})
        with pytest.raises(ValueError, match=r"divergence takes .*the lower first"):
            refused({"divergence": [0.9, 0.5]})
        with pytest.raises(ValueError, match="task takes"):
            refused({"task": 0.8})


@pytest.mark.parametrize("level", ["quick", "full"])
def test_thresholds_stand_in_conf_and_each_can_be_changed(configured, level):
    cfg = configured(f"trust={level}", "trust.thresholds.accuracy=[0.95,0.9]")
    trust = instantiate(cfg.trust)
    assert dict(trust.thresholds) == {name: list(pair) for name, pair in THRESHOLDS.items()} | {
        "accuracy": [0.95, 0.9]
    }
    (strict,) = iit.verdict(list(GOOD.values()), trust.thresholds)
    assert {f.criterion: f.outcome for f in strict.findings if f.outcome != "pass"} == {
        "accuracy": "open"
    }
    assert trust.full == (level == "full")


def test_a_kind_of_few_pairs_is_not_judged_and_validation_rows_do_not_count():
    assert judged(small=row(0.0, subset="kind/v", n=5)).outcome == "pass"
    assert judged(validation=row(0.0, split="validation")).outcome == "pass"


def test_without_changing_pairs_all_pairs_are_judged():
    rows = [row(0.9, subset="all"), row(0.2, "no_intervention", "all")]
    (found,) = iit.verdict(rows)
    assert {f.criterion: f.value for f in found.findings} == {
        "accuracy": 0.9,
        "selectivity": pytest.approx(0.7),
    }


def test_where_all_is_interchanged_together_all_is_judged_together():
    rows = [
        row(0.9, subset="all", variable="v+w"),
        row(0.01, None, "all", metric="abstraction_error/up", variable="v+w+x"),
    ]
    (found,) = iit.verdict(rows)
    assert (found.variable, found.outcome) == ("v+w", "pass")
    assert {f.criterion for f in found.findings} == {"accuracy", "abstraction"}
    (alone,) = iit.verdict([*rows, row(0.9, subset="all")])
    assert alone.variable == "v"
