from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from iit.tasks.drawing import distinct, entries, pick, taken
from tests.seeds import shifted


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_every_ordered_choice_is_as_likely(k):
    drawn = distinct(np.random.default_rng(shifted(0)), 4, 24_000, k)
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(permutations(range(4), k))
    mean = 24_000 / len(counts)
    assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5


def test_what_is_gone_is_not_drawn():
    gone = np.array([[1, 3], [9, 0], [7, 8]] * 6_000)
    drawn = distinct(np.random.default_rng(shifted(0)), 5, len(gone), 2, gone=gone)
    for start, left in enumerate(((0, 2, 4), (1, 2, 3, 4), (0, 1, 2, 3, 4))):
        counts = Counter(map(tuple, drawn[start::3].tolist()))
        assert set(counts) == set(permutations(left, 2))
        mean = 6_000 / len(counts)
        assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5


def test_too_small_a_size_is_an_error():
    with pytest.raises(ValueError, match=r"high <= 0|low >= high"):
        distinct(np.random.default_rng(shifted(0)), 2, 5, 3)


def test_entries_are_taken_as_they_are():
    pool = ("a", (1, 2), 3)
    assert taken(pool, np.array([1, 1, 0])) == [(1, 2), (1, 2), "a"]
    assert set(pick(np.random.default_rng(shifted(0)), {"p": pool}, "p", 50)) == set(pool)
    assert entries({"p": pool}, "p", at_least=3) is pool


def test_errors_name_the_pool():
    with pytest.raises(ValueError, match=r"pool 'q' is missing; there are \['p'\]"):
        entries({"p": (1,)}, "q")
    with pytest.raises(ValueError, match=r"at least 2 entries of the pool 'p'; it holds \[1\]"):
        entries({"p": (1,)}, "p", at_least=2)
