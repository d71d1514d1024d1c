"""Indirect object identification (arXiv 2211.00593).

"When John and Mary went to the store, Mary gave a bottle of milk to" → " John".

The hypothesis: the network computes *which* of the two names is repeated, by its place in the order
of mention, and then gives the other one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from iit.causal.drawing import distinct, entries, picked, taken
from iit.causal.model import CausalModel, Mechanism
from iit.causal.task import Columns, Pools, Prompt, Task, written

# {A} and {B} are the names in order of mention, {S} is the one that is repeated.
TEMPLATES = (
    "When {A} and {B} went to the {place}, {S} gave a {object} to",
    "Then, {A} and {B} had a long talk at the {place}. Afterwards {S} handed a {object} to",
    "After a long week, {A} and {B} met at the {place}, and {S} offered a {object} to",
    "While {A} and {B} were walking near the {place}, {S} showed a {object} to",
    (
        "While {A} and {B} were relaxing at the {place}, {S}, who was in a good mood, gave a "
        "{object} to"
    ),
    "Once {A} and {B} had arrived at the {place}, {S} passed a {object} to",
    "On Sunday, {A} and {B} had lunch at the {place}. Then {S} handed a {object} to",
    "As {A} and {B} were sitting in the {place}, {S} took out a {object} and showed it to",
    "One evening {A} and {B} stood in front of the {place}, and {S} slowly passed a {object} to",
    "The {place} was empty when {A} and {B} came in, so {S} quietly gave a {object} to",
    "With a {object} in the bag, {A} and {B} drove to the {place}. There {S} gave it to",
    "There was a {object} on the table when {A} and {B} entered the {place}, and {S} handed it to",
    "As {A} and {B} were leaving the {place}, {S} found a {object} and gave it to",
    "After {A} and {B} had bought a {object} at the {place}, {S} gave it to",
    "It was raining, so {A} and {B} stayed inside the {place}. Later, {S} lent a {object} to",
    "When {A} and {B} found a {object} near the {place}, {S} picked it up and gave it to",
    # The others are for test alone.
    "Yesterday {A} and {B} walked to the {place} together, and {S} handed a {object} to",
    "Shortly before {A} and {B} left the {place}, {S} quietly handed a {object} to",
    "Last summer {A} and {B} worked at the {place}, where {S} once gave a {object} to",
    "Because {A} and {B} were late for the {place}, {S} quickly handed the {object} to",
    "The {object} was heavy, so when {A} and {B} reached the {place}, {S} handed it to",
    "At the {place}, {A} and {B} sat down next to each other, and {S} passed the {object} to",
    "Outside the {place}, {A} and {B} sat in the sun. After a while {S} gave a {object} to",
    "For years {A} and {B} had not seen each other. At the {place}, {S} gave a {object} to",
    "Early in the morning {A} and {B} arrived at the {place}, and {S} handed a {object} to",
    "During the break {A} and {B} went to the {place}, and {S} offered a {object} to",
    "In front of the {place}, {A} and {B} talked about the {object}, which {S} then gave to",
    "Although {A} and {B} were tired when they left the {place}, {S} still gave a {object} to",
    "On the way to the {place}, {A} and {B} talked for a while, and {S} passed a {object} to",
    "Every week {A} and {B} meet at the {place}, and {S} always gives a {object} to",
    "Nobody else was in the {place}, so {A} and {B} waited, and {S} lent the {object} to",
    "Just as {A} and {B} were about to close the {place}, {S} took a {object} and handed it to",
    "Some years ago {A} and {B} owned the {place}, and one day {S} gave a {object} to",
    (
        "The rain had stopped when {A} and {B} came out of the {place}, and {S} gave the {object} "
        "back to"
    ),
)
FIRST_FOR_TEST = 16

NAMES = tuple(
    """
    James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony
    Mark Paul Steven Andrew Kenneth George Kevin Brian Edward Jason Jeffrey Ryan Jacob Gary Eric
    Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Frank Gregory Raymond Alexander
    Patrick Jack Dennis Jerry Tyler Aaron Henry Adam Peter Nathan Walter Kyle Carl Arthur Roger Mary
    Jennifer Linda Elizabeth Susan Jessica Sarah Karen Lisa Nancy Sandra Emily Michelle Laura
    Rebecca Amy Anna Kate Rachel Maria Heather Diane Julie Emma Helen Martha Alice Jane Rose Grace
    Judy Simon Oliver Luke Leo
    """.split()
)

PLACES = tuple(
    """
    store park school garden office library museum restaurant market station hospital beach church
    hotel theater kitchen bank factory farm village lake river forest castle airport bridge harbor
    stadium gym cafe bakery pharmacy temple square mall zoo studio workshop warehouse tower palace
    cottage cabin port pool playground supermarket university college court clinic laboratory
    gallery cinema club camp valley mountain island house shop bar lobby hall fair plaza pub city
    """.split()
)

OBJECTS = tuple(
    """
    book drink ring box bag cup ball kiss letter pen phone camera hat coat key map watch ticket gift
    card flower bottle basket candle blanket pencil guitar lamp knife spoon plate bowl mirror toy
    puzzle jacket scarf shirt dress necklace coin painting photo poster magazine newspaper notebook
    cookie cake sandwich banana potato pizza rope hammer brush towel pillow chair bicycle radio
    computer drum violin medal stamp
    """.split()
)


INPUTS = {
    "template": range(len(TEMPLATES)),
    "place": PLACES,
    "object": OBJECTS,
    "first": NAMES,
    "second": NAMES,
    "subject": NAMES,
}


@final
class IndirectObject(Task):
    """IOI. `subject_position`: which of the two names, in order of mention, is repeated (0 or 1);
    `io_name`: the other name.

    Roles: `s1` and `io` (first mentions), `s2` (second mention of the subject), `place`, `object`.

    Rivals: `subject_token` (what is passed on is the subject's *name*, not its place; the name that
    differs from it is given, the first one if both do) has the hypothesis' behaviour; `first_name`,
    `second_name` and `recency` (the name mentioned last) are right by chance.

    Counterfactuals (arXiv 2504.13151), all in the base's own sentence; position and token are those
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
    """

    name = "ioi"
    variables = ("subject_position", "io_name")
    words = ("name", "place", "object")
    splits = ("name", "template")

    def __init__(self) -> None:
        self.pools = {
            "name": NAMES,
            "template": tuple(range(FIRST_FOR_TEST)),
            "place": PLACES,
            "object": OBJECTS,
        }
        self.test_only = {"template": tuple(range(FIRST_FOR_TEST, len(TEMPLATES)))}
        self.model = CausalModel(
            INPUTS,
            {
                "subject_position": lambda first, second, subject: {first: 0, second: 1}.get(
                    subject
                ),
                "io_name": lambda first, second, subject_position: {0: second, 1: first}.get(
                    subject_position
                ),
                "answer": lambda io_name: io_name,
            },
            output="answer",
            name="ioi",
        )
        self.rivals = {
            "subject_token": CausalModel(
                INPUTS,
                {
                    "subject_position": lambda subject: subject,
                    "answer": lambda first, second, subject_position: (
                        second if subject_position == first else first
                    ),
                },
                output="answer",
                name="subject_token",
            ),
            "first_name": _copies("first_name", lambda first: first),
            "second_name": _copies("second_name", lambda second: second),
            "recency": _copies("recency", lambda subject: subject),
        }
        self.counterfactuals = {
            "s1_io_flip": s1_io_flip,
            "s2_io_flip": s2_io_flip,
            "both": lambda rng, pools, base: s2_io_flip(rng, pools, s1_io_flip(rng, pools, base)),
            "random_names": random_names,
            "abc": abc,
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Two different names, one of them repeated, in a random template. Raises ValueError for a
        pool of fewer names.
        """
        names = entries(pools, "name", at_least=2)
        drawn = {
            name: picked(rng, entries(pools, name), n) for name in ("template", "place", "object")
        }
        index = distinct(rng, len(names), n, 2)
        subject = index[np.arange(n), rng.integers(2, size=n)]
        return {
            **drawn,
            "first": taken(names, index[:, 0]),
            "second": taken(names, index[:, 1]),
            "subject": taken(names, subject),
        }

    def uses(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The entries of each pool that these inputs are made of."""
        return super().uses(inputs) | {
            "name": [inputs["first"], inputs["second"], inputs["subject"]]
        }

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The template with its words; a third name (`abc`) has the roles `a`, `b` and `c`.

        Raises ValueError when the first two names are equal.
        """
        first, second, subject = inputs["first"], inputs["second"], inputs["subject"]
        if first == second:
            raise ValueError(
                f"IOI needs two different names before the subject; got {first} twice."
            )
        roles = (
            ("s1", "io", "s2")
            if subject == first
            else ("io", "s1", "s2")
            if subject == second
            else ("a", "b", "c")
        )
        return written(
            TEMPLATES[inputs["template"]],
            {
                "A": (first, roles[0]),
                "B": (second, roles[1]),
                "S": (subject, roles[2]),
                "place": (inputs["place"], "place"),
                "object": (inputs["object"], "object"),
            },
        )

    def answer(self, setting: Mapping[str, Any]) -> str:
        """The indirect object, after a space. Raises ValueError where no name is repeated."""
        if setting["answer"] is None:
            raise ValueError(
                f"None of the names {setting['first']}, {setting['second']} and "
                f"{setting['subject']} is repeated, so there is no "
                "indirect object and no label. Such prompts (abc) serve for patching; pairs with "
                "a label need one of the flips."
            )
        return f" {setting['answer']}"


def s1_io_flip(
    rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]
) -> Columns:
    """The first two names in the other order."""
    return {**_lists(base), "first": list(base["second"]), "second": list(base["first"])}


