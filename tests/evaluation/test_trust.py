"""What `trust=full` says of claims whose truth is known: small networks, five seeds each."""

import logging
from functools import partial

import lightning as L
import pytest
import torch

import iit
from iit.alignment import DAS
from iit.causal import modular_sum
from iit.data import Pairs
from iit.evaluation import Trust, evaluate, train_alike, verdict
from iit.evaluation.retrained import _shuffled
from iit.network import planted, untrained

SITE, AROUND = iit.Site(module="read", side="input"), iit.Site(module="bypass")
RANK, WIDTH = 2, 32
TRUST = Trust(full=True, seeds=2, resamples=200, random_subspaces=2, wrong_site={"module": "embedding", "side": "output"})
refit = partial(
    train_alike,
    batch_size=64,
    max_epochs=3,
    trainer=partial(L.Trainer, enable_progress_bar=False, enable_model_summary=False),
    module=partial(DAS, optimizer=partial(torch.optim.Adam, lr=6e-2)),
)


@pytest.fixture(autouse=True)
def small():
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as fast for networks of this size, and nobody waits for another
    yield
    torch.set_num_threads(threads)


def judged(network, seed, *, shuffle=False, declare=True):
    task = modular_sum(3)
    pairs = Pairs.sample(task, network, n_train=1280, n_val=100, n_test=200, variable="first", right_only=False, seed=seed)
    pairs = _shuffled(pairs, seed) if shuffle else pairs
    torch.manual_seed(seed)
    edit = iit.Edit(SITE, iit.LowRankRotatedSpaceIntervention(WIDTH, RANK))
    inert = {"bypass": iit.Edit(AROUND, iit.VanillaIntervention())} if declare else {}
    alignment = iit.Alignment(network, {"first": edit}, inert=inert)
    refit({"": alignment}, pairs, seed)
    rows = evaluate(alignment, pairs, TRUST, seed=seed, refit=refit, batch_size=200)
    (found,) = verdict(rows)
    return found, rows


def failing(found):
    return {finding.criterion: finding.reason for finding in found.findings if finding.outcome == "fail"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_a_valid_claim_passes(seed):
    found, rows = judged(planted(3, WIDTH, "clean", seed=seed), seed)
    assert found.outcome == "pass", found.line()
    assert found.not_run == ()
    controls = {row.control for row in rows if row.split == "test"}
    assert {
        "pca_subspace",
        "majority",
        "shuffled_label",
        "untrained_network",
        "wrong_site",
        "seeds",
        "seed/1",
        "seed/2",
    } <= controls
    assert {"inert_resampled", "read_part", "random_subspace", "off_target/first"} <= controls


def test_what_was_not_declared_is_said():
    alignment = iit.Alignment(planted(3, WIDTH), {"first": iit.Edit(SITE, iit.LowRankRotatedSpaceIntervention(WIDTH, RANK))})
    pairs = Pairs.sample(modular_sum(3), n_train=40, n_val=20, n_test=40, variable="first")
    (found,) = verdict(evaluate(alignment, pairs))
    assert "faithfulness (the alignment declares nothing inert)" in found.not_run
    assert {"shuffled_label", "untrained_network", "wrong_site", "illusion"} <= set(found.not_run)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("encoding", "criteria"),
    [("wrong", {"accuracy", "selectivity"}), ("leaky", {"faithfulness"}), ("illusion", {"faithfulness", "illusion"})],
)
def test_an_invalid_claim_fails_for_its_reason(encoding, criteria, seed):
    found, _ = judged(planted(3, WIDTH, encoding, seed=seed), seed)
    assert found.outcome == "fail"
    assert criteria <= set(failing(found)), found.line()
    if encoding != "wrong":  # these are wrong with the best accuracy
        assert set(failing(found)) <= criteria | {"divergence", "seed_spread"}
        accuracy = next(f.value for f in found.findings if f.criterion == "accuracy")
        assert accuracy > 0.95
        assert "third input" in failing(found)["faithfulness"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_a_random_network_fails(seed):
    found, _ = judged(untrained(planted(3, WIDTH, "clean", seed=seed), seed), seed)
    assert found.outcome == "fail"
    assert {"task", "selectivity"} <= set(failing(found)), found.line()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_labels_fail(seed):
    found, _ = judged(planted(3, WIDTH, "clean", seed=seed), seed, shuffle=True)
    assert found.outcome == "fail"
    assert {"accuracy", "selectivity"} <= set(failing(found)), found.line()
