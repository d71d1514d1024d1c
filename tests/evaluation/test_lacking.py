"""Where pairs or alignment lack what a control needs, the verdict says so, and the rest of it
stands.
"""

import json

import numpy as np
import pytest
import torch

import iit
from iit.data import EncodedPairs, Pairs
from iit.evaluation import Trust, evaluate, verdict
from iit.evaluation.faithfulness import third_inputs
from iit.intervened import ActivationStore
from iit.network import equality_by_hand
from iit.tasks import equality

SITE = iit.Site(module="layers.2.0", side="input")
FULL = Trust(
    full=True,
    seeds=2,
    resamples=50,
    random_subspaces=1,
    interventions=50,
    wrong_site={"module": "layers.1.0"},
)


@pytest.fixture(scope="module")
def network():
    return equality_by_hand()


def sampled(network, variable="left_equal", **options):
    sizes = {"n_train": 24, "n_val": 12, "n_test": 24}
    return Pairs.sample(
        equality(), network, **sizes, variable=variable, right_only=False, **options
    )


def claim(network, intervention=None, variables=("left_equal",)):
    made = intervention or iit.VanillaIntervention(64, units=[0])
    rest = iit.Edit(SITE, iit.VanillaIntervention(64, units=list(range(2, 64))))
    return iit.Alignment(
        network, {v: iit.Edit(SITE, made) for v in variables}, inert={"rest": rest}
    )


def own(network, folder, chosen):
    """Some of the sampled pairs as a user's own, without a causal model."""
    rows = sampled(network).dataset.remove_columns(["rival_labels", "kind"]).to_list()
    (folder / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows if chosen(row)))
    return Pairs.load(folder / "own.jsonl", variable="left_equal")


def judged(alignment, pairs, trained=lambda *_: None):
    rows = evaluate(alignment, pairs, FULL, refit=trained)
    for row in rows:
        assert np.isfinite([row.value, row.low, row.high]).all()
        assert row.low <= row.value <= row.high
    (found,) = verdict(rows)
    return (
        {f.criterion: f for f in found.findings},
        {name.partition(" ")[0] for name in found.not_run},
        found,
    )


def test_a_claim_of_which_nothing_is_trained_is_not_held_against_itself(network):
    findings, missing, _ = judged(claim(network), sampled(network))
    assert "shuffled_label" in missing
    assert findings["selectivity"].value > 0, findings["selectivity"].reason
    trained = claim(network, iit.LowRankRotatedSpaceIntervention(64, 1))
    assert "shuffled_label" not in judged(trained, sampled(network))[1]


def test_evaluate_makes_a_store_of_its_own_and_a_given_one_stays(network):
    alignment, pairs = claim(network), sampled(network)
    stores = []

    def kept(controls, *_):
        assert alignment.store is None
        stores.extend(control.store for control in controls.values())

    evaluate(alignment, pairs, FULL, refit=kept)
    assert stores
    assert None not in stores
    assert alignment.store is None
    alignment.store = store = ActivationStore(network.model)
    evaluate(alignment, pairs, controls=False)
    assert alignment.store is store


def test_an_edit_without_a_source(network):
    findings, missing, _ = judged(
        claim(network, iit.AdditionIntervention(torch.ones(64))), sampled(network)
    )
    assert "off_target" in findings
    assert "abstraction" in missing


def test_pairs_that_interchange_everything_together(network):
    both = claim(network, variables=("left_equal", "right_equal"))
    _, _, found = judged(both, sampled(network, ["left_equal", "right_equal"], together=True))
    assert found.variable == "left_equal+right_equal"


def test_pairs_of_some_of_the_variables(network):
    findings, missing, _ = judged(
        claim(network, variables=("left_equal", "right_equal")), sampled(network)
    )
    assert "abstraction" in findings
    assert {
        "shuffled_label",
        "untrained_network",
        "wrong_site",
        "seed_spread",
        "off_target",
    } <= missing


def test_ones_own_pairs_of_one_split_or_one_pair(network, tmp_path):
    only_test = own(network, tmp_path, lambda row: row["split"] == "test")
    findings, missing, _ = judged(
        claim(network, iit.LowRankRotatedSpaceIntervention(64, 1)), only_test
    )
    assert {"accuracy", "faithfulness", "divergence"} - set(findings) == {"divergence"}
    assert {"abstraction", "majority", "generalisation", "shuffled_label", "beyond_pca"} <= missing
    (one,) = only_test.dataset.select([0]).to_list()
    first = own(network, tmp_path, lambda row: row["split"] != "test" or row["base"] == one["base"])
    findings, missing, _ = judged(claim(network), first)
    assert len(first.split("test")) == 1
    assert findings["accuracy"].outcome == "not judged"
    assert "faithfulness" in missing, "there is no third input"


def test_third_inputs_are_other_inputs(network):
    pairs = sampled(network)
    doubled = iit.Pairs(pairs.dataset.select([0, 0, 0, 1, 2, 2]), "left_equal")
    encoded = EncodedPairs(doubled.dataset, "left_equal", network)
    for seed in range(20):
        third = third_inputs(encoded, seed)
        assert all(encoded.bases[i] != encoded.bases[j] for i, j in enumerate(third))
    with pytest.raises(ValueError, match="the same base"):
        third_inputs(EncodedPairs(pairs.dataset.select([3, 3]), "left_equal", network), 0)
