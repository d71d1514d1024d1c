import numpy as np
import pytest

from iit.tasks import mcqa
from iit.tasks.mcqa import SENTENCES
from tests.seeds import shifted


def inputs(color, choices="red blue green pink", symbols="QXAM", template=0):
    return {
        "template": template,
        "object": "ball",
        "color": color,
        "choices": tuple(choices.split()),
        "symbols": tuple(symbols),
    }


# color, choices, symbols → answer_pointer, answer_symbol
TRUTH = [
    (("red", "red blue green pink", "QXAM"), (0, "Q")),
    (("blue", "red blue green pink", "QXAM"), (1, "X")),
    (("green", "red blue green pink", "QXAM"), (2, "A")),
    (("pink", "red blue green pink", "QXAM"), (3, "M")),
    (("red", "pink green blue red", "ABCD"), (3, "D")),
]


@pytest.mark.parametrize(("row", "values"), TRUTH)
def test_truth_table(row, values):
    task = mcqa()
    setting = task.model.run(inputs(*row))
    assert (setting["answer_pointer"], setting["answer_symbol"]) == values
    assert task.answer(setting) == f" {values[1]}"


BASE, SOURCE = inputs("red"), inputs("brown", "black white brown blue", "WXYZ")
INTERCHANGES = {
    "answer_pointer": ("A", {"symbol_at_once": "Y", "first_choice": "Q"}),
    "answer_symbol": ("Y", {"pointer_till_the_end": "A", "first_choice": "W"}),
}


@pytest.mark.parametrize("variable", INTERCHANGES)
def test_interchanges(variable):
    task, (label, others) = mcqa(), INTERCHANGES[variable]
    assert task.model.interchange(BASE, {variable: SOURCE})["answer"] == label
    for name, said in others.items():
        assert task.rivals[name].interchange(BASE, {variable: SOURCE})["answer"] == said


@pytest.mark.parametrize("color", ["red", "pink"])
@pytest.mark.parametrize("template", range(len(SENTENCES)))
def test_writer_and_roles_agree_in_sentences(template, color):
    prompt = mcqa(terse=False).write(inputs(color, template=template))
    assert words(prompt) == {"object": "ball", **expected(color)}
    assert "\nQ. red\nX. blue\nA. green\nM. pink\n" in prompt.text
    assert prompt.roles["color"][0] < prompt.roles["symbol0"][0], (
        "the statement's colour, not the choice's"
    )


@pytest.mark.parametrize("color", ["red", "pink"])
def test_writer_and_roles_agree_in_a_few_words(color):
    prompt = mcqa().write(inputs(color))
    assert prompt.text == f"{color} ? Q red X blue A green M pink ="
    assert words(prompt) == expected(color)
    assert prompt.roles["color"] == (0, len(color))


def words(prompt):
    return {role: prompt.text[start:stop] for role, (start, stop) in prompt.roles.items()}


def expected(color):
    choices = {f"choice{i}": word for i, word in enumerate("red blue green pink".split())}
    symbols = {f"symbol{i}": letter for i, letter in enumerate("QXAM")}
    return {
        "color": color,
        **choices,
        **symbols,
        "right_choice": color,
        "right_symbol": {"red": "Q", "pink": "M"}[color],
    }


def test_places_and_letters_are_drawn_evenly():
    task = mcqa()
    columns = task.draw(np.random.default_rng(shifted(0)), task.pools, 4000)
    pointers = [
        choices.index(color)
        for choices, color in zip(columns["choices"], columns["color"], strict=True)
    ]
    assert np.bincount(pointers).min() > 900
    assert all(len(set(symbols)) == 4 for symbols in columns["symbols"])
    assert {letter for symbols in columns["symbols"] for letter in symbols} == set(
        task.pools["symbol"]
    )


def test_bad_input_is_refused():
    task = mcqa()
    with pytest.raises(ValueError, match="the color is black and the choices are"):
        task.write(inputs("black"))
    with pytest.raises(
        ValueError, match=r"at least 4 entries of the pool 'symbol'; it holds \['A', 'B', 'C'\]"
    ):
        task.draw(np.random.default_rng(shifted(0)), {**task.pools, "symbol": ("A", "B", "C")}, 5)
