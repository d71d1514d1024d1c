"""Multiple choice (symbol binding; arXiv 2307.09458, 2504.13151).

"… What colour is the ball? Q. red X. blue … Answer:" → " X".

The hypothesis: the network finds at which place the right choice stands, and then gives the symbol
of that place.
"""

from itertools import permutations
from typing import Any

from iit.causal import Columns, Inputs, Pools, Prompt, Task
from iit.causal.task import by_name
from iit.tasks.data_file import words
from iit.tasks.drawing import Rng, distinct, entries, pick, taken
from iit.tasks.hypotheses import hypotheses
from iit.tasks.template import fill

COLORS = words("mcqa_colors.txt")
OBJECTS = words("mcqa_objects.txt")
SYMBOLS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CHOICES = "\n".join(f"{{symbol{i}}}. {{choice{i}}}" for i in range(4))
SENTENCES = (
    f"Question: The {{object}} is {{color}}. What color is the {{object}}?\n{CHOICES}\nAnswer:",
    f"The {{object}} is {{color}}. Which color is it?\n{CHOICES}\nThe answer is",
    (
        "There is a {object}. It is {color}.\nQuestion: What color is the {object}?\n"
        f"{CHOICES}\nAnswer:"
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
SYMBOL_OF_PLACE = {
    "answer_symbol": lambda answer_pointer, symbols: symbols[answer_pointer],
    "answer": lambda answer_symbol: answer_symbol,
}
MECHANISMS = {
    "answer_pointer": lambda color, choices: choices.index(color),
    **SYMBOL_OF_PLACE,
}
RIVALS = {
    "symbol_at_once": {
        "answer_pointer": lambda color, choices, symbols: symbols[choices.index(color)],
        "answer": lambda answer_pointer: answer_pointer,
    },
    "pointer_till_the_end": {
        "answer_symbol": lambda color, choices: choices.index(color),
        "answer": lambda answer_symbol, symbols: symbols[answer_symbol],
    },
    "first_choice": {
        "answer_pointer": lambda choices: 0,
        **SYMBOL_OF_PLACE,
    },
}


def mcqa(terse: bool = True) -> Task:
    """Multiple choice. `answer_pointer`: the place of the right one among the four choices (0–3);
    `answer_symbol`: the letter there.

    Symbols are four random letters, so that place and letter are told apart.

    terse: a few words, for a small network that is trained on them; else questions in English, for
        a network that can read them.

    Roles: `object` (in English only; its last mention), `color`, `choice0` … `choice3`, `symbol0` …
    `symbol3`, and `right_symbol`, `right_choice`, whose place varies.

    Rivals: `symbol_at_once` (the letter is passed on first, not the place) and
    `pointer_till_the_end` (the place is passed on last, and read among the base's letters) have the
    hypothesis' behaviour; `first_choice` always gives the first.

    Splits share no ordered quadruple of choices.
    """
    templates = (TERSE,) if terse else SENTENCES
    return Task(
        **hypotheses("mcqa", INPUTS, MECHANISMS, RIVALS),
        variables=("answer_pointer", "answer_symbol"),
        pools={
            "choices": tuple(permutations(COLORS, 4)),
            "symbol": SYMBOLS,
            "object": OBJECTS[:1] if terse else OBJECTS,
            "template": tuple(range(len(templates))),
        },
        draw=draw,
        write=lambda inputs: write(templates[inputs["template"]], inputs),
        answer=lambda setting: f" {setting['answer']}",
        alternatives=tuple(map(" {}".format, SYMBOLS)),
        uses=uses,
        splits=("choices",),
        vocabulary=(*COLORS, *SYMBOLS, "?", "=") if terse else (),
    )


def draw(rng: Rng, pools: Pools, n: int) -> Columns:
    """Four choices, four different letters, and which choice is right. Raises ValueError for
    fewer than four letters.
    """
    letters = entries(pools, "symbol", at_least=4)
    choices = pick(rng, pools, "choices", n)
    right = rng.integers(4, size=n).tolist()
    return {
        "template": pick(rng, pools, "template", n),
        "object": pick(rng, pools, "object", n),
        "color": [row[place] for row, place in zip(choices, right, strict=True)],
        "choices": choices,
        "symbols": [tuple(taken(letters, row)) for row in distinct(rng, len(letters), n, 4)],
    }


def uses(inputs: Inputs) -> dict[str, list[Any]]:
    """Four letters; the other parts have the name of their pool."""
    return {"symbol": [*inputs["symbols"]], **by_name(inputs, "choices", "object", "template")}


def write(template: str, inputs: Inputs) -> Prompt:
    """The question and its choices. Raises ValueError when the colour is none of the choices."""
    color = inputs["color"]
    choices = inputs["choices"]
    if color not in choices:
        raise ValueError(
            f"One of the choices must be right; the color is {color} and the choices are "
            f"{list(choices)}."
        )
    slots = {"object": inputs["object"], "color": color}
    for i in range(4):
        slots[f"symbol{i}"] = inputs["symbols"][i]
        slots[f"choice{i}"] = choices[i]
    prompt = fill(template, slots)
    right = choices.index(color)
    places = {
        "right_symbol": prompt.roles[f"symbol{right}"],
        "right_choice": prompt.roles[f"choice{right}"],
    }
    return Prompt(prompt.text, {**prompt.roles, **places})
