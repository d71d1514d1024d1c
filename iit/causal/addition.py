"""Two-digit addition, digit by digit.

"4 7 + 8 5 =" → " 1 3 2".

The hypothesis: the school method. The ones are added, and a carry goes to the tens.
"""

from collections.abc import Mapping
from typing import Any, final

import numpy as np

from iit.causal.drawing import entries, picked
from iit.causal.model import CausalModel
from iit.causal.task import Columns, Pools, Prompt, Task, written

DIGITS = ("a_tens", "a_ones", "b_tens", "b_ones")
INPUTS = {digit: range(10) for digit in DIGITS}
OUTPUT = {
    "ones": lambda a_ones, b_ones: (a_ones + b_ones) % 10,
    "tens": lambda a_tens, b_tens, ones_carry: (a_tens + b_tens + ones_carry) % 10,
    "hundreds": lambda a_tens, b_tens, ones_carry: (a_tens + b_tens + ones_carry) // 10,
    "answer": lambda hundreds, tens, ones: (hundreds, tens, ones),
}


@final
class Addition(Task):
    """Addition. `ones_carry`: 0 or 1, from the ones to the tens; `ones`, `tens`, `hundreds`: the
    digits of the sum.

    Everything has fixed width: operands two digits ("07"), the sum three ("012"), most significant
    first, so that every digit has a place of its own. Digits are separated by spaces, one word
    each, for a network whose tokens are words; separator="" writes "47+85=" and "132" for networks
    that read digits one by one anyway (SmolLM2).

    Roles: `a_tens`, `a_ones`, `b_tens`, `b_ones`, `plus`, `equals`.

    Rivals with the hypothesis' behaviour: `ones_sum` (the carry is not told apart from the digit:
    the whole sum of the ones, 0–18, is passed on), `first_ones` (a's ones digit is passed on, the
    addition comes later), `column_sum` (the tens are computed without the carry, which is added
    last). `no_carry` forgets the carry.

    Splits share no ordered pair of numbers.
    """

    name = "addition"
    variables = ("ones_carry", "ones", "tens", "hundreds")
    splits = ("numbers",)
    vocabulary = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "=")

    def __init__(self, separator: str = " ") -> None:
        self.separator = separator
        if separator == "":
            self.vocabulary = ()
        self.template = separator.join(
            ["{a_tens}", "{a_ones}", "{plus}", "{b_tens}", "{b_ones}", "{equals}"]
        )
        self.pools = {"numbers": tuple((a, b) for a in range(100) for b in range(100))}
        self.model = CausalModel(
            INPUTS,
            {"ones_carry": lambda a_ones, b_ones: (a_ones + b_ones) // 10, **OUTPUT},
            output="answer",
            name="addition",
        )
        self.rivals = {
            "ones_sum": CausalModel(
                INPUTS,
                {
                    "ones_carry": lambda a_ones, b_ones: a_ones + b_ones,
                    "answer": lambda a_tens, b_tens, ones_carry: _digits(
                        10 * (a_tens + b_tens) + ones_carry
                    ),
                },
                output="answer",
                name="ones_sum",
            ),
            "first_ones": CausalModel(
                INPUTS,
                {
                    "ones_carry": lambda a_ones: a_ones,
                    "answer": lambda a_tens, b_tens, ones_carry, b_ones: _digits(
                        10 * (a_tens + b_tens) + ones_carry + b_ones
                    ),
                },
                output="answer",
                name="first_ones",
            ),
            "column_sum": CausalModel(
                INPUTS,
                {
                    "tens": lambda a_tens, b_tens: a_tens + b_tens,
                    "answer": lambda tens, a_ones, b_ones: _digits(10 * tens + a_ones + b_ones),
                },
                output="answer",
                name="column_sum",
            ),
            "no_carry": CausalModel(
                INPUTS,
                {"ones_carry": lambda a_ones, b_ones: 0, **OUTPUT},
                output="answer",
                name="no_carry",
            ),
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Two numbers each. Raises ValueError for an empty pool."""
        numbers = np.array(picked(rng, entries(pools, "numbers"), n)).reshape(n, 2)
        digits = np.stack([numbers // 10, numbers % 10], axis=2).reshape(n, 4)
        return {name: digits[:, i].tolist() for i, name in enumerate(DIGITS)}

    def uses(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The entries of each pool that these inputs are made of."""
        return {"numbers": [tuple(10 * inputs[f"{n}_tens"] + inputs[f"{n}_ones"] for n in "ab")]}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The sum to be done, up to the equals sign."""
        digits = {name: (str(inputs[name]), name) for name in DIGITS}
        return written(self.template, {**digits, "plus": ("+", "plus"), "equals": ("=", "equals")})

    def answer(self, setting: Mapping[str, Any]) -> str:
        """The three digits of the sum, a separator before each."""
        return "".join(f"{self.separator}{digit}" for digit in setting["answer"])


def _digits(total: int) -> tuple[int, int, int]:
    return total // 100, total // 10 % 10, total % 10


def addition(separator: str = " ") -> Task:
    """Two-digit addition. separator: between digits and signs."""
    return Addition(separator)
