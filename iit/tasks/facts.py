"""Facts about well-known subjects (in the manner of CounterFact, arXiv 2202.05262).

"The Eiffel Tower is in the city of" → " Paris".

The hypothesis: the network looks up the attribute at the subject, and gives it.
"""

from statistics import mode

from iit.causal import Columns, Inputs, Pools, Prompt, Task
from iit.tasks.data_file import table
from iit.tasks.drawing import Rng, entries, pick, taken
from iit.tasks.hypotheses import hypotheses
from iit.tasks.template import fill

# Of about 170 sentences these are the ones that SmolLM2-135M ends as written, with p of 0.4 or
# more. The answer is one token of SmolLM2's. No subject holds its answer.
FACTS: dict[str, dict[str, str]] = {}
"""Sentence with the subject in braces → relation, subject, answer."""
for row in table("facts.csv"):
    sentence = row["relation"].replace("subject", row["subject"])
    FACTS[sentence] = row


def facts() -> Task:
    """Facts. `attribute`: what the sentence says of its subject.

    Role: `subject`, of one token or more.

    Rival: `commonest` (whatever the subject, the relation's most frequent attribute is given).

    Counterfactual: `same_relation`, the same thing said of another subject, so that base and source
        have one form.

    Splits share no fact.
    """
    commonest = _commonest()
    answer = {"answer": lambda attribute: attribute}
    mechanisms = {"attribute": lambda fact: FACTS[fact]["answer"], **answer}
    rivals = {"commonest": {"attribute": lambda fact: commonest[FACTS[fact]["relation"]], **answer}}
    return Task(
        **hypotheses("facts", {"fact": tuple(FACTS)}, mechanisms, rivals),
        variables=("attribute",),
        pools={"fact": tuple(FACTS)},
        draw=lambda rng, pools, n: {"fact": pick(rng, pools, "fact", n)},
        write=write,
        answer=lambda setting: f" {setting['answer']}",
        splits=("fact",),
        counterfactuals={"same_relation": same_relation},
    )


def write(inputs: Inputs) -> Prompt:
    """The sentence up to its answer."""
    row = FACTS[inputs["fact"]]
    return fill(row["relation"], {"subject": row["subject"]})


def same_relation(rng: Rng, pools: Pools, base: Columns) -> Columns:
    """Another fact of the same relation with another attribute; the base's own fact where there is
    none.
    """
    pool = entries(pools, "fact")
    sources = []
    for fact in base["fact"]:
        others = [other for other in pool if _changes(fact, other)] or [fact]
        sources += taken(others, rng.integers(len(others), size=1))
    return {"fact": sources}


def _changes(fact: str, other: str) -> bool:
    """Whether the other fact has the same relation and another answer."""
    before, after = FACTS[fact], FACTS[other]
    return before["relation"] == after["relation"] and before["answer"] != after["answer"]


def _commonest() -> dict[str, str]:
    """Relation → the answer that most of its facts have."""
    answers: dict[str, list[str]] = {}
    for row in FACTS.values():
        answers.setdefault(row["relation"], []).append(row["answer"])
    return {relation: mode(of_relation) for relation, of_relation in answers.items()}
