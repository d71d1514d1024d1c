"""Facts: sources that say the same thing of another subject."""

import numpy as np

from iit.causal import facts
from iit.causal.facts import FACTS, _relation
from tests.seeds import shifted


def test_sources_of_the_same_relation_have_another_attribute():
    task = facts()
    base = {"fact": list(FACTS)}
    sources = task.counterfactuals["same_relation"](
        np.random.default_rng(shifted(0)), task.pools, base
    )["fact"]
    changed = 0
    for fact, source in zip(base["fact"], sources, strict=True):
        assert _relation(source) == _relation(fact)
        assert (source == fact) or FACTS[source] != FACTS[fact]
        changed += source != fact
    alone = [
        fact
        for fact in FACTS
        if not any(_relation(o) == _relation(fact) and FACTS[o] != FACTS[fact] for o in FACTS)
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
