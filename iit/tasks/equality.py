"""Hierarchical equality over vectors (arXiv 2006.07968; aligned in 2112.00826 and 2303.02536).

(a = b) = (c = d) → 1 or 0.

The hypothesis: the network computes whether the left pair is equal and whether the right pair is,
and then whether these two agree.
"""

import numpy as np

from iit.causal import Columns, Pools, Task
from iit.tasks.drawing import Rng, entries, taken
from iit.tasks.hypotheses import hypotheses

MECHANISMS = {
    "left_equal": lambda a, b: a == b,
    "right_equal": lambda c, d: c == d,
    "answer": lambda left_equal, right_equal: int(left_equal == right_equal),
}
RIVALS = {
    "first_argument_identity": {
        "left_equal": lambda a: a,
        "right_equal": lambda c: c,
        "answer": lambda left_equal, b, right_equal, d: int(
            (left_equal == b) == (right_equal == d)
        ),
    },
    "left_only": {
        "left_equal": lambda a, b: a == b,
        "answer": lambda left_equal: int(left_equal),
    },
    "right_only": {
        "right_equal": lambda c, d: c == d,
        "answer": lambda right_equal: int(right_equal),
    },
}


def equality(
    dim: int = 4,
    n_objects: int = 100_000,
    seed: int = 0,
) -> Task:
    """(a = b) = (c = d). `left_equal`: a = b; `right_equal`: c = d. The answer is class 1 where
    they agree, else 0.

    An input is the number of an object. Object i is row i of a table of random vectors, uniform in
    [-1, 1). The network reads float32[4 · dim]: the vectors of a, b, c and d.

    dim: of each vector. n_objects: how many vectors there are. seed: of the vectors.

    Rivals: `first_argument_identity` (a itself, or c itself, is passed on and the comparison comes
    later) has the hypothesis' behaviour; `left_only` and `right_only` (one pair is looked at) are
    right by chance.

    Splits share no object, so that a network is tested on vectors it has never seen.

    Raises ValueError for no dimension and for fewer than two objects.
    """
    if dim < 1 or n_objects < 2:
        raise ValueError(
            f"Equality needs objects of at least 1 dimension, and two of them; got dim={dim}, "
            f"n_objects={n_objects}."
        )
    rng = np.random.default_rng(seed)
    vectors = rng.uniform(-1, 1, size=(n_objects, dim)).astype(np.float32)
    inputs = dict.fromkeys("abcd", range(n_objects))
    return Task(
        **hypotheses("equality", inputs, MECHANISMS, RIVALS),
        variables=("left_equal", "right_equal"),
        pools={"object": tuple(range(n_objects))},
        draw=draw,
        write=lambda row: vectors[[row[name] for name in "abcd"]].reshape(-1),
        answer=lambda setting: setting["answer"],
        uses=lambda row: {"object": [row[name] for name in "abcd"]},
        splits=("object",),
    )


def draw(rng: Rng, pools: Pools, n: int) -> Columns:
    """Each pair is equal in half of the rows, independently. Raises ValueError for fewer than two
    objects.
    """
    objects = entries(pools, "object", at_least=2)
    columns = {}
    for one, other in ("ab", "cd"):
        first = rng.integers(len(objects), size=n)
        # The step to the second object is 0 where the pair is equal.
        step = rng.integers(1, len(objects), size=n)
        step *= rng.integers(2, size=n)
        columns[one] = taken(objects, first)
        columns[other] = taken(objects, (first + step) % len(objects))
    return columns
