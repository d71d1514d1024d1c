import numpy as np
import pytest

from iit.tasks import addition
from tests.seeds import shifted


def inputs(a, b):
    return {"a_tens": a // 10, "a_ones": a % 10, "b_tens": b // 10, "b_ones": b % 10}


# a, b → ones_carry, ones, tens, hundreds, answer
TRUTH = [
    ((47, 85), (1, 2, 3, 1), " 1 3 2"),
    ((12, 34), (0, 6, 4, 0), " 0 4 6"),
    ((7, 5), (1, 2, 1, 0), " 0 1 2"),
    ((99, 99), (1, 8, 9, 1), " 1 9 8"),
    ((0, 0), (0, 0, 0, 0), " 0 0 0"),
    ((55, 45), (1, 0, 0, 1), " 1 0 0"),
    ((94, 5), (0, 9, 9, 0), " 0 9 9"),
]


@pytest.mark.parametrize(("numbers", "values", "answer"), TRUTH)
def test_truth_table(numbers, values, answer):
    task = addition()
    setting = task.model.run(inputs(*numbers))
    assert (
        tuple(setting[variable] for variable in ("ones_carry", "ones", "tens", "hundreds"))
        == values
    )
    assert task.answer(setting) == answer
    assert addition(separator="").answer(setting) == answer.replace(" ", "")


def test_every_sum_is_right():
    task = addition(separator="")
    for a in range(0, 100, 3):
        for b in range(100):
            assert int(task.answer(task.model.run(inputs(a, b)))) == a + b


# base, source, variable → label; and what the rivals say
INTERCHANGES = [
    (
        (12, 34),
        (47, 85),
        "ones_carry",
        " 0 5 6",
        {"ones_sum": " 0 5 2", "first_ones": " 0 5 1", "no_carry": " 0 4 6"},
    ),
    (
        (47, 85),
        (12, 34),
        "ones_carry",
        " 1 2 2",
        {"ones_sum": " 1 2 6", "first_ones": " 1 2 7", "no_carry": " 1 2 2"},
    ),
    ((95, 0), (5, 5), "ones_carry", " 1 0 5", {"ones_sum": " 1 0 0", "no_carry": " 0 9 5"}),
    ((12, 34), (47, 85), "ones", " 0 4 2", {}),
    ((12, 34), (47, 85), "tens", " 0 3 6", {"column_sum": " 1 2 6"}),
    ((12, 34), (47, 85), "hundreds", " 1 4 6", {}),
]


@pytest.mark.parametrize(("base", "source", "variable", "label", "others"), INTERCHANGES)
def test_interchanges(base, source, variable, label, others):
    task, sources = addition(), {variable: inputs(*source)}
    assert task.answer(task.model.interchange(inputs(*base), sources)) == label
    for name, said in others.items():
        assert task.answer(task.rivals[name].interchange(inputs(*base), sources)) == said


@pytest.mark.parametrize(("separator", "text"), [(" ", "4 7 + 0 5 ="), ("", "47+05=")])
def test_writer_and_roles_agree(separator, text):
    prompt = addition(separator).write(inputs(47, 5))
    assert prompt.text == text
    words = {role: prompt.text[start:stop] for role, (start, stop) in prompt.roles.items()}
    assert words == {
        "a_tens": "4",
        "a_ones": "7",
        "plus": "+",
        "b_tens": "0",
        "b_ones": "5",
        "equals": "=",
    }
    assert [start for start, _ in prompt.roles.values()] == sorted(
        start for start, _ in prompt.roles.values()
    )


def test_only_words_have_a_vocabulary():
    assert set(addition().vocabulary) == set("0123456789+=")
    assert addition(separator="").vocabulary == ()


def test_draws_keep_to_the_pool():
    task = addition()
    columns = task.draw(np.random.default_rng(shifted(0)), {"numbers": ((47, 85), (5, 90))}, 50)
    assert set(zip(*columns.values(), strict=True)) == {(4, 7, 8, 5), (0, 5, 9, 0)}
