"""Multiple choice (symbol binding; arXiv 2307.09458, 2504.13151).

"… What colour is the ball? Q. red X. blue … Answer:" → " X".

The hypothesis: the network finds at which place the right choice stands, and then gives the symbol
of that place.
"""

from collections.abc import Mapping
from itertools import permutations
from typing import Any, final

import numpy as np

from iit.causal.drawing import distinct, entries, picked, taken
from iit.causal.model import CausalModel
from iit.causal.task import Columns, Pools, Prompt, Task, written

COLORS = ("red", "blue", "green", "black", "white", "brown", "pink", "yellow", "purple", "orange")
OBJECTS = tuple(
    (
        "ball box car cup door hat lamp pen ring shirt table bag book chair coat key leaf rope "
        "sock "
        "tent"
    ).split()
)
SYMBOLS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SYMBOL_ROLES, CHOICE_ROLES = (
    tuple(f"{kind}{i}" for i in range(4)) for kind in ("symbol", "choice")
)
CHOICES = "\n".join(f"{{symbol{i}}}. {{choice{i}}}" for i in range(4))
SENTENCES = (
    f"Question: The {{object}} is {{color}}. What color is the {{object}}?\n{CHOICES}\nAnswer:",
    f"The {{object}} is {{color}}. Which color is it?\n{CHOICES}\nThe answer is",
    (
        f"There is a {{object}}. It is {{color}}.\nQuestion: What color is the "
        f"{{object}}?\n{CHOICES}\nAnswer:"
    ),
)
TERSE = (
    "{color} ? {symbol0} {choice0} {symbol1} {choice1} {symbol2} {choice2} {symbol3} {choice3} ="
)
INPUTS = {
    "template": range(len(SENTENCES)),
    "object": OBJECTS,
    "color": COLORS,
    "choices": None,
    "symbols": None,
}


@final
class MultipleChoice(Task):
    """MCQA. `answer_pointer`: the place of the right one among the four choices (0–3);
    `answer_symbol`: the letter there.

    Symbols are four random letters, so that place and letter are told apart. Terse texts are words,
    for a small network trained on them; sentences are for a network that can read them.

    Roles: `object` (sentences only; its last mention), `color`, `choice0` … `choice3`, `symbol0` …
    `symbol3`, and `right_symbol`, `right_choice`, whose place varies.

    Rivals: `symbol_at_once` (what is passed on first is the letter, not the place) and
    `pointer_till_the_end` (what is passed on last is the place, read among the base's letters) have
    the hypothesis' behaviour; `first_choice` always gives the first.

    Splits share no ordered quadruple of choices.
    """

    name = "mcqa"
    variables = ("answer_pointer", "answer_symbol")
    splits = ("choices",)

    def __init__(self, terse: bool = True) -> None:
        self.terse = terse
        self.templates = (TERSE,) if terse else SENTENCES
        if terse:
            self.vocabulary = (*COLORS, *SYMBOLS, "?", "=")
        self.pools = {
            "choices": tuple(permutations(COLORS, 4)),
            "symbol": SYMBOLS,
            "object": OBJECTS[:1] if terse else OBJECTS,
            "template": tuple(range(len(self.templates))),
        }
        self.model = CausalModel(
            INPUTS,
            {
                "answer_pointer": lambda color, choices: choices.index(color),
                "answer_symbol": lambda answer_pointer, symbols: symbols[answer_pointer],
                "answer": lambda answer_symbol: answer_symbol,
            },
            output="answer",
            name="mcqa",
        )
        self.rivals = {
            "symbol_at_once": CausalModel(
                INPUTS,
                {
                    "answer_pointer": lambda color, choices, symbols: symbols[choices.index(color)],
                    "answer": lambda answer_pointer: answer_pointer,
                },
                output="answer",
                name="symbol_at_once",
            ),
            "pointer_till_the_end": CausalModel(
                INPUTS,
                {
                    "answer_symbol": lambda color, choices: choices.index(color),
                    "answer": lambda answer_symbol, symbols: symbols[answer_symbol],
                },
                output="answer",
                name="pointer_till_the_end",
            ),
            "first_choice": CausalModel(
                INPUTS,
                {
                    "answer_pointer": lambda choices: 0,
                    "answer_symbol": lambda answer_pointer, symbols: symbols[answer_pointer],
                    "answer": lambda answer_symbol: answer_symbol,
                },
                output="answer",
                name="first_choice",
            ),
        }

    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """Four choices, four different letters, and which choice is right. Raises ValueError for
        fewer than four letters.
        """
        symbols = entries(pools, "symbol", at_least=4)
        choices = picked(rng, entries(pools, "choices"), n)
        right = rng.integers(4, size=n).tolist()
        return {
            **{name: picked(rng, entries(pools, name), n) for name in ("template", "object")},
            "color": [row[i] for row, i in zip(choices, right, strict=True)],
            "choices": choices,
            "symbols": list(
                zip(
                    *(taken(symbols, column) for column in distinct(rng, len(symbols), n, 4).T),
                    strict=True,
                )
            ),
        }

    def uses(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The entries of each pool that these inputs are made of."""
        return super().uses(inputs) | {"symbol": list(inputs["symbols"])}

    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The question and its choices. Raises ValueError when the colour is none of the
        choices.
        """
        color, choices = inputs["color"], inputs["choices"]
        if color not in choices:
            raise ValueError(
                f"One of the choices must be right; the color is {color} and the choices are "
                f"{list(choices)}."
            )
        words = {"object": (inputs["object"], "object"), "color": (color, "color")}
        for symbol, choice, letter, word in zip(
            SYMBOL_ROLES, CHOICE_ROLES, inputs["symbols"], choices, strict=True
        ):
            words[symbol], words[choice] = (letter, symbol), (word, choice)
        prompt, right = written(self.templates[inputs["template"]], words), choices.index(color)
        places = {
            "right_symbol": prompt.roles[SYMBOL_ROLES[right]],
            "right_choice": prompt.roles[CHOICE_ROLES[right]],
        }
        return Prompt(prompt.text, {**prompt.roles, **places})

    def answer(self, setting: Mapping[str, Any]) -> str:
        """The letter, after a space."""
        return f" {setting['answer']}"


def mcqa(terse: bool = True) -> Task:
    """Multiple choice. terse: a few words for a small network; else questions in English."""
    return MultipleChoice(terse)
