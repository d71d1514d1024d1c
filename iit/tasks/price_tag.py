"""Price tagging (arXiv 2305.08809): is an amount between two bounds?

"between 20 and 40 ? 31 =" → " yes".

The hypothesis: the network computes whether the amount is at least the lower bound, and whether it
is at most the upper one, and says yes where both hold.
"""

from itertools import combinations
from typing import Any

import numpy as np

from iit.causal import Columns, Inputs, Pools, Prompt, Task
from iit.causal.task import by_name
from iit.tasks.drawing import Rng, entries, pick
from iit.tasks.hypotheses import hypotheses
from iit.tasks.template import fill

TERSE = "between {lower} and {upper} ? {amount} ="
SENTENCES = (
    (
        "Please say yes only if it costs between {lower} and {upper} dollars, otherwise no.\n"
        "{amount} dollars:"
    ),
    (
        "Question: Is {amount} dollars at least {lower} dollars and at most {upper} dollars? "
        "Answer yes or no.\nAnswer:"
    ),
    (
        "Say yes if the price is between {lower} and {upper} dollars, and no if it is not.\n"
        "The price is {amount} dollars. You say:"
    ),
)
MECHANISMS = {
    "left_ok": lambda lower, amount: lower <= amount,
    "right_ok": lambda amount, upper: amount <= upper,
    "answer": lambda left_ok, right_ok: left_ok and right_ok,
}
RIVALS = {
    "midpoint": {
        "left_ok": lambda lower, upper: lower + upper,
        "right_ok": lambda left_ok, amount: abs(2 * amount - left_ok),
        "answer": lambda right_ok, lower, upper: right_ok <= upper - lower,
    },
    "identity": {
        "left_ok": lambda lower: lower,
        "right_ok": lambda upper: upper,
        "answer": lambda left_ok, amount, right_ok: left_ok <= amount <= right_ok,
    },
}


def price_tag(terse: bool = True) -> Task:
    """Price tagging. `left_ok`: lower ≤ amount; `right_ok`: amount ≤ upper.

    terse: whole numbers from 0 to 59, a word each, for a small network that is trained on them;
        else sentences with prices from 0.00 to 9.99 dollars, for a network that can read them. The
        causal model's values are cents then.

    Roles: `lower`, `upper`, `amount`.

    Rivals, both with the hypothesis' behaviour: `midpoint` (twice the middle of the bounds is
    `left_ok`, twice the amount's distance from it is `right_ok`, and is compared with their width)
    and `identity` (the bounds themselves are passed on).

    Splits share no pair of bounds. Both bounds leave room for amounts outside.
    """
    if terse:
        templates = (TERSE,)
        amounts = range(60)
        steps = range(1, 59)
    else:
        templates = SENTENCES
        amounts = range(1000)
        steps = range(50, 1000, 10)
    numbers = dict.fromkeys(("lower", "upper", "amount"), amounts)
    inputs = {"template": range(len(templates)), **numbers}

    def price(value: int) -> str:
        return str(value) if terse else f"{value // 100}.{value % 100:02d}"

    def write(row: Inputs) -> Prompt:
        prices = {name: price(row[name]) for name in numbers}
        return fill(templates[row["template"]], prices)

    return Task(
        **hypotheses("price_tag", inputs, MECHANISMS, RIVALS),
        variables=("left_ok", "right_ok"),
        pools={
            "bounds": tuple(combinations(steps, 2)),
            "amount": tuple(amounts),
            "template": tuple(range(len(templates))),
        },
        draw=draw,
        write=write,
        answer=lambda setting: " yes" if setting["answer"] else " no",
        alternatives=(" yes", " no"),
        uses=uses,
        splits=("bounds",),
        vocabulary=(*map(str, amounts), "between", "and", "?", "=", "yes", "no") if terse else (),
    )


def draw(rng: Rng, pools: Pools, n: int) -> Columns:
    """Bounds, and an amount that is between them in half of the rows, below in a quarter and above
    in a quarter.

    Raises ValueError for empty pools, and where no amount lies on the chosen side of the bounds.
    """
    template = pick(rng, pools, "template", n)
    bounds = np.array(pick(rng, pools, "bounds", n)).reshape(n, 2)
    amounts = np.sort(np.array(entries(pools, "amount")))
    # The amounts from index `lower` to index `upper` are between the bounds.
    lower = np.searchsorted(amounts, bounds[:, 0], "left")
    upper = np.searchsorted(amounts, bounds[:, 1], "right")
    side = rng.choice(3, size=n, p=(0.25, 0.5, 0.25))  # 0 below, 1 within, 2 above
    start = np.choose(side, (np.zeros_like(lower), lower, upper))
    stop = np.choose(side, (lower, upper, np.full_like(upper, len(amounts))))
    if (start == stop).any():
        row = int((start == stop).argmax())
        raise ValueError(
            f"The pool 'amount' ({len(amounts)} entries) has no amount "
            f"{('below', 'within', 'above')[side[row]]} the bounds {bounds[row].tolist()}. Give it "
            "more entries, or leave it out of data.splits."
        )
    index = start + (rng.random(n) * (stop - start)).astype(int)
    return {
        "template": template,
        "lower": bounds[:, 0].tolist(),
        "upper": bounds[:, 1].tolist(),
        "amount": amounts[index].tolist(),
    }


def uses(inputs: Inputs) -> dict[str, list[Any]]:
    """A pair of bounds; the other parts have the name of their pool."""
    bounds = (inputs["lower"], inputs["upper"])
    return {"bounds": [bounds], **by_name(inputs, "amount", "template")}
