import numpy as np
import pytest

from iit.data import SPLITS, disjoint_pools
from tests.seeds import shifted

POOLS = {
    "name": tuple(f"n{i}" for i in range(20)),
    "template": tuple(range(6)),
    "place": ("a", "b"),
}


def test_named_pools_share_nothing_and_lose_nothing():
    parts = disjoint_pools(POOLS, ["name", "template"], rng=np.random.default_rng(shifted(0)))
    for pool in ("name", "template"):
        found = [entry for split in SPLITS for entry in parts[split][pool]]
        assert sorted(found, key=str) == sorted(POOLS[pool], key=str)
    assert all(parts[split]["place"] == POOLS["place"] for split in SPLITS)
    assert [len(parts[split]["name"]) for split in SPLITS] == [10, 4, 6]


def test_a_seed_fixes_the_split():
    first, again, other = (
        disjoint_pools(POOLS, ["name"], rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("names", "shares", "said"),
    [
        (["nam"], (0.5, 0.2, 0.3), "nam.*pools are.*name"),
        (["name"], (0.5, 0.5), "sum to 1"),
        (["name"], (0.5, 0.2, 0.2), "sum to 1"),
        (["place"], (0.5, 0.2, 0.3), "'place' has 2 entries"),
    ],
)
def test_errors_name_the_culprit(names, shares, said):
    with pytest.raises(ValueError, match=said):
        disjoint_pools(POOLS, names, shares, rng=np.random.default_rng(shifted(0)))
