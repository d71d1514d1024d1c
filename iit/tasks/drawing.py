"""Drawing from pools: what every task's `draw` is made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iit.causal import Pools

Rng = np.random.Generator


def entries(pools: Pools, name: str, at_least: int = 1) -> Sequence[Any]:
    """The pool of that name. Raises ValueError when it is missing or holds too few entries."""
    if name not in pools:
        raise ValueError(f"The pool {name!r} is missing; there are {sorted(pools)}.")
    pool = pools[name]
    if len(pool) < at_least:
        raise ValueError(
            f"Drawing needs at least {at_least} entries of the pool {name!r}; it holds "
            f"{list(pool)}. Give it more entries, or leave it out of data.splits."
        )
    return pool


def taken(pool: Sequence[Any], index: np.ndarray) -> list[Any]:
    """The pool's entries at these indices."""
    return [pool[i] for i in index.tolist()]


def pick(rng: Rng, pools: Pools, name: str, n: int) -> list[Any]:
    """n entries of a pool, with replacement. Raises ValueError for an empty pool."""
    pool = entries(pools, name)
    return taken(pool, rng.integers(len(pool), size=n))


def distinct(
    rng: Rng,
    size: int,
    n: int,
    k: int,
    gone: np.ndarray | None = None,
) -> np.ndarray:
    """int[n, k]: in each row k different numbers below `size`. Every ordered choice is as likely.

    gone: int[n, m], numbers that a row must not hold. Numbers not below `size` forbid nothing.
    """
    drawn = np.empty((n, 0), dtype=np.int64) if gone is None else gone
    for _ in range(k):
        new = rng.integers(size - (drawn < size).sum(axis=1))
        # The new number counts what is left. It steps over what is gone, from the smallest.
        for earlier in np.sort(drawn, axis=1).T:
            new += new >= earlier
        drawn = np.column_stack([drawn, new])
    return drawn[:, drawn.shape[1] - k :]
