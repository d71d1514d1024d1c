"""A sum of two sums, modulo m: the task of the networks in which the true subspace is known.

((a + b) mod m + (c + d) mod m) mod m, beside inputs on which no answer depends.
"""

import numpy as np

from iit.causal import Columns, Inputs, Pools, Task
from iit.tasks.drawing import Rng, pick
from iit.tasks.hypotheses import hypotheses


def modular_sum(
    n_values: int = 3,
    n_noise: int = 4,
    n_vectors: int = 20_000,
    seed: int = 0,
) -> Task:
    """(a + b + c + d) mod m. `first`: (a + b) mod m; `second`: (c + d) mod m.

    `noise` is an input that no mechanism reads: the number of a random vector. The network reads
    float32[4 · m + n_noise]: a, b, c and d, one-hot, and the vector of noise.

    n_values: m. n_noise: the width of a vector. n_vectors: how many there are. seed: of the
        vectors.

    Rivals: `first_is_a` (a itself is passed on, b is added later) has the hypothesis' behaviour;
        `second_only` is right by chance.

    Splits share no vector of noise.

    Raises ValueError for fewer than 2 values, 1 number of noise and 6 vectors.
    """
    if n_values < 2 or n_noise < 1 or n_vectors < 6:
        raise ValueError(
            "A modular sum needs at least 2 values, 1 number of noise and 6 vectors; got "
            f"{n_values}, {n_noise} and {n_vectors}."
        )
    m = n_values
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n_vectors, n_noise)).astype(np.float32)
    one_hot = np.eye(m, dtype=np.float32)
    inputs = {**dict.fromkeys("abcd", range(m)), "noise": range(n_vectors)}
    second = {"second": lambda c, d: (c + d) % m}
    mechanisms = {
        "first": lambda a, b: (a + b) % m,
        **second,
        "answer": lambda first, second: (first + second) % m,
    }
    rivals = {
        "first_is_a": {
            "first": lambda a: a,
            **second,
            "answer": lambda first, b, second: (first + b + second) % m,
        },
        "second_only": {**second, "answer": lambda second: second},
    }

    def draw(rng: Rng, pools: Pools, n: int) -> Columns:
        columns = {name: rng.integers(m, size=n).tolist() for name in "abcd"}
        return {**columns, "noise": pick(rng, pools, "noise", n)}

    def write(row: Inputs) -> np.ndarray:
        codes = one_hot[[row[name] for name in "abcd"]]  # [4, m]
        return np.concatenate([codes.reshape(-1), vectors[row["noise"]]])

    return Task(
        **hypotheses("modular_sum", inputs, mechanisms, rivals),
        variables=("first", "second"),
        pools={"noise": tuple(range(n_vectors))},
        draw=draw,
        write=write,
        answer=lambda setting: setting["answer"],
        uses=lambda row: {"noise": [row["noise"]]},
        splits=("noise",),
    )
