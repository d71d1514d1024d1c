"""The seed of a run of the tests: `make test SEED=3` draws other numbers everywhere."""

SEED = 0


def shifted(number: int) -> int:
    """The seed that stands for this one in this run of the tests."""
    return number + 1000 * SEED
