import numpy as np
import pytest

from iit.tasks import equality
from tests.seeds import shifted


def inputs(a, b, c, d):
    return {"a": a, "b": b, "c": c, "d": d}


# a, b, c, d → left_equal, right_equal, answer
TRUTH = [
    ((1, 1, 2, 2), (True, True, 1)),
    ((1, 2, 3, 3), (False, True, 0)),
    ((1, 1, 3, 4), (True, False, 0)),
    ((1, 2, 3, 4), (False, False, 1)),
    ((5, 5, 5, 5), (True, True, 1)),
    ((1, 2, 1, 2), (False, False, 1)),
]


@pytest.mark.parametrize(("row", "values"), TRUTH)
def test_truth_table(row, values):
    setting = equality(n_objects=9).model.run(inputs(*row))
    assert (setting["left_equal"], setting["right_equal"], setting["answer"]) == values


# base, source → after interchanging left_equal: the model, first_argument_identity, left_only
INTERCHANGES = [
    ((1, 1, 2, 2), (3, 4, 5, 5), 0, 0, 0),
    # another equal pair: equal still, but not the same object
    ((1, 1, 2, 2), (3, 3, 5, 5), 1, 0, 1),
    ((1, 2, 3, 4), (3, 3, 5, 5), 0, 1, 1),
    ((1, 2, 3, 3), (2, 4, 5, 5), 0, 1, 0),  # b is the source's a
]


@pytest.mark.parametrize(("base", "source", "label", "identity", "left_only"), INTERCHANGES)
def test_interchanges(base, source, label, identity, left_only):
    task, sources = equality(n_objects=9), {"left_equal": inputs(*source)}
    assert task.model.interchange(inputs(*base), sources)["answer"] == label
    assert (
        task.rivals["first_argument_identity"].interchange(inputs(*base), sources)["answer"]
        == identity
    )
    assert task.rivals["left_only"].interchange(inputs(*base), sources)["answer"] == left_only


def vectors(task):
    """Every object's vector, in order."""
    n = len(task.pools["object"])
    return np.stack([task.write(inputs(i, 0, 0, 0)).reshape(4, -1)[0] for i in range(n)])


def test_vectors_are_written_in_order():
    task = equality(dim=3, n_objects=7)
    written = task.write(inputs(0, 6, 2, 2))
    assert written.shape == (12,)
    assert written.dtype == np.float32
    assert np.array_equal(written.reshape(4, 3), vectors(task)[[0, 6, 2, 2]])
    assert (written[6:9] == written[9:]).all()


def test_a_seed_fixes_the_vectors_and_no_two_are_equal():
    assert np.array_equal(vectors(equality(seed=3)), vectors(equality(seed=3)))
    assert not np.array_equal(vectors(equality(seed=3)), vectors(equality(seed=4)))
    table = vectors(equality())
    assert len(np.unique(table, axis=0)) == len(table) == 100_000
    assert -1 <= table.min() < -0.99
    assert 0.99 < table.max() < 1


def test_draws_are_balanced():
    task = equality()
    columns = task.draw(np.random.default_rng(shifted(0)), task.pools, 4000)
    left, right = (np.equal(columns[one], columns[other]) for one, other in ("ab", "cd"))
    shares = [
        (left & right).mean(),
        (left & ~right).mean(),
        (~left & right).mean(),
        (~left & ~right).mean(),
    ]
    assert max(abs(share - 0.25) for share in shares) < 0.03


def test_impossible_sizes_are_refused():
    for sizes in ({"dim": 0}, {"n_objects": 1}):
        with pytest.raises(ValueError, match="at least 1 dimension, and two of them"):
            equality(**sizes)
    task = equality(n_objects=9)
    with pytest.raises(
        ValueError, match=r"at least 2 entries of the pool 'object'; it holds \[3\]"
    ):
        task.draw(np.random.default_rng(shifted(0)), {"object": (3,)}, 1)
