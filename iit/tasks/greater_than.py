"""Greater than (arXiv 2305.00586): the year a span ends in.

"The war lasted from the year 1732 to the year 17" → 3, 4 or 5.

The hypothesis: the network computes the start year's tens digit, and gives a digit that is not
below it, and not far above.
"""

import numpy as np

from iit.causal import Columns, Inputs, Pools, Prompt, Task
from iit.tasks.data_file import lines, words
from iit.tasks.drawing import Rng, pick
from iit.tasks.hypotheses import hypotheses
from iit.tasks.template import fill

TEMPLATES = lines("greater_than_templates.txt")
EVENTS = words("greater_than_events.txt")
INPUTS = {
    "template": range(len(TEMPLATES)),
    "event": EVENTS,
    "century": range(11, 20),
    "tens": range(10),
    "ones": range(10),
}


def greater_than(reach: int = 2) -> Task:
    """Greater than. `start_tens`: the start year's tens digit.

    For networks that read and write numbers digit by digit (SmolLM2). The answer is the digit that
    follows: any from `start_tens` to `reach` above it. It is a tuple of texts, each one token. The
    network is right when its argmax is one of them, and a loss is −log of the probability of all of
    them together. The ones digit is 0 to 8, so that a later year with the same tens digit always
    exists. SmolLM2-135M copies the digit on 57% of 360 prompts, and gives the next one on 31% and
    the one after it on 8%.

    reach: how far above the start's tens digit an answer may be; 9 is any later digit, as in the
        paper. With 9, the digit 9 is right for every start, and what is right for a start stays
        right for an earlier one: an edit towards an earlier source could not be told from no edit.
        With a smaller reach, start years more than `reach` decades apart share no answer.

    Roles: `event`, `start` (the four digits), `century` (its last mention), `start_century`,
        `start_tens`, `start_ones`.

    Counterfactuals: `apart`, a start year so much earlier or later that no answer is shared;
        `year_01`, the literature's.

    Rivals: `same_tens` (the digit is copied) and `after_tens` (the next one is given; 9 after 9)
    allow only one of the hypothesis' answers, so whoever follows them is right by the hypothesis,
    too. `start_ones` (the answer goes by the ones digit) is another matter.

    Splits share no event and no template.

    Raises ValueError for a reach outside of 1 to 9.
    """
    if not 1 <= reach <= 9:
        raise ValueError(
            f"reach={reach}: the answer is at least 1 and at most 9 above the start's tens digit."
        )

    def allowed(start_tens: int) -> tuple[int, ...]:
        return tuple(range(start_tens, min(start_tens + reach, 9) + 1))

    def apart(rng: Rng, pools: Pools, base: Columns) -> Columns:
        n = len(base["tens"])
        start = np.array(base["tens"], dtype=int).reshape(n, 1)
        far = np.abs(np.arange(10) - start) > reach  # [n, 10]
        if not far.any(1).all():
            raise ValueError(f"reach={reach}: sources that are apart need a reach of 4 at most.")
        tens = np.where(far, rng.random((n, 10)), -1).argmax(1)
        return {**base, "tens": tens.tolist()}

    tens = {"start_tens": lambda tens: tens}
    next_digit = {"answer": lambda start_tens: (min(start_tens + 1, 9),)}
    rivals = {
        "same_tens": {**tens, "answer": lambda start_tens: (start_tens,)},
        "after_tens": {**tens, **next_digit},
        "start_ones": {"start_tens": lambda ones: ones, "answer": allowed},
    }
    return Task(
        **hypotheses("greater_than", INPUTS, {**tens, "answer": allowed}, rivals),
        variables=("start_tens",),
        pools={
            "template": tuple(range(len(TEMPLATES))),
            "event": EVENTS,
            "century": tuple(range(11, 20)),
            "tens": tuple(range(9)),  # After 9 only 9 is right: it is left for sources.
            "ones": tuple(range(9)),
        },
        draw=lambda rng, pools, n: {name: pick(rng, pools, name, n) for name in INPUTS},
        write=write,
        answer=lambda setting: tuple(map(str, setting["answer"])),
        splits=("event", "template"),
        words=("event",),
        counterfactuals={"apart": apart, "year_01": lambda rng, pools, base: year_01(base)},
    )


def write(inputs: Inputs) -> Prompt:
    """The span up to the end year's century."""
    century = str(inputs["century"])
    year = f"{century}{inputs['tens']}{inputs['ones']}"
    slots = {"event": inputs["event"], "start": year, "century": century}
    prompt = fill(TEMPLATES[inputs["template"]], slots)
    start, stop = prompt.roles["start"]
    digits = {
        "start_century": (start, stop - 2),
        "start_tens": (stop - 2, stop - 1),
        "start_ones": (stop - 1, stop),
    }
    return Prompt(prompt.text, {**prompt.roles, **digits})


def year_01(base: Columns) -> Columns:
    """The base with a start year that ends in 01."""
    n = len(base["tens"])
    return {**base, "tens": [0] * n, "ones": [1] * n}
