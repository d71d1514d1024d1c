"""A sum of two sums, modulo m: the task of the networks in which the true subspace is known.

((a + b) mod m + (c + d) mod m) mod m, beside inputs on which no answer depends.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from iit.causal.drawing import entries, picked
from iit.causal.model import CausalModel
from iit.causal.task import Columns, Pools, Task


@final
class ModularSum(Task):
    """(a + b + c + d) mod m. `first`: (a + b) mod m; `second`: (c + d) mod m.

    `noise` is an input that no mechanism reads: a row of a table of random vectors, the same for a
    given seed; splits share none.

    Rivals: `first_is_a` (a itself is passed on, b is added later) has the hypothesis' behaviour;
        `second_only` is right by chance.
    """

    name = "modular_sum"
    variables = ("first", "second")
    splits = ("noise",)

    def __init__(
        self, n_values: int = 3, n_noise: int = 4, n_vectors: int = 20_000, seed: int = 0
    ) -> None:
        if n_values < 2 or n_noise < 1 or n_vectors < 6:
            raise ValueError(
                "A modular sum needs at least 2 values, 1 number of noise and 6 vectors; got "
                f"{n_values}, {n_noise} and {n_vectors}."
            )
        self.n_values = n_values
        self.vectors = (
            np.random.default_rng(seed).normal(size=(n_vectors, n_noise)).astype(np.float32)
        )
        self.pools = {"noise": tuple(range(n_vectors))}
        inputs = {**{name: range(n_values) for name in "abcd"}, "noise": range(n_vectors)}
        m = n_values
        self.model = CausalModel(
            inputs,
            {
                "first": lambda a, b: (a + b) % m,
                "second": lambda c, d: (c + d) % m,
                "answer": lambda first, second: (first + second) % m,
            },
            output="answer",
            name="modular_sum",
        )
        self.rivals = {
            "first_is_a": CausalModel(
                inputs,
                {
                    "first": lambda a: a,
                    "second": lambda c, d: (c + d) % m,
                    "answer": lambda first, b, second: (first + b + second) % m,
                },
                output="answer",
                name="first_is_a",
            ),
            "second_only": CausalModel(
                inputs,
                {"second": lambda c, d: (c + d) % m, "answer": lambda second: second},
                output="answer",
                name="second_only",
            ),
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """All inputs uniform and independent."""
        drawn = {name: rng.integers(self.n_values, size=n).tolist() for name in "abcd"}
        return drawn | {"noise": picked(rng, entries(pools, "noise"), n)}

    def write(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """float32[4·m + n_noise]: a, b, c and d, one-hot; the vector of noise."""
        codes = np.eye(self.n_values, dtype=np.float32)[[inputs[name] for name in "abcd"]].reshape(
            -1
        )
        return np.concatenate([codes, self.vectors[inputs["noise"]]])

    def answer(self, setting: Mapping[str, Any]) -> int:
        """The sum."""
        return setting["answer"]


def modular_sum(
    n_values: int = 3, n_noise: int = 4, n_vectors: int = 20_000, seed: int = 0
) -> Task:
    """A sum modulo `n_values`, with `n_noise` numbers beside it. Raises ValueError for too few of
    them.
    """
    return ModularSum(n_values, n_noise, n_vectors, seed)
