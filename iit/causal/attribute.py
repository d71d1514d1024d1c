"""Attributes of countries (in the manner of RAVEL, arXiv 2402.17700).

"In Japan, the capital is" → " Tokyo".

The hypothesis: the network looks up each attribute of the country by itself, and gives the one that
is asked for.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from iit.causal.countries import COUNTRIES
from iit.causal.drawing import entries, picked
from iit.causal.model import CausalModel, Mechanism
from iit.causal.task import Columns, Pools, Prompt, Task, written

QUERIES = ("capital", "language", "continent")
ATTRIBUTES = {query: {row[0]: row[1 + at] for row in COUNTRIES} for at, query in enumerate(QUERIES)}
ENTITIES = tuple(row[0] for row in COUNTRIES)

# Of one row all begin alike, up to the entity: nothing at the entity tells which attribute will be
# asked for. With an earlier list of 107 countries SmolLM2-135M answered 72% of the 1,926 prompts
# (capital 62%, language 76%, continent 79%; no question of a row below 54%).
TEMPLATES = (
    {
        "capital": "This is a map of {entity}. The capital is",
        "language": "This is a map of {entity}. The official language is",
        "continent": "This is a map of {entity}. It is part of the continent of",
    },
    {
        "capital": "Here are some facts about {entity}. The capital is",
        "language": "Here are some facts about {entity}. The official language is",
        "continent": "Here are some facts about {entity}. It is on the continent of",
    },
    {
        "capital": "We travelled through {entity} to the capital,",
        "language": "We travelled through {entity}, where the official language is",
        "continent": "We travelled through {entity} and other countries on the continent of",
    },
    {
        "capital": "In {entity}, the parliament meets in the capital,",
        "language": "In {entity}, the official language is",
        "continent": "In {entity}, you are on the continent of",
    },
    {
        "capital": "He flew to {entity} to visit the capital,",
        "language": "He flew to {entity}, where the official language is",
        "continent": "He flew to {entity}, on the continent of",
    },
    {
        "capital": "People in {entity} often visit the capital,",
        "language": "People in {entity} speak one official language,",
        "continent": "People in {entity} live on the continent of",
    },
)
INPUTS = {"template": range(len(TEMPLATES)), "query": QUERIES, "entity": ENTITIES}


@final
class Attribute(Task):
    """Attributes. `capital`, `language`, `continent`: the country's.

    A cause pair's base asks for the interchanged attribute, an isolate pair's base for another one,
    and must not change.

    Role: `entity`. Its names are of one token or more; `entity_last`, the last one, is what a site
        can name in all prompts.

    Rivals, both with the hypothesis' behaviour: `whole_entity` (the attributes are not told apart:
    whichever is interchanged, the country changes altogether) and `asked_at_once` (what is passed
    on is the answer to the prompt's own question).

    Splits share no country.
    """

    name = "attribute"
    variables = QUERIES
    splits = ("entity",)
    asks = "query"

    def __init__(self) -> None:
        self.pools = {
            "entity": ENTITIES,
            "query": QUERIES,
            "template": tuple(range(len(TEMPLATES))),
        }
        self.model = CausalModel(
            INPUTS,
            {
                "capital": lambda entity: ATTRIBUTES["capital"][entity],
                "language": lambda entity: ATTRIBUTES["language"][entity],
                "continent": lambda entity: ATTRIBUTES["continent"][entity],
                "answer": lambda query, capital, language, continent: {
                    "capital": capital,
                    "language": language,
                    "continent": continent,
                }[query],
            },
            output="answer",
            name="attribute",
        )
        self.rivals = {
            "whole_entity": _one_thing(
                "whole_entity",
                lambda entity: entity,
                lambda query, continent: ATTRIBUTES[query][continent],
            ),
            "asked_at_once": _one_thing(
                "asked_at_once",
                lambda entity, query: ATTRIBUTES[query][entity],
                lambda continent: continent,
            ),
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """A country, a question and a template each. Raises ValueError for an empty pool."""
        return {name: picked(rng, entries(pools, name), n) for name in INPUTS}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The beginning of a sentence that the attribute ends."""
        return written(
            TEMPLATES[inputs["template"]][inputs["query"]], {"entity": (inputs["entity"], "entity")}
        )

    def answer(self, setting: Mapping[str, Any]) -> str:
        """The attribute, after a space."""
        return f" {setting['answer']}"


def _one_thing(name: str, thing: Mechanism, answer: Mechanism) -> CausalModel:
    """All three variables are the same one thing, handed on from each to the next."""
    chain = {
        "capital": thing,
        "language": lambda capital: capital,
        "continent": lambda language: language,
    }
    return CausalModel(INPUTS, {**chain, "answer": answer}, output="answer", name=name)


def attribute() -> Task:
    """The attribute task."""
    return Attribute()
