"""Hierarchical equality over vectors (arXiv 2006.07968; aligned in 2112.00826 and 2303.02536).

(a = b) = (c = d) → 1 or 0.

The hypothesis: the network computes whether the left pair is equal and whether the right pair is,
and then whether these two agree.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from iit.causal.drawing import entries, taken
from iit.causal.model import CausalModel
from iit.causal.task import Columns, Pools, Task


@final
class HierarchicalEquality(Task):
    """(a = b) = (c = d). `left_equal`: a = b; `right_equal`: c = d. The answer is class 1 where
    they agree, else 0.

    The inputs are numbers of objects; object i is row i of a table of uniform random vectors in
    [-1, 1), the same for a given seed. Splits share no object, so that a network is tested on
    vectors it has never seen.

    Rivals: `first_argument_identity` (what is passed on is a, or c, itself; the comparison comes
    later) has the hypothesis' behaviour; `left_only` and `right_only` (one pair is looked at) are
    right by chance.
    """

    name = "equality"
    variables = ("left_equal", "right_equal")
    splits = ("object",)

    def __init__(self, dim: int = 4, n_objects: int = 100_000, seed: int = 0) -> None:
        if dim < 1 or n_objects < 2:
            raise ValueError(
                "Equality needs objects of at least 1 dimension, and two of them; got "
                f"dim={dim}, n_objects={n_objects}."
            )
        self.dim = dim
        self.vectors = (
            np.random.default_rng(seed).uniform(-1, 1, size=(n_objects, dim)).astype(np.float32)
        )
        self.pools = {"object": tuple(range(n_objects))}
        inputs = {argument: range(n_objects) for argument in "abcd"}
        self.model = CausalModel(
            inputs,
            {
                "left_equal": lambda a, b: a == b,
                "right_equal": lambda c, d: c == d,
                "answer": lambda left_equal, right_equal: int(left_equal == right_equal),
            },
            output="answer",
            name="equality",
        )
        self.rivals = {
            "first_argument_identity": CausalModel(
                inputs,
                {
                    "left_equal": lambda a: a,
                    "right_equal": lambda c: c,
                    "answer": lambda left_equal, b, right_equal, d: int(
                        (left_equal == b) == (right_equal == d)
                    ),
                },
                output="answer",
                name="first_argument_identity",
            ),
            "left_only": CausalModel(
                inputs,
                {"left_equal": lambda a, b: a == b, "answer": lambda left_equal: int(left_equal)},
                output="answer",
                name="left_only",
            ),
            "right_only": CausalModel(
                inputs,
                {
                    "right_equal": lambda c, d: c == d,
                    "answer": lambda right_equal: int(right_equal),
                },
                output="answer",
                name="right_only",
            ),
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Each pair is equal in half of the rows, independently. Raises ValueError for fewer than
        two objects.
        """
        objects = entries(pools, "object", at_least=2)
        columns: Columns = {}
        for one, other in ("ab", "cd"):
            first = rng.integers(len(objects), size=n)
            # 0 where the pair is equal
            step = rng.integers(1, len(objects), size=n) * rng.integers(2, size=n)
            columns[one], columns[other] = (
                taken(objects, first),
                taken(objects, (first + step) % len(objects)),
            )
        return columns

    def uses(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The entries of each pool that these inputs are made of."""
        return {"object": [inputs[argument] for argument in "abcd"]}

    def write(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """float32[4 · dim]: the vectors of a, b, c and d, one after the other."""
        return self.vectors[[inputs["a"], inputs["b"], inputs["c"], inputs["d"]]].reshape(-1)

    def answer(self, setting: Mapping[str, Any]) -> int:
        """1 where both pairs are equal or neither is."""
        return setting["answer"]


def equality(dim: int = 4, n_objects: int = 100_000, seed: int = 0) -> Task:
    """Hierarchical equality. dim: of each vector. n_objects: how many vectors there are. Raises
    ValueError for none of them.
    """
    return HierarchicalEquality(dim, n_objects, seed)
