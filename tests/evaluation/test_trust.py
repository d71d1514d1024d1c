"""What `trust=full` says of claims whose truth is known: small networks, five seeds each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import iit
from iit.causal import modular_sum
from iit.data import Pairs
from iit.evaluation import evaluate, verdict
from iit.network import planted

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))]


@pytest.fixture(scope="module")
def verdicts(request):
    """claim → verdicts, one a seed; of the claims and seeds that are asked for, for the others are long."""
    tests = [
        item.callspec.params for item in request.session.items if item.path == request.path and "verdicts" in item.fixturenames
    ]
    n_seeds = 1 + max(test["seed"] for test in tests)
    claims = sorted({test.get("claim", "clean") for test in tests})
    script = Path(__file__).parent / "planted_claims.py"
    command = [sys.executable, script, str(n_seeds), *claims]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    return json.loads(done.stdout[done.stdout.index('{"') :])


def failing(found):
    return {finding["criterion"]: finding["reason"] for finding in found["findings"] if finding["outcome"] == "fail"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_valid_claim_passes(verdicts, seed):
    found = verdicts["clean"][seed]
    assert found["outcome"] == "pass", found["line"]
    assert found["not_run"] == []
    trained_again = {"shuffled_label", "untrained_network", "wrong_site", "seeds", "seed/1", "seed/2"}
    others = {"pca_subspace", "majority", "random_subspace", "inert_resampled", "read_part", "off_target/first"}
    others |= {"read_part/vanilla", "read_part/random_subspace", "read_part/random_subspace/0"}
    assert trained_again | others <= set(found["controls"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("claim", "criteria"),
    [
        ("leaky", {"faithfulness", "abstraction"}),
        pytest.param("wrong", {"accuracy", "selectivity", "abstraction"}, marks=pytest.mark.long),
        pytest.param("illusion", {"faithfulness", "illusion"}, marks=pytest.mark.long),
        pytest.param("random_network", {"task", "selectivity", "abstraction"}, marks=pytest.mark.long),
        pytest.param("shuffled_label", {"accuracy", "selectivity", "abstraction"}, marks=pytest.mark.long),
    ],
)
def test_an_invalid_claim_fails_for_its_reason(verdicts, claim, criteria, seed):
    found = verdicts[claim][seed]
    assert found["outcome"] == "fail"
    assert criteria <= set(failing(found)), found["line"]
    if claim in ("leaky", "illusion"):  # wrong with a high accuracy
        assert next(f["value"] for f in found["findings"] if f["criterion"] == "accuracy") > 0.9
        assert "third input" in failing(found)["faithfulness"]
    if claim == "leaky":
        assert set(failing(found)) == criteria


def test_what_was_not_declared_is_said():
    edit = iit.Edit(iit.Site(module="read", side="input"), iit.LowRankRotatedSpaceIntervention(32, 2))
    alignment = iit.Alignment(planted(3, 32), {"first": edit})
    pairs = Pairs.sample(modular_sum(3), n_train=40, n_val=20, n_test=40, variable="first")
    (found,) = verdict(evaluate(alignment, pairs))
    assert any(name.startswith("faithfulness (the alignment declares nothing inert") for name in found.not_run)
    assert {"shuffled_label", "untrained_network", "wrong_site", "illusion"} <= {name.partition(" ")[0] for name in found.not_run}