def s2_io_flip(
    rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]
) -> Columns:
    """The other of the two names repeated."""
    rows = zip(base["first"], base["second"], base["subject"], strict=True)
    return {
        **_lists(base),
        "subject": [second if subject == first else first for first, second, subject in rows],
    }


def random_names(
    rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]
) -> Columns:
    """Two names that do not occur in the base, the one at the same place repeated. Raises
    ValueError for fewer than 4 names.
    """
    first, second = _unseen(rng, pools, base, 2)
    position = [subject != one for one, subject in zip(base["first"], base["subject"], strict=True)]
    subject = [pair[at] for *pair, at in zip(first, second, position, strict=True)]
    return {**_lists(base), "first": first, "second": second, "subject": subject}


def abc(rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]) -> Columns:
    """Three names that do not occur in the base. Raises ValueError for fewer than 5 names."""
    return {
        **_lists(base),
        **dict(zip(("first", "second", "subject"), _unseen(rng, pools, base, 3), strict=True)),
    }


def _unseen(
    rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]], k: int
) -> list[list[Any]]:
    names = entries(pools, "name", at_least=k + 2)
    number = {name: i for i, name in enumerate(names)}
    own = np.array(
        [[number.get(name, len(names)) for name in base[which]] for which in ("first", "second")]
    ).T
    return [taken(names, column) for column in distinct(rng, len(names), len(own), k, gone=own).T]


def _lists(base: Mapping[str, Sequence[Any]]) -> Columns:
    return {name: list(column) for name, column in base.items()}


def _copies(name: str, io_name: Mechanism) -> CausalModel:
    return CausalModel(
        INPUTS, {"io_name": io_name, "answer": lambda io_name: io_name}, output="answer", name=name
    )


def ioi() -> Task:
    """The IOI task."""
    return IndirectObject()
