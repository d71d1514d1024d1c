"""Facts about well-known subjects (in the manner of CounterFact, arXiv 2202.05262).

"The Eiffel Tower is in the city of" → " Paris".

The hypothesis: the network looks up the attribute at the subject, and gives it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from iit.causal.drawing import entries, picked
from iit.causal.model import CausalModel
from iit.causal.task import Columns, Pools, Prompt, Task, written

# The subject in braces; the answer is one token of SmolLM2's, of an answer of several words the
# first. No subject holds its answer. Of about 170 such sentences these are the ones that
# SmolLM2-135M ends as written here, with p of 0.4 or more.
FACTS = {
    fact.strip(): answer.strip()
    for fact, answer in (
        line.split("|")
        for line in """
    {The Eiffel Tower} is in the city of | Paris
    {The Louvre Museum} is in the city of | Paris
    {The Colosseum} is in the city of | Rome
    {The British Museum} is in the city of | London
    {The Statue of Liberty} is in the city of | New
    {The Acropolis} is in the city of | Athens
    {The Golden Gate Bridge} is in the city of | San
    {The Sagrada Familia} is in the city of | Barcelona
    {The Western Wall} is in the city of | Jerusalem
    {The Willis Tower} is in the city of | Chicago
    {The Uffizi Gallery} is in the city of | Florence
    {The Rijksmuseum} is in the city of | Amsterdam
    {The Great Wall} was built in the country of | China
    {The Taj Mahal} was built in the country of | India
    {The Great Pyramid of Giza} was built in the country of | Egypt
    {Machu Picchu} is in the country of | Peru
    The city of {Tokyo} is in the country of | Japan
    The city of {Nairobi} is in the country of | Kenya
    The city of {Cairo} is in the country of | Egypt
    The city of {Mumbai} is in the country of | India
    The city of {Shanghai} is in the country of | China
    The city of {Toronto} is in the country of | Canada
    The city of {Munich} is in the country of | Germany
    The city of {Milan} is in the country of | Italy
    The city of {Barcelona} is in the country of | Spain
    The city of {Rio de Janeiro} is in the country of | Brazil
    The city of {Buenos Aires} is in the country of | Argentina
    The city of {Lagos} is in the country of | Nigeria
    The city of {Istanbul} is in the country of | Turkey
    The city of {Havana} is in the country of | Cuba
    The city of {Lisbon} is in the country of | Portugal
    The city of {Melbourne} is in the country of | Australia
    The city of {Seoul} is in the country of | South
    The city of {Baghdad} is in the country of | Iraq
    The capital of {France} is the city of | Paris
    The capital of {Germany} is the city of | Berlin
    The capital of {Italy} is the city of | Rome
    The capital of {Japan} is the city of | Tokyo
    The capital of {England} is the city of | London
    The capital of {the United Kingdom} is the city of | London
    The capital of {the Netherlands} is the city of | Amsterdam
    The capital of {the Czech Republic} is the city of | Prague
    The capital of {Kenya} is the city of | Nairobi
    The country of {Nigeria} is on the continent of | Africa
    The country of {Ethiopia} is on the continent of | Africa
    The country of {Zimbabwe} is on the continent of | Africa
    The country of {Germany} is on the continent of | Europe
    The country of {Vietnam} is on the continent of | Asia
    The country of {Mongolia} is on the continent of | Asia
    {The Sahara Desert} is on the continent of | Africa
    {The Nile River} is on the continent of | Africa
    {The Himalayan mountain range} is on the continent of | Asia
    {The Amazon rainforest} is on the continent of | South
    {The Swiss Alps} are on the continent of | Europe
    {The iPhone} was developed by | Apple
    {The MacBook Pro} was developed by | Apple
    {Windows XP} was developed by | Microsoft
    {The Chrome browser} was developed by | Google
    {The theory of relativity} was developed by | Albert
    {The theory of evolution} was developed by | Charles
    {Pride and Prejudice} was written by | Jane
    {The Origin of Species} was written by | Charles
    {The Communist Manifesto} was written by | Karl
    {The Prophet Muhammad} founded the religion of | Islam
    {Siddhartha Gautama} founded the religion of | Buddhism
    {The Torah} is the holy book of | Judaism
    The mother tongue of {Julius Caesar} was | Latin
    """.strip().splitlines()
    )
}
"""Sentence → how it ends."""


def _relation(fact: str) -> str:
    """What is said of the subject."""
    return re.sub(r"\{.*\}", "{}", fact)


def _commonest() -> dict[str, str]:
    """Relation → the answer that most of its facts have."""
    answers: dict[str, Counter[str]] = {}
    for fact, answer in FACTS.items():
        answers.setdefault(_relation(fact), Counter())[answer] += 1
    return {relation: count.most_common(1)[0][0] for relation, count in answers.items()}


COMMONEST = _commonest()


@final
class Facts(Task):
    """Facts. `attribute`: what the sentence says of its subject.

    Role: `subject`, of one token or more.

    Rival: `commonest` (whatever the subject, the relation's most frequent attribute is given).

    Counterfactual: `same_relation`, the same thing said of another subject, so that base and source
        have one form.

    Splits share no fact.
    """

    name = "facts"
    variables = ("attribute",)
    splits = ("fact",)

    def __init__(self) -> None:
        self.pools = {"fact": tuple(FACTS)}
        self.model = _model("facts", FACTS)
        self.counterfactuals = {"same_relation": same_relation}
        self.rivals = {
            "commonest": _model("commonest", {fact: COMMONEST[_relation(fact)] for fact in FACTS})
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """A fact each. Raises ValueError for an empty pool."""
        return {"fact": picked(rng, entries(pools, "fact"), n)}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The sentence up to its answer."""
        before, subject, after = re.split(r"[{}]", inputs["fact"])
        return written(f"{before}{{subject}}{after}", {"subject": (subject, "subject")})

    def answer(self, setting: Mapping[str, Any]) -> str:
        """The attribute, after a space."""
        return f" {setting['answer']}"


def same_relation(
    rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]
) -> Columns:
    """Another fact of the same relation with another attribute; the base's own where there is
    none.
    """
    related: dict[str, list[str]] = {}
    for fact in entries(pools, "fact"):
        related.setdefault(_relation(fact), []).append(fact)
    sources = []
    for fact in base["fact"]:
        others = [
            other for other in related.get(_relation(fact), ()) if FACTS[other] != FACTS[fact]
        ]
        sources.append(picked(rng, others or [fact], 1)[0])
    return {"fact": sources}


def _model(name: str, attributes: Mapping[str, str]) -> CausalModel:
    mechanisms = {"attribute": lambda fact: attributes[fact], "answer": lambda attribute: attribute}
    return CausalModel({"fact": tuple(FACTS)}, mechanisms, output="answer", name=name)


def facts() -> Task:
    """The facts task."""
    return Facts()
