"""Attributes of countries (in the manner of RAVEL, arXiv 2402.17700).

"In Japan, the capital is" → " Tokyo".

The hypothesis: the network looks up each attribute of the country by itself, and gives the one that
is asked for.
"""

from iit.causal import Inputs, Prompt, Task
from iit.tasks.data_file import table
from iit.tasks.drawing import pick
from iit.tasks.hypotheses import hypotheses
from iit.tasks.template import fill

QUERIES = ("capital", "language", "continent")
COUNTRIES = {row["country"]: row for row in table("countries.csv")}
# Up to the country the questions of a row are the same: nothing there tells which attribute will
# be asked for. With an earlier list of 107 countries SmolLM2-135M answered 72% of the 1,926 prompts
# (capital 62%, language 76%, continent 79%; no question of a row below 54%).
TEMPLATES = table("attribute_templates.csv")
INPUTS = {"template": range(len(TEMPLATES)), "query": QUERIES, "entity": tuple(COUNTRIES)}
MECHANISMS = {
    "capital": lambda entity: COUNTRIES[entity]["capital"],
    "language": lambda entity: COUNTRIES[entity]["language"],
    "continent": lambda entity: COUNTRIES[entity]["continent"],
    "answer": lambda query, capital, language, continent: {
        "capital": capital,
        "language": language,
        "continent": continent,
    }[query],
}
# In both rivals the three variables are one thing, handed on from each to the next.
HANDED_ON = {"language": lambda capital: capital, "continent": lambda language: language}
RIVALS = {
    "whole_entity": {
        "capital": lambda entity: entity,
        **HANDED_ON,
        "answer": lambda query, continent: COUNTRIES[continent][query],
    },
    "asked_at_once": {
        "capital": lambda entity, query: COUNTRIES[entity][query],
        **HANDED_ON,
        "answer": lambda continent: continent,
    },
}


def attribute() -> Task:
    """Attributes. `capital`, `language`, `continent`: the country's.

    The base of a cause pair asks for the interchanged attribute. The base of an isolate pair asks
    for another one, and its answer must not change.

    Role: `entity`. A country's name is one token or more; `entity_last`, the last one, is what a
        site can name in all prompts.

    Rivals, both with the hypothesis' behaviour: `whole_entity` (the attributes are not told apart:
    whichever is interchanged, the country changes altogether) and `asked_at_once` (what is passed
    on is the answer to the prompt's own question).

    Splits share no country.
    """
    return Task(
        **hypotheses("attribute", INPUTS, MECHANISMS, RIVALS),
        variables=QUERIES,
        pools={name: tuple(entries) for name, entries in INPUTS.items()},
        draw=lambda rng, pools, n: {name: pick(rng, pools, name, n) for name in INPUTS},
        write=write,
        answer=lambda setting: f" {setting['answer']}",
        splits=("entity",),
        asks="query",
    )


def write(inputs: Inputs) -> Prompt:
    """The beginning of a sentence that the attribute ends."""
    template = TEMPLATES[inputs["template"]][inputs["query"]]
    return fill(template, {"entity": inputs["entity"]})
