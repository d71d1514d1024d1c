"""Greater than (arXiv 2305.00586): the year a span ends in.

"The war lasted from the year 1732 to the year 17" → a digit that is 3 or more.

The hypothesis: the network computes the start year's tens digit, and gives a digit that is not below it.
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
    war siege famine plague drought rebellion revolt voyage expedition conflict reign dynasty uprising campaign crisis
    dispute strike trial boom project struggle reform migration occupation depression blockade feud marriage study tour
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

    For networks that read and write numbers digit by digit (SmolLM2). The answer is the digit that follows: any that is not below
    `start_tens`, so it is a tuple of texts, each one token, and the network is right when its argmax is one of them; a loss is
    −log of the probability of all of them together. The ones digit is 0 to 8, so that a later year with the same tens digit
    always exists and the tuple is exact. SmolLM2-135M is right on all of 1,000 prompts (copies the digit on 56%, gives the next
    one on 35%).

    Labels of two prompts overlap: a base that is answered by 9 is right for every source. A source with a greater tens digit
    (`later`) is what an edit can be told by; `year_01` is the literature's, whose label forbids nothing.

    Roles: `event`, `start` (the four digits), `century` (its last mention), `start_century`, `start_tens`, `start_ones`.

    Rivals: `same_tens` (the digit is copied) and `after_tens` (the next one is given; 9 after 9) allow one of the hypothesis'
    answers only, so whoever follows them is right by the hypothesis, too; `start_ones` (the digit is not below the ones digit)
    is another matter.

    Splits share no event and no template.
    """

    name = "greater_than"
    variables = ("start_tens",)
    words = ("event",)
    splits = ("event", "template")

    def __init__(self) -> None:
        self.pools = {
            "template": tuple(range(len(TEMPLATES))),
            "event": EVENTS,
            "century": tuple(range(11, 20)),
            "tens": tuple(range(9)),  # 9 is left for sources that are later than any base
            "ones": tuple(range(9)),
        }
        self.model = _model("greater_than", lambda tens: tens, lambda start_tens: tuple(range(start_tens, 10)))
        self.rivals = {
            "same_tens": _model("same_tens", lambda tens: tens, lambda start_tens: (start_tens,)),
            "after_tens": _model("after_tens", lambda tens: tens, lambda start_tens: (min(start_tens + 1, 9),)),
            "start_ones": _model("start_ones", lambda ones: ones, lambda start_tens: tuple(range(start_tens, 10))),
        }
        self.counterfactuals = {"later": later, "year_01": year_01}

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Every part from its pool. Raises ValueError for an empty one."""
        return {name: picked(rng, entries(pools, name), n) for name in INPUTS}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The span up to the end year's century."""
        century, tens, ones = str(inputs["century"]), str(inputs["tens"]), str(inputs["ones"])
        words = {"event": (inputs["event"], "event"), "start": (century + tens + ones, "start"), "century": (century, "century")}
        prompt = written(TEMPLATES[inputs["template"]], words)
        start, stop = prompt.roles["start"]
        digits = {"start_century": (start, stop - 2), "start_tens": (stop - 2, stop - 1), "start_ones": (stop - 1, stop)}
        return Prompt(prompt.text, {**prompt.roles, **digits})

    def answer(self, setting: Mapping[str, Any]) -> tuple[str, ...]:
        """The digits that may follow, in ascending order."""
        return tuple(str(digit) for digit in setting["answer"])


def later(rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]) -> Columns:
    """The base with a greater tens digit, each as likely."""
    own = np.array(base["tens"])
    return {**{name: list(column) for name, column in base.items()}, "tens": rng.integers(own + 1, 10).tolist()}


def year_01(rng: np.random.Generator, pools: Pools, base: Mapping[str, Sequence[Any]]) -> Columns:
    """The base with a start year that ends in 01."""
    n = len(base["tens"])
    return {**{name: list(column) for name, column in base.items()}, "tens": [0] * n, "ones": [1] * n}


def _model(name: str, start_tens: Mechanism, answer: Mechanism) -> CausalModel:
    return CausalModel(INPUTS, {"start_tens": start_tens, "answer": answer}, output="answer", name=name)


def greater_than() -> Task:
    """The greater-than task."""
    return GreaterThan()
