"""Indirect object identification (arXiv 2211.00593).

"When John and Mary went to the store, Mary gave a bottle of milk to" → " John".

The hypothesis: the network computes *which* of the two names is repeated, by its place in the order of mention, and then
gives the other one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from iit.causal.model import CausalModel, Setting
from iit.causal.task import Prompt, Task, written

# {A} and {B} are the names in order of mention, {S} is the one that is repeated.
TEMPLATES = (
    "When {A} and {B} went to the {place}, {S} gave a {object} to",
    "Then, {A} and {B} had a long talk at the {place}. Afterwards {S} handed a {object} to",
    "After a long week, {A} and {B} met at the {place}, and {S} offered a {object} to",
    "While {A} and {B} were walking near the {place}, {S} showed a {object} to",
    "While {A} and {B} were relaxing at the {place}, {S}, who was in a good mood, gave a {object} to",
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
)

NAMES = tuple(
    """
    James John Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Paul Steven Andrew
    Kenneth George Kevin Brian Edward Jason Jeffrey Ryan Jacob Gary Eric Jonathan Stephen Larry Justin Scott Brandon
    Benjamin Samuel Frank Gregory Raymond Alexander Patrick Jack Dennis Jerry Tyler Aaron Henry Adam Peter Nathan Walter
    Kyle Carl Arthur Roger Mary Jennifer Linda Elizabeth Susan Jessica Sarah Karen Lisa Nancy Sandra Emily Michelle Laura
    Rebecca Amy Anna Kate Rachel Maria Heather Diane Julie Emma Helen Martha Alice Jane Rose Grace Judy Simon Oliver Luke
    Leo
    """.split()
)

PLACES = tuple(
    """
    store park school garden office library museum restaurant market station hospital beach church hotel theater kitchen
    bank factory farm village lake river forest castle airport bridge harbor stadium gym cafe bakery pharmacy temple
    square mall zoo studio workshop warehouse tower palace cottage cabin port pool playground supermarket university
    college court clinic laboratory gallery cinema club camp valley mountain island house shop bar lobby hall fair plaza
    pub city
    """.split()
)

OBJECTS = tuple(
    """
    book drink ring box bag cup ball kiss letter pen phone camera hat coat key map watch ticket gift card flower bottle
    basket candle blanket pencil guitar lamp knife spoon plate bowl mirror toy puzzle jacket scarf shirt dress necklace
    coin painting photo poster magazine newspaper notebook cookie cake sandwich banana potato pizza rope hammer brush
    towel pillow chair bicycle radio computer drum violin medal stamp
    """.split()
)


@final
class IndirectObject(Task):
    """IOI. `subject_position`: which of the two names, in order of mention, is repeated (0 or 1); `io_name`: the other name.

    Roles: `s1` and `io` (first mentions), `s2` (second mention of the subject), `place`, `object`.
    """

    name = "ioi"
    variables = ("subject_position", "io_name")
    words = ("name", "place", "object")

    def __init__(self) -> None:
        self.pools = {"name": NAMES, "template": tuple(range(len(TEMPLATES))), "place": PLACES, "object": OBJECTS}
        self.model = CausalModel(
            inputs={
                "template": range(len(TEMPLATES)),
                "place": PLACES,
                "object": OBJECTS,
                "first": NAMES,
                "second": NAMES,
                "subject": NAMES,
            },
            mechanisms={
                "subject_position": lambda first, subject: 0 if subject == first else 1,
                "io_name": lambda first, second, subject_position: (second, first)[subject_position],
                "answer": lambda io_name: io_name,
            },
            output="answer",
            name="ioi",
        )

    def draw(self, rng: np.random.Generator, pools: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Two different names, one of them repeated, in a random template. Raises ValueError for a pool of fewer names."""
        if len(pools["name"]) < 2:
            raise ValueError(f"IOI needs at least two names to draw from; the pool 'name' holds {list(pools['name'])}.")
        first, second = (pools["name"][i] for i in rng.choice(len(pools["name"]), size=2, replace=False))
        drawn = {name: pools[name][int(rng.integers(len(pools[name])))] for name in ("template", "place", "object")}
        return {**drawn, "first": first, "second": second, "subject": (first, second)[rng.integers(2)]}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The template with its words. Raises ValueError when the subject is neither name, or the names are equal."""
        first, second, subject = inputs["first"], inputs["second"], inputs["subject"]
        if first == second or subject not in (first, second):
            raise ValueError(f"IOI needs two different names and a subject among them; got {first}, {second} and {subject}.")
        roles = ("s1", "io") if subject == first else ("io", "s1")
        return written(
            TEMPLATES[inputs["template"]],
            {
                "A": (first, roles[0]),
                "B": (second, roles[1]),
                "S": (subject, "s2"),
                "place": (inputs["place"], "place"),
                "object": (inputs["object"], "object"),
            },
        )

    def answer(self, setting: Setting) -> str:
        """The indirect object, after a space."""
        return f" {setting['answer']}"


def ioi() -> Task:
    """The IOI task."""
    return IndirectObject()
