import numpy as np
import pytest

from iit.causal import greater_than
from iit.causal.greater_than import TEMPLATES
from tests.seeds import shifted


def inputs(century, tens, ones, template=0):
    return {"template": template, "event": "war", "century": century, "tens": tens, "ones": ones}


# century, tens, ones → answer
TRUTH = [
    ((17, 3, 2), ("3", "4", "5", "6", "7", "8", "9")),
    ((11, 0, 1), ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")),
    ((16, 8, 8), ("8", "9")),
    ((19, 9, 0), ("9",)),
]


@pytest.mark.parametrize(("row", "answer"), TRUTH)
def test_truth_table(row, answer):
    task = greater_than()
    setting = task.model.run(inputs(*row))
    assert setting["start_tens"] == row[1]
    assert task.answer(setting) == answer


def test_each_answer_can_be_the_tens_digit_of_a_later_year():
    """And no other digit can: against the definition, counted out."""
    task = greater_than()
    for tens in range(10):
        for ones in task.pools["ones"]:
            later = {str(end // 10) for end in range(100) if end > 10 * tens + ones}
            assert set(task.answer(task.model.run(inputs(17, tens, ones)))) == later


# base, source → label after interchanging start_tens, and what the rivals say
INTERCHANGES = [
    ((17, 3, 2), (18, 8, 5), "89", {"same_tens": "8", "after_tens": "9", "start_ones": "56789"}),
    ((18, 8, 5), (17, 3, 7), "3456789", {"same_tens": "3", "after_tens": "4", "start_ones": "789"}),
    ((17, 3, 2), (17, 9, 1), "9", {"same_tens": "9", "after_tens": "9", "start_ones": "123456789"}),
]


@pytest.mark.parametrize(("base", "source", "label", "others"), INTERCHANGES)
def test_interchanges(base, source, label, others):
    task, sources = greater_than(), {"start_tens": inputs(*source)}
    assert task.answer(task.model.interchange(inputs(*base), sources)) == tuple(label)
    for name, said in others.items():
        assert task.answer(task.rivals[name].interchange(inputs(*base), sources)) == tuple(said)


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_writer_and_roles_agree(template):
    prompt = greater_than().write(inputs(17, 3, 2, template))
    words = {role: prompt.text[start:stop] for role, (start, stop) in prompt.roles.items()}
    assert words == {
        "event": "war",
        "start": "1732",
        "start_century": "17",
        "start_tens": "3",
        "start_ones": "2",
        "century": "17",
    }
    assert prompt.text.endswith(" 17")
    assert prompt.roles["century"][1] == len(prompt.text)


def test_counterfactuals_change_the_start_year_only():
    task, rng = greater_than(), np.random.default_rng(shifted(0))
    base = task.draw(rng, task.pools, 500)
    later, first = (task.counterfactuals[name](rng, task.pools, base) for name in ("later", "year_01"))
    assert all(own < new <= 9 for own, new in zip(base["tens"], later["tens"], strict=True))
    assert 9 in later["tens"]
    assert 9 not in base["tens"]
    assert set(first["tens"]) == {0}
    assert set(first["ones"]) == {1}
    for name in ("template", "event", "century"):
        assert base[name] == later[name] == first[name]
    assert base["ones"] == later["ones"]
