"""Indirect object identification (arXiv 2211.00593).

"When John and Mary went to the store, Mary gave a bottle of milk to" → " John".

The hypothesis: the network computes *which* of the two names is repeated, by its place in the order
of mention, and then gives the other one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from iit.causal import Columns, Inputs, Pools, Prompt, Task
from iit.causal.task import by_name
from iit.tasks.data_file import lines, words
from iit.tasks.drawing import Rng, distinct, entries, pick, taken
from iit.tasks.hypotheses import hypotheses
from iit.tasks.template import fill

# {A} and {B} are the names in order of mention, {S} is the one that is repeated.
TEMPLATES = lines("ioi_templates.txt")
FIRST_FOR_TEST = 16
"""This template and those after it are for test alone."""
NAMES = words("ioi_names.txt")
PLACES = words("ioi_places.txt")
OBJECTS = words("ioi_objects.txt")
INPUTS = {
    "template": range(len(TEMPLATES)),
    "place": PLACES,
    "object": OBJECTS,
    "first": NAMES,
    "second": NAMES,
    "subject": NAMES,
}
MECHANISMS = {
    "subject_position": lambda first, second, subject: {first: 0, second: 1}.get(subject),
    "io_name": lambda first, second, subject_position: {0: second, 1: first}.get(subject_position),
    "answer": lambda io_name: io_name,
}
RIVALS = {
    "subject_token": {
        "subject_position": lambda subject: subject,
        "answer": lambda first, second, subject_position: (
            second if subject_position == first else first
        ),
    },
    "first_name": {
        "io_name": lambda first: first,
        "answer": lambda io_name: io_name,
    },
    "second_name": {
        "io_name": lambda second: second,
        "answer": lambda io_name: io_name,
    },
    "recency": {
        "io_name": lambda subject: subject,
        "answer": lambda io_name: io_name,
    },
}


def ioi() -> Task:
    """IOI. `subject_position`: which of the two names, in order of mention, is repeated (0 or 1);
    `io_name`: the other name.

    Roles: `s1` and `io` (first mentions), `s2` (second mention of the subject), `place`, `object`.

    Rivals: `subject_token` (the subject's *name* is passed on, not its place, and then the name
    that differs from it is given, the first one if both do) has the hypothesis' behaviour;
    `first_name`, `second_name` and `recency` (the name mentioned last) are right by chance.

    Counterfactuals (arXiv 2504.13151), all in the base's own sentence. Position and token are those
    of the subject:

    | name | what is done | position | token |
    |---|---|---|---|
    | `s1_io_flip` | the first two names change places | flips | stays |
    | `s2_io_flip` | the other name is repeated | flips | flips |
    | `both` | both of these | stays | flips |
    | `random_names` | two other names for the two | stays | new |
    | `abc` | three names that do not occur in the base, none repeated | none | none |

    Where no name is repeated (`abc`), the variables are None and there is no answer: such prompts
    are for patching.

    Splits share no name and no template.
    """
    return Task(
        **hypotheses("ioi", INPUTS, MECHANISMS, RIVALS),
        variables=("subject_position", "io_name"),
        pools={
            "name": NAMES,
            "template": tuple(range(FIRST_FOR_TEST)),
            "place": PLACES,
            "object": OBJECTS,
        },
        draw=draw,
        write=write,
        answer=answer,
        alternatives=tuple(map(" {}".format, NAMES)),
        uses=uses,
        splits=("name", "template"),
        test_only={"template": tuple(range(FIRST_FOR_TEST, len(TEMPLATES)))},
        words=("name", "place", "object"),
        counterfactuals={
            "s1_io_flip": lambda rng, pools, base: s1_io_flip(base),
            "s2_io_flip": lambda rng, pools, base: s2_io_flip(base),
            "both": lambda rng, pools, base: s2_io_flip(s1_io_flip(base)),
            "random_names": random_names,
            "abc": abc,
        },
    )


def draw(rng: Rng, pools: Pools, n: int) -> Columns:
    """Two different names, one of them repeated, in a random template. Raises ValueError for a
    pool of fewer names.
    """
    names = entries(pools, "name", at_least=2)
    sentence = {name: pick(rng, pools, name, n) for name in ("template", "place", "object")}
    index = distinct(rng, len(names), n, 2)
    position = rng.integers(2, size=n)
    subject = index[np.arange(n), position]
    return {
        **sentence,
        "first": taken(names, index[:, 0]),
        "second": taken(names, index[:, 1]),
        "subject": taken(names, subject),
    }


def uses(inputs: Inputs) -> dict[str, list[Any]]:
    """Three names; the other parts have the name of their pool."""
    names = [inputs["first"], inputs["second"], inputs["subject"]]
    return {"name": names, **by_name(inputs, "template", "place", "object")}


def write(inputs: Inputs) -> Prompt:
    """The template with its words; with a third name (`abc`) the roles are `a`, `b` and `c`.

    Raises ValueError when the first two names are equal.
    """
    first = inputs["first"]
    second = inputs["second"]
    subject = inputs["subject"]
    if first == second:
        raise ValueError(f"IOI needs two different names before the subject; got {first} twice.")
    if subject == first:
        roles = {"A": "s1", "B": "io", "S": "s2"}
    elif subject == second:
        roles = {"A": "io", "B": "s1", "S": "s2"}
    else:
        roles = {"A": "a", "B": "b", "S": "c"}
    names = {"A": first, "B": second, "S": subject}
    return fill(TEMPLATES[inputs["template"]], {**inputs, **names}, roles)


def answer(setting: Mapping[str, Any]) -> str:
    """The indirect object, after a space. Raises ValueError where no name is repeated."""
    if setting["answer"] is None:
        raise ValueError(
            f"None of the names {setting['first']}, {setting['second']} and {setting['subject']} "
            "is repeated, so there is no indirect object and no label. Such prompts (abc) serve "
            "for patching; pairs with a label need one of the flips."
        )
    return f" {setting['answer']}"


def s1_io_flip(base: Columns) -> Columns:
    """The first two names in the other order."""
    return {**base, "first": base["second"], "second": base["first"]}


def s2_io_flip(base: Columns) -> Columns:
    """The other of the two names repeated."""
    rows = zip(base["first"], base["second"], base["subject"], strict=True)
    others = [second if subject == first else first for first, second, subject in rows]
    return {**base, "subject": others}


def random_names(rng: Rng, pools: Pools, base: Columns) -> Columns:
    """Two names that do not occur in the base, the one at the same place repeated. Raises
    ValueError for fewer than 4 names.
    """
    first, second = _unseen(rng, pools, base, 2)
    rows = zip(first, second, base["first"], base["subject"], strict=True)
    subject = [one if repeated == before else other for one, other, before, repeated in rows]
    return {**base, "first": first, "second": second, "subject": subject}


def abc(rng: Rng, pools: Pools, base: Columns) -> Columns:
    """Three names that do not occur in the base. Raises ValueError for fewer than 5 names."""
    first, second, subject = _unseen(rng, pools, base, 3)
    return {**base, "first": first, "second": second, "subject": subject}


def _unseen(rng: Rng, pools: Pools, base: Columns, k: int) -> list[list[Any]]:
    """k columns of names; in each row they differ from each other and from the base's two."""
    names = entries(pools, "name", at_least=k + 2)
    number = {name: i for i, name in enumerate(names)}
    rows = zip(base["first"], base["second"], strict=True)
    # A name that is not in the pool forbids nothing.
    base_numbers = [[number.get(name, len(names)) for name in row] for row in rows]
    excluded = np.array(base_numbers).reshape(-1, 2)
    index = distinct(rng, len(names), len(base_numbers), k, excluded)
    return [taken(names, column) for column in index.T]
