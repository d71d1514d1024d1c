"""Placebos, the rank that a variable's values need, and the site that sees nothing of the
variable.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import iit
from iit.data import EncodedPairs, Pairs
from iit.evaluation import Trust, outcomes
from iit.evaluation.controls import controls_of, fresh, lower_ranks, placebos
from iit.evaluation.scoring import Scoring
from iit.evaluation.trust import NotApplicableError
from iit.evaluation.wrong_site import displaced, sees
from iit.network import planted
from iit.patching import Contrast
from iit.result import Arm
from iit.result.vocabulary import CONTROLS
from iit.tasks import attribute, greater_than, ioi, modular_sum
from tests.evaluation.test_outcomes import ZERO, encoded, spiked, table
from tests.seeds import shifted

QUICK = Trust()
READ = iit.Site(module="read", side="input")


def test_a_placebo_moves_by_another_pairs_difference():
    """By hand: what is added to pair 0 is the difference of the last pair, to the others that of
    the pair before.
    """
    up, down = spiked(c1=4), spiked(c0=4)
    claim, pairs = encoded(
        [
            (down, ZERO, up, ZERO, 1, 0, 1, 0),  # moved by 0 (the last pair's): stays 0
            (down, ZERO, down, ZERO, 0, 0, 0, 0),  # moved by up − down: 1 although the label is 0
            (up, ZERO, down, ZERO, 1, 1, 0, 0),  # moved by 0: stays 1, which is the label here
            (down, ZERO, down, ZERO, 4, 0, 0, 0),  # moved by down − up, to (8, −4, …): stays 0
        ]
    )
    assert outcomes(claim, pairs).right[None].tolist() == [True, True, False, False]
    found = placebos(claim, 0)
    assert outcomes(found[Arm("placebo_pair")], pairs).right[None].tolist() == [
        False,
        False,
        True,
        False,
    ]
    assert outcomes(found[Arm("placebo_pair")], pairs).right["base"].tolist() == [
        True,
        False,
        True,
        True,
    ]


def test_no_pair_is_its_own_placebo_where_one_is_left_over():
    """Of 65 pairs the last is not in a batch by itself; each pair's difference would be wrong for
    all others.
    """
    rows = []
    for k in range(65):
        own = [float(4 * (number == k % 5)) for number in range(5)]
        rows.append((ZERO, ZERO, own, ZERO, k % 5, (k + 1) % 5, k % 5, (k + 1) % 5))
    claim, pairs = encoded(rows)
    assert outcomes(claim, pairs).right[None].all()
    data = Pairs(table(rows), "v")
    rows_of_test = iit.evaluate(claim, data, Trust(random_subspaces=1))
    figures = {
        row.control: row.value for row in rows_of_test if (row.metric, row.subset) == ("iia", "all")
    }
    assert figures["placebo_pair"] == 0


def test_a_placebo_moves_as_far_in_another_direction():
    torch.manual_seed(shifted(0))
    trained = iit.LowRankRotatedSpaceIntervention(32, 2)
    claim = iit.Alignment(planted(), {"first": iit.Edit(READ, trained)})
    base, source = torch.randn(6, 3, 32), torch.randn(6, 3, 32)
    placebo = placebos(claim, 1)[Arm("placebo_direction")].edits["first"].intervention
    other = placebos(claim, 2)[Arm("placebo_direction")].edits["first"].intervention
    with torch.no_grad():
        move, moved, again, drawn = (
            made(base, source) - base for made in (trained, placebo, placebo, other)
        )
    assert torch.allclose(move.norm(dim=-1), moved.norm(dim=-1), rtol=1e-4)
    assert float(torch.cosine_similarity(move, moved, dim=-1).abs().max()) < 0.9
    assert torch.equal(moved, again), "a run that is repeated is the same"
    assert not torch.equal(moved, drawn)


def test_variables_in_blocks_have_no_placebo():
    blocks = iit.RotatedSpaceIntervention(32, blocks={"first": 2, "second": 2})
    with pytest.raises(NotApplicableError, match="blocks"):
        placebos(iit.Alignment(planted(), {"both": iit.Edit(READ, blocks)}), 0)


def scoring(alignment, pairs, trust=QUICK, refit=lambda *_: None):
    return Scoring(alignment, pairs, "test", trust, refit)


def test_as_many_dimensions_as_the_variable_has_values_less_one():
    network: Any = planted()
    sample = partial(
        Pairs.sample, modular_sum(3), network, n_train=60, n_val=4, n_test=4, right_only=False
    )
    pairs = sample(variable="first")

    def claim(rank):
        return iit.Alignment(
            network, {"first": iit.Edit(READ, iit.LowRankRotatedSpaceIntervention(32, rank))}
        )

    (found,) = lower_ranks(scoring(claim(5), pairs)).values()
    assert found.edits["first"].intervention.rank == 2
    assert found.edits["first"].sites == (READ,)
    ranks = {
        str(arm): lower.edits["first"].intervention.rank
        for arm, lower in lower_ranks(scoring(claim(20), pairs)).items()
    }
    assert ranks == {"least_rank": 2, "lower_rank/8": 8}
    fixed = claim(5).requires_grad_(False)
    for none in (
        fixed,
        claim(2),
        claim(1),
        iit.Alignment(network, {"first": iit.Edit(READ, iit.VanillaIntervention())}),
    ):
        with pytest.raises(NotApplicableError):
            lower_ranks(scoring(none, pairs))
    with pytest.raises(NotApplicableError, match="values"):
        lower_ranks(scoring(claim(5), Pairs(pairs.dataset, "first")))
    both = {
        v: iit.Edit(READ, iit.LowRankRotatedSpaceIntervention(32, 5)) for v in ("first", "second")
    }
    together = iit.Alignment(network, both)
    with pytest.raises(NotApplicableError, match="several variables"):
        lower_ranks(scoring(together, sample(variable=["first", "second"])))


def test_a_wrong_site_sees_no_token_that_the_variable_depends_on(toy):
    network, _ = toy
    pairs = Pairs.sample(ioi(), network, n_train=8, n_val=4, n_test=40, right_only=False)
    edit = iit.Edit(
        iit.Site("block_output", layer=1, position="s2"), iit.LowRankRotatedSpaceIntervention(16, 2)
    )
    claim = iit.Alignment(network, {"subject_position": edit})

    def at(elsewhere):
        return fresh(displaced(claim, elsewhere), 0)

    assert at(None).edits["subject_position"].sites[0].position == (0,)
    assert not sees(at(None), pairs), "the first word is the template's"
    assert sees(at({"position": "object"}), pairs), "in most templates the names come before"
    assert sees(at({"layer": 0}), pairs)
    made, _ = controls_of(scoring(claim, pairs, Trust(full=True)))
    assert Arm("wrong_site") in made
    assert {arm.control for arm in made} <= set(CONTROLS), "each has its words"
    made, missing = controls_of(scoring(claim, pairs, Trust(full=True, wrong_site={"layer": 0})))
    assert Arm("wrong_site") not in made
    assert "stands what the variable depends on" in missing["wrong_site"]
    with pytest.raises(ValueError, match="no causal model"):
        sees(at(None), Pairs(pairs.dataset, "subject_position"))


def test_a_perceptrons_layer_sees_all_inputs():
    network: Any = planted()
    pairs = Pairs.sample(
        modular_sum(3), network, n_train=20, n_val=4, n_test=20, variable="first", right_only=False
    )
    for site in (READ, iit.Site(module="embedding")):
        assert sees(
            iit.Alignment(network, {"first": iit.Edit(site, iit.VanillaIntervention())}), pairs
        )


def test_pairs_of_one_template_are_one_cluster(toy):
    network, _ = toy
    sample = partial(Pairs.sample, ioi(), network, n_train=8, n_val=4, n_test=60, right_only=False)
    unseen, seen = sample(), sample(splits=["name"])
    encoded_pairs = EncodedPairs(unseen.split("test"), "subject_position", network)
    templates = unseen.split("test")["case"]
    assert len(np.unique(encoded_pairs.clusters)) == len(set(templates)) > 5
    assert all(
        (a == b) == (c == d)
        for a, c in zip(templates, encoded_pairs.clusters, strict=True)
        for b, d in [(templates[0], encoded_pairs.clusters[0])]
    )
    contrast = Contrast.of(network, unseen, split="test", every=True)
    np.testing.assert_array_equal(contrast.clusters, encoded_pairs.clusters)
    assert "case" not in seen.dataset.column_names
    assert len(
        np.unique(EncodedPairs(seen.split("test"), "subject_position", network).clusters)
    ) == len(set(seen.split("test")["base"]))


def test_the_cases_of_pairs_are_the_entries_that_no_other_split_has():
    sizes = {"n_train": 40, "n_val": 10, "n_test": 40, "right_only": False}
    pairs = Pairs.sample(attribute(), None, variable="continent", **sizes)
    test = pairs.split("test")
    names = [
        text[slice(*roles["entity"])]
        for text, roles in zip(test["base"], test["base_roles"], strict=True)
    ]
    assert test["case"] == names
    assert not set(test["case"]) & set(pairs.split("train")["case"])
    assert len(set(names)) < len(set(test["base"]))
    # Of two pools the smaller one counts: five templates, thirty events.
    both = Pairs.sample(greater_than(), None, splits=["event", "template"], **sizes)
    assert set(both.split("test")["case"]) < set(range(5))


def test_a_placebos_batches_are_of_the_same_variables_and_of_more_than_one_pair(toy):
    network, _ = toy
    variables = ["subject_position", "io_name"]
    pairs = Pairs.sample(
        ioi(), network, variable=variables, n_train=4, n_val=4, n_test=34, right_only=False
    )
    encoded_pairs = EncodedPairs(pairs.split("test"), variables, network)
    batches = [batch["row"].tolist() for batch in encoded_pairs.batches(4, apart=True)]
    assert sorted(row for rows in batches for row in rows) == list(range(34))
    assert all(len({encoded_pairs.interchanged[row] for row in rows}) == 1 for rows in batches)
    assert min(map(len, batches)) > 1
