"""Two-digit addition, digit by digit.

"4 7 + 8 5 =" → " 1 3 2".

The hypothesis is the school method: the ones are added, and a carry goes to the tens.
"""

from itertools import product

import numpy as np

from iit.causal import Columns, Inputs, Pools, Prompt, Task
from iit.tasks.drawing import Rng, pick
from iit.tasks.hypotheses import hypotheses
from iit.tasks.template import fill

DIGITS = ("a_tens", "a_ones", "b_tens", "b_ones")
INPUTS: dict[str, range] = dict.fromkeys(DIGITS, range(10))
WITH_CARRY = {
    "ones": lambda a_ones, b_ones: (a_ones + b_ones) % 10,
    "tens": lambda a_tens, b_tens, ones_carry: (a_tens + b_tens + ones_carry) % 10,
    "hundreds": lambda a_tens, b_tens, ones_carry: (a_tens + b_tens + ones_carry) // 10,
    "answer": lambda hundreds, tens, ones: (hundreds, tens, ones),
}
MECHANISMS = {
    "ones_carry": lambda a_ones, b_ones: (a_ones + b_ones) // 10,
    **WITH_CARRY,
}
RIVALS = {
    "ones_sum": {
        "ones_carry": lambda a_ones, b_ones: a_ones + b_ones,
        "answer": lambda a_tens, b_tens, ones_carry: _digits(10 * (a_tens + b_tens) + ones_carry),
    },
    "first_ones": {
        "ones_carry": lambda a_ones: a_ones,
        "answer": lambda a_tens, b_tens, ones_carry, b_ones: _digits(
            10 * (a_tens + b_tens) + ones_carry + b_ones
        ),
    },
    "column_sum": {
        "tens": lambda a_tens, b_tens: a_tens + b_tens,
        "answer": lambda tens, a_ones, b_ones: _digits(10 * tens + a_ones + b_ones),
    },
    "no_carry": {
        "ones_carry": lambda a_ones, b_ones: 0,
        **WITH_CARRY,
    },
}


def addition(separator: str = " ") -> Task:
    """Addition. `ones_carry`: 0 or 1, from the ones to the tens; `ones`, `tens`, `hundreds`: the
    digits of the sum.

    Operands have two digits ("07") and the sum three ("012"), the most significant first, so that
    every digit has a place of its own.

    separator: between digits and signs. With a space each of them is a word, for a network whose
        tokens are words. separator="" writes "47+85=" and "132", for a network that reads digits
        one by one anyway (SmolLM2).

    Roles: `a_tens`, `a_ones`, `b_tens`, `b_ones`, `plus`, `equals`.

    Rivals with the hypothesis' behaviour: `ones_sum` (the whole sum of the ones, 0 to 18, is passed
    on; carry and digit are not told apart), `first_ones` (a's ones digit is passed on and the
    addition comes later), `column_sum` (the tens are computed without the carry, which is added
    last). `no_carry` forgets the carry.

    Splits share no ordered pair of numbers.
    """
    parts = ("{a_tens}", "{a_ones}", "{plus}", "{b_tens}", "{b_ones}", "{equals}")
    template = separator.join(parts)

    def write(inputs: Inputs) -> Prompt:
        digits = {name: str(inputs[name]) for name in DIGITS}
        return fill(template, {**digits, "plus": "+", "equals": "="})

    return Task(
        **hypotheses("addition", INPUTS, MECHANISMS, RIVALS),
        variables=("ones_carry", "ones", "tens", "hundreds"),
        pools={"numbers": tuple(product(range(100), repeat=2))},
        draw=draw,
        write=write,
        answer=lambda setting: "".join(f"{separator}{digit}" for digit in setting["answer"]),
        uses=uses,
        splits=("numbers",),
        vocabulary=tuple("0123456789+=") if separator else (),
    )


def draw(rng: Rng, pools: Pools, n: int) -> Columns:
    """Two numbers each. Raises ValueError for an empty pool."""
    numbers = np.array(pick(rng, pools, "numbers", n)).reshape(n, 2)
    digits = np.stack([numbers // 10, numbers % 10], axis=2).reshape(n, 4)
    return dict(zip(DIGITS, digits.T.tolist(), strict=True))


def uses(inputs: Inputs) -> dict[str, list[tuple[int, int]]]:
    """The pair of numbers."""
    a = 10 * inputs["a_tens"] + inputs["a_ones"]
    b = 10 * inputs["b_tens"] + inputs["b_ones"]
    return {"numbers": [(a, b)]}


def _digits(total: int) -> tuple[int, int, int]:
    return total // 100, total // 10 % 10, total % 10
