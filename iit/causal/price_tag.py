"""Price tagging (arXiv 2305.08809): is an amount between two bounds?

"between 20 and 40 ? 31 =" → " yes".

The hypothesis: the network computes whether the amount is at least the lower bound, and whether it
is at most the upper one, and says yes where both hold.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, final

import numpy as np

from iit.causal.drawing import entries, picked
from iit.causal.model import CausalModel
from iit.causal.task import Columns, Pools, Prompt, Task, written

TERSE = "between {lower} and {upper} ? {amount} ="
SENTENCES = (
    (
        "Please say yes only if it costs between {lower} and {upper} dollars, otherwise "
        "no.\n{amount} dollars:"
    ),
    (
        "Question: Is {amount} dollars at least {lower} dollars and at most {upper} dollars? "
        "Answer "
        "yes or no.\nAnswer:"
    ),
    (
        "Say yes if the price is between {lower} and {upper} dollars, and no if it is not.\nThe "
        "price is {amount} dollars. You say:"
    ),
)


@final
class PriceTag(Task):
    """Price tagging. `left_ok`: lower ≤ amount; `right_ok`: amount ≤ upper.

    Terse texts have whole numbers from 0 to 59, a word each, for a small network trained on them;
    sentences have prices from 0.00 to 9.99 dollars (in cents here), for a network that can read
    them.

    Roles: `lower`, `upper`, `amount`.

    Rivals, both with the hypothesis' behaviour: `midpoint` (twice the middle of the bounds is
    `left_ok`, twice the amount's distance from it is `right_ok`, and is compared with their width)
    and `identity` (the bounds themselves are passed on).

    Splits share no pair of bounds. Both bounds leave room for amounts outside.
    """

    name = "price_tag"
    variables = ("left_ok", "right_ok")
    splits = ("bounds",)

    def __init__(self, terse: bool = True) -> None:
        self.terse = terse
        amounts, steps = (range(60), range(1, 59)) if terse else (range(1000), range(50, 1000, 10))
        self.templates = (TERSE,) if terse else SENTENCES
        if terse:
            self.vocabulary = (*map(str, amounts), "between", "and", "?", "=", "yes", "no")
        self.pools = {
            "bounds": tuple(combinations(steps, 2)),
            "amount": tuple(amounts),
            "template": tuple(range(len(self.templates))),
        }
        inputs = {
            "template": range(len(self.templates)),
            "lower": amounts,
            "upper": amounts,
            "amount": amounts,
        }
        self.model = CausalModel(
            inputs,
            {
                "left_ok": lambda lower, amount: lower <= amount,
                "right_ok": lambda amount, upper: amount <= upper,
                "answer": lambda left_ok, right_ok: left_ok and right_ok,
            },
            output="answer",
            name="price_tag",
        )
        self.rivals = {
            "midpoint": CausalModel(
                inputs,
                {
                    "left_ok": lambda lower, upper: lower + upper,
                    "right_ok": lambda left_ok, amount: abs(2 * amount - left_ok),
                    "answer": lambda right_ok, lower, upper: right_ok <= upper - lower,
                },
                output="answer",
                name="midpoint",
            ),
            "identity": CausalModel(
                inputs,
                {
                    "left_ok": lambda lower: lower,
                    "right_ok": lambda upper: upper,
                    "answer": lambda left_ok, amount, right_ok: left_ok <= amount <= right_ok,
                },
                output="answer",
                name="identity",
            ),
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Bounds, and an amount that is between them in half of the rows, below in a quarter and
        above in a quarter.

        Raises ValueError for empty pools, and where a drawn pair of bounds has no amount on one
        side.
        """
        template = picked(rng, entries(pools, "template"), n)
        bounds = np.array(picked(rng, entries(pools, "bounds"), n)).reshape(n, 2)
        amounts = np.sort(np.array(entries(pools, "amount")))
        lower, upper = (
            np.searchsorted(amounts, bounds[:, 0], "left"),
            np.searchsorted(amounts, bounds[:, 1], "right"),
        )
        side = rng.choice(3, size=n, p=(0.25, 0.5, 0.25))
        start = np.choose(side, (np.zeros_like(lower), lower, upper))
        stop = np.choose(side, (lower, upper, np.full_like(upper, len(amounts))))
        if (start == stop).any():
            row = int((start == stop).argmax())
            raise ValueError(
                f"The pool 'amount' ({len(amounts)} entries) has no amount "
                f"{('below', 'within', 'above')[side[row]]} the bounds "
                f"{bounds[row].tolist()}. Give it more entries, or leave it out of data.splits."
            )
        amount = amounts[start + (rng.random(n) * (stop - start)).astype(int)]
        return {
            "template": template,
            "lower": bounds[:, 0].tolist(),
            "upper": bounds[:, 1].tolist(),
            "amount": amount.tolist(),
        }

    def uses(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The entries of each pool that these inputs are made of."""
        return super().uses(inputs) | {"bounds": [(inputs["lower"], inputs["upper"])]}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The bounds and the amount, as numbers or as dollars and cents."""
        values = {name: inputs[name] for name in ("lower", "upper", "amount")}
        told = {
            name: str(value) if self.terse else f"{value // 100}.{value % 100:02d}"
            for name, value in values.items()
        }
        return written(
            self.templates[inputs["template"]], {name: (text, name) for name, text in told.items()}
        )

    def answer(self, setting: Mapping[str, Any]) -> str:
        """Yes or no, after a space."""
        return " yes" if setting["answer"] else " no"


def price_tag(terse: bool = True) -> Task:
    """Price tagging. terse: whole numbers as single words; else sentences with prices."""
    return PriceTag(terse)
