"""What stands beside an alignment: the kinds of pairs, off-target figures, random subspaces of a
learned rank.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import iit
from iit.data import EncodedPairs, Pairs
from iit.evaluation.controls import random_subspace, shuffled
from iit.evaluation.rows import Group, scores
from iit.intervention import Frame, Identity, Subset
from iit.network import equality_by_hand
from iit.result import ROW_FIELDS, TRAINED, clustered_interval
from iit.tasks import equality
from tests.seeds import shifted

SITE = iit.Site(module="layers.2.0", side="input")


@pytest.fixture(scope="module")
def network():
    return equality_by_hand()


@pytest.fixture(scope="module")
def both(network):
    return Pairs.sample(
        equality(),
        network,
        n_train=20,
        n_val=20,
        n_test=400,
        variable=["left_equal", "right_equal"],
        right_only=False,
    )


def found(rows, **wanted):
    wanted = {"split": "test"} | wanted
    (row,) = [
        row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())
    ]
    return row.value


def test_an_edit_that_is_one_variable_is_right_on_target_and_not_off_target(network, both):
    alignment = iit.Alignment(
        network,
        {
            "left_equal": iit.Edit(SITE, iit.VanillaIntervention(64, units=[0])),
            "right_equal": iit.Edit(SITE, iit.VanillaIntervention(64, units=[1])),
        },
    )
    rows = iit.evaluate(alignment, both)
    encoded = EncodedPairs(both.split("test"), both.variables, network)
    batch = encoded.batch(range(len(encoded)))
    for number, (variable, other) in enumerate(
        (("left_equal", "right_equal"), ("right_equal", "left_equal"))
    ):
        of = {"variable": variable, "metric": "iia"}
        assert found(rows, **of, control=None, subset="changing") == 1
        assert found(rows, **of, control=None, subset="unchanging") == 1
        assert found(rows, variable=variable, metric="disentangle", control=None, subset="all") == 1
        # By hand: the other unit takes this variable's source's value.
        base, source = (
            network.model.layers[:2](side["x"])
            for side in (batch["base"], batch["sources"][variable])
        )
        base[:, 1 - number] = source[:, 1 - number]
        right = (
            network.model.head(network.model.layers[2](base)).argmax(1)
            == batch["base"]["answer"][:, 0]
        )
        chosen = batch["active"][variable] & batch["changing"]
        assert 0 < float(right[chosen].float().mean()) < 1, (
            "where the source has another value of the edit's own variable, too"
        )
        chosen &= torch.tensor([kind == variable for kind in encoded.kinds])
        value = found(rows, **of, control="off_target", draw=other, subset="changing")
        assert value == float(right[chosen].float().mean()) == 0
        assert not [
            row for row in rows if row.variable == variable and row.arm == ("off_target", variable)
        ]
    assert found(rows, metric="task_accuracy", split="test") == 1
    for verdict in iit.verdict(rows):
        assert [told.outcome for told in verdict.findings if told.criterion == "off_target"] == [
            "pass"
        ]


def test_the_disentangle_score_weighs_both_kinds_alike():
    values, groups, clusters = [1, 1, 1, 0, 0], [True, True, True, True, False], [0, 1, 2, 3, 4]
    found = clustered_interval(values, clusters, groups=groups)
    assert found.value == pytest.approx((0.75 + 0) / 2)
    assert found.low <= found.value <= found.high
    perfect = clustered_interval([1] * 5, clusters, groups=groups)
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low < 0.9, "one pair of a kind is no certainty"
    rng = np.random.default_rng(shifted(0))
    values, groups = rng.integers(2, size=400), rng.integers(2, size=400)
    plain = clustered_interval(values, np.arange(400))
    same = clustered_interval(values, np.arange(400), groups=np.zeros(400))
    assert plain == same


def test_unchanging_pairs_are_told_apart_where_they_know_what_is_asked():
    changing = torch.tensor([True, False, False, False, False])
    asked = [True, False, False, True, False]
    encoded = SimpleNamespace(
        changing=changing, asked=asked, kinds=["none"] * 5, clusters=np.arange(5)
    )
    facts = dict.fromkeys(ROW_FIELDS[: ROW_FIELDS.index("split")]) | {"split": "test"}
    among = np.array([True, True, True, True, False])
    rows = scores(
        {TRAINED: np.array([True, True, False, True, False])}, Group(encoded, among, facts, 100)
    )
    values = {row.subset: (row.value, row.n) for row in rows if row.metric == "iia"}
    assert values["unchanging/another_asked"] == (0.5, 2)
    assert values["unchanging/same_value"] == (1, 1)
    assert values["unchanging"] == (pytest.approx(2 / 3), 3)
    encoded.asked = None
    rows = scores(
        {TRAINED: np.array([True, True, False, True, False])}, Group(encoded, among, facts, 100)
    )
    assert {row.subset for row in rows} == {"all", "changing", "unchanging"}


def test_random_subspaces_have_the_rank_that_was_learned(network):
    def drawn(intervention):
        intervention.eval()
        return (
            random_subspace(iit.Alignment(network, {"left_equal": iit.Edit(SITE, intervention)}), 3)
            .edits["left_equal"]
            .intervention
        )

    boundless = iit.BoundlessRotatedSpaceIntervention(64, start=0.2)
    made = drawn(boundless)
    assert (boundless.learned_rank(), made.rank, type(made.basis)) == (13, 13, Frame)
    mask = iit.SigmoidMaskIntervention(64)
    with torch.no_grad():
        mask.gate.mask.copy_(torch.where(torch.arange(64) < 5, 1.0, -1.0))
    made = drawn(mask)
    assert isinstance(made.basis, Identity)
    assert isinstance(made.gate, Subset)
    assert int(made.gate.weights.sum()) == 5
    components = iit.PCARotatedSpaceIntervention(64, 3, torch.randn(80, 64))
    made = drawn(components)
    assert (made.rank, type(made.basis)) == (3, Frame)


def test_a_gate_that_lets_all_or_nothing_through_has_no_random_control(network, both):
    pairs = Pairs.sample(
        equality(),
        network,
        n_train=20,
        n_val=20,
        n_test=60,
        variable="left_equal",
        right_only=False,
    )
    for logits, there in (
        (torch.ones(64), False),
        (-torch.ones(64), False),
        (torch.arange(64.0) - 60, True),
    ):
        mask = iit.SigmoidMaskIntervention(64)
        with torch.no_grad():
            mask.gate.mask.copy_(logits)
        rows = iit.evaluate(iit.Alignment(network, {"left_equal": iit.Edit(SITE, mask)}), pairs)
        assert ("random_subspace" in {row.control for row in rows}) == there
        assert {row.rank for row in rows} == {int((logits > 0).sum())}


def test_labels_are_shuffled_split_by_split():
    """In the order of the data: that of a set of texts depends on the process."""
    pairs = Pairs.sample(equality(), n_train=40, n_val=20, n_test=20, variable="left_equal")
    splits, labels = np.array(pairs.dataset["split"]), np.array(pairs.dataset["label"])
    rng, expected = np.random.default_rng(5), labels.copy()
    for split in ("train", "validation", "test"):
        rows = np.flatnonzero(splits == split)
        expected[rows] = labels[rng.permutation(rows)]
    assert shuffled(pairs, 5).dataset["label"][:] == expected.tolist()
