"""A sum of two sums modulo m: its interchanges by hand, its rivals, how it is written."""

import numpy as np
import pytest

from iit.data import Pairs
from iit.tasks import modular_sum
from tests.seeds import shifted


def test_interchanges_by_hand():
    model = modular_sum(5).model
    base, source = (
        {"a": 1, "b": 2, "c": 4, "d": 4, "noise": 0},
        {"a": 4, "b": 4, "c": 0, "d": 1, "noise": 1},
    )
    assert (model.run(base)["first"], model.run(base)["second"], model.run(base)["answer"]) == (
        3,
        3,
        1,
    )
    assert model.interchange(base, {"first": source})["answer"] == (3 + 3) % 5
    assert model.interchange(base, {"second": source})["answer"] == (3 + 1) % 5


def test_a_rival_behaves_alike_and_interchanges_otherwise():
    task = modular_sum(3)
    rng = np.random.default_rng(shifted(0))
    inputs = task.draw(rng, task.pools, 200)
    other = task.draw(rng, task.pools, 200)
    rival = task.rivals["first_is_a"]
    assert task.model.run_batch(inputs)["answer"] == rival.run_batch(inputs)["answer"]
    ours, theirs = (
        m.interchange_batch(inputs, {"first": other})["answer"] for m in (task.model, rival)
    )
    assert 0.4 < np.mean(np.array(ours) != np.array(theirs)) < 0.9
    by_chance = task.rivals["second_only"].run_batch(inputs)["answer"]
    assert (
        0.2 < np.mean(np.array(by_chance) == np.array(task.model.run_batch(inputs)["answer"])) < 0.5
    )


def test_it_is_written_one_hot_with_noise_that_splits_do_not_share():
    task = modular_sum(3, n_noise=2)
    x = task.write({"a": 0, "b": 2, "c": 1, "d": 1, "noise": 7})
    np.testing.assert_array_equal(x[:12], [1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0])
    vectors = np.random.default_rng(0).normal(size=(20_000, 2))
    np.testing.assert_array_equal(x[12:], vectors[7].astype(np.float32))
    pairs = Pairs.sample(task, n=200)
    noise = {
        s: {tuple(x[12:]) for x in pairs.split(s).with_format("numpy")[:]["base"]}
        for s in ("train", "test")
    }
    assert not noise["train"] & noise["test"]


@pytest.mark.parametrize("wrong", [{"n_values": 1}, {"n_noise": 0}, {"n_vectors": 2}])
def test_too_few_of_anything_is_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        modular_sum(**wrong)
