"""Splits that share no entry: each named pool is cut into disjoint parts, one for each split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iit.causal import Pools
from iit.data.prompts import at

SPLITS = ("train", "validation", "test")


def disjoint_pools(
    pools: Pools,
    names: Sequence[str],
    shares: Sequence[float] = (0.5, 0.2, 0.3),
    *,
    rng: np.random.Generator,
) -> dict[str, dict[str, tuple[Any, ...]]]:
    """{split: pools}, with some pools divided among the splits.

    Arguments:
        pools: {name: entries}.
        names: the pools that are shuffled and cut by `shares`; the others are the same in every
            split.
        shares: of train, validation and test; they sum to 1.
        rng: of the shuffling.

    Raises:
        ValueError: for a pool that does not exist, shares that are no partition, or a pool too
            small to cut.
    """
    unknown = sorted(set(names) - set(pools))
    if unknown:
        raise ValueError(f"data.splits names {unknown}; the task's pools are {sorted(pools)}.")
    if len(shares) != len(SPLITS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"data.shares must be {len(SPLITS)} positive numbers that sum to 1 "
            f"({', '.join(SPLITS)}); got {list(shares)}."
        )
    undivided = dict(zip(pools, map(tuple, pools.values()), strict=True))
    parts = {split: dict(undivided) for split in SPLITS}
    # The running sums of the shares; the last is 1.
    sums = np.cumsum(shares)
    for name, pool in pools.items():
        if name not in names:
            continue
        order = at(pool, rng.permutation(len(pool)))
        cuts = [0, *(round(len(pool) * share) for share in sums)]
        for split, start, stop in zip(SPLITS, cuts[:-1], cuts[1:], strict=True):
            if start == stop:
                raise ValueError(
                    f"Pool {name!r} has {len(pool)} entries, too few to cut by {list(shares)}; add "
                    "entries or leave it out of data.splits."
                )
            parts[split][name] = tuple(order[start:stop])
    return parts
