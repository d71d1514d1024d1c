"""Greater than (arXiv 2305.00586): the year a span ends in.

"The war lasted from the year 1732 to the year 17" → 3, 4 or 5.

The hypothesis: the network computes the start year's tens digit, and gives a digit that is not
below it, and not far above.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from iit.causal.drawing import entries, picked
from iit.causal.model import CausalModel, Mechanism
from iit.causal.task import Columns, Pools, Prompt, Task, written

TEMPLATES = (
    "The {event} lasted from the year {start} to the year {century}",
    "The {event} began in {start} and ended in {century}",
    "The {event} started in {start} and went on until {century}",
    "The {event} took place between {start} and {century}",
    "History books say that the {event} went from {start} to {century}",
)
EVENTS = tuple(
    """
    war siege famine plague drought rebellion revolt voyage expedition conflict reign dynasty
    uprising campaign crisis dispute strike trial boom project struggle reform migration occupation
    depression blockade feud marriage study tour
    """.split()
)
INPUTS = {
    "template": range(len(TEMPLATES)),
    "event": EVENTS,
    "century": range(11, 20),
    "tens": range(10),
    "ones": range(10),
}


@final
class GreaterThan(Task):
    """Greater than. `start_tens`: the start year's tens digit.

    For networks that read and write numbers digit by digit (SmolLM2). The answer is the digit that
    follows: any from `start_tens` to `reach` above it. It is a tuple of texts, each one token, and
    the network is right when its argmax is one of them; a loss is −log of the probability of all of
    them together. The ones digit is 0 to 8, so that a later year with the same tens digit always
    exists. SmolLM2-135M copies the digit on 57% of 360 prompts, and gives the next one on 31% and
    the one after it on 8%.

    The paper's hypothesis has no end above (`reach=9`). There 9 is right for every start, and what
    is right for a start stays right for an earlier one: an edit towards an earlier source could not
    be told from no edit. With an end above, start years more than `reach` decades apart share no
    answer. Sources that are so far away, on either side, are `apart`. `year_01` is the
    literature's.

    Roles: `event`, `start` (the four digits), `century` (its last mention), `start_century`,
        `start_tens`, `start_ones`.

    Rivals: `same_tens` (the digit is copied) and `after_tens` (the next one is given; 9 after 9)
    allow one of the hypothesis' answers only, so whoever follows them is right by the hypothesis,
    too; `start_ones` (the answer goes by the ones digit) is another matter.

    Splits share no event and no template.

    Raises ValueError for a reach outside of 1 to 9.
    """

    name = "greater_than"
    variables = ("start_tens",)
    words = ("event",)
    splits = ("event", "template")

    def __init__(self, reach: int = 2) -> None:
        if not 1 <= reach <= 9:
            raise ValueError(
                f"reach={reach}: the answer is at least 1 and at most 9 above the start's tens "
                "digit."
            )
        self.reach = reach
        self.pools = {
            "template": tuple(range(len(TEMPLATES))),
            "event": EVENTS,
            "century": tuple(range(11, 20)),
            "tens": tuple(range(9)),  # 9, after which only 9 is right, is left for sources
            "ones": tuple(range(9)),
        }

        def allowed(start_tens: int) -> tuple[int, ...]:
            return tuple(range(start_tens, min(start_tens + reach, 9) + 1))

        self.model = _model("greater_than", lambda tens: tens, allowed)
        self.rivals = {
            "same_tens": _model("same_tens", lambda tens: tens, lambda start_tens: (start_tens,)),
            "after_tens": _model(
                "after_tens", lambda tens: tens, lambda start_tens: (min(start_tens + 1, 9),)
            ),
            "start_ones": _model("start_ones", lambda ones: ones, allowed),
        }
        self.counterfactuals = {"apart": self.apart, "year_01": year_01}

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Every part from its pool. Raises ValueError for an empty one."""
        return {name: picked(rng, entries(pools, name), n) for name in INPUTS}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The span up to the end year's century."""
        century, tens, ones = str(inputs["century"]), str(inputs["tens"]), str(inputs["ones"])
        words = {
            "event": (inputs["event"], "event"),
            "start": (century + tens + ones, "start"),
            "century": (century, "century"),
        }
        prompt = written(TEMPLATES[inputs["template"]], words)
        start, stop = prompt.roles["start"]
        digits = {
            "start_century": (start, stop - 2),
            "start_tens": (stop - 2, stop - 1),
            "start_ones": (stop - 1, stop),
        }
        return Prompt(prompt.text, {**prompt.roles, **digits})

    def answer(self, setting: Mapping[str, Any]) -> tuple[str, ...]:
        """The digits that may follow, in ascending order."""
        return tuple(str(digit) for digit in setting["answer"])

    def apart(
        self, rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """The base with an earlier or later tens digit that shares no answer with its own.

        Raises ValueError where there is none.
        """
        n = len(base["tens"])
        own = np.array(base["tens"], dtype=int).reshape(n, 1)
        far = np.abs(np.arange(10) - own) > self.reach
        if not far.any(1).all():
            raise ValueError(
                f"reach={self.reach}: sources that are apart need a reach of 4 at most."
            )
        tens = np.where(far, rng.random((n, 10)), -1).argmax(1)
        return {**{name: list(column) for name, column in base.items()}, "tens": tens.tolist()}


def year_01(rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]) -> Columns:
    """The base with a start year that ends in 01."""
    n = len(base["tens"])
    return {
        **{name: list(column) for name, column in base.items()},
        "tens": [0] * n,
        "ones": [1] * n,
    }


def _model(name: str, start_tens: Mechanism, answer: Mechanism) -> CausalModel:
    return CausalModel(
        INPUTS, {"start_tens": start_tens, "answer": answer}, output="answer", name=name
    )


def greater_than(reach: int = 2) -> Task:
    """The greater-than task. reach: how far above the start's tens digit an answer may be; 9 is any
    later digit.
    """
    return GreaterThan(reach)
