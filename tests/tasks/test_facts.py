"""Facts: sources that say the same thing of another subject."""

import numpy as np

from iit.tasks import facts
from iit.tasks.facts import FACTS
from tests.seeds import shifted


def test_sources_of_the_same_relation_have_another_attribute():
    task = facts()
    base = {"fact": list(FACTS)}
    sources = task.counterfactuals["same_relation"](
        np.random.default_rng(shifted(0)), task.pools, base
    )["fact"]
    changed = 0
    for fact, source in zip(base["fact"], sources, strict=True):
        assert FACTS[source]["relation"] == FACTS[fact]["relation"]
        assert (source == fact) or FACTS[source]["answer"] != FACTS[fact]["answer"]
        changed += source != fact
    alone = [
        fact
        for fact, row in FACTS.items()
        if all(
            other["relation"] != row["relation"] or other["answer"] == row["answer"]
            for other in FACTS.values()
        )
    ]
    assert changed == len(FACTS) - len(alone)
    assert 0 < len(alone) < 10


def test_sources_stay_in_their_split():
    task = facts()
    few = {"fact": tuple(FACTS)[:5]}
    sources = task.counterfactuals["same_relation"](
        np.random.default_rng(shifted(1)), few, {"fact": list(few["fact"])}
    )
    assert set(sources["fact"]) <= set(few["fact"])
