import numpy as np
import pytest

from iit.tasks import price_tag
from iit.tasks.price_tag import SENTENCES
from tests.seeds import shifted


def inputs(lower, upper, amount, template=0):
    return {"template": template, "lower": lower, "upper": upper, "amount": amount}


# lower, upper, amount → left_ok, right_ok, answer
TRUTH = [
    ((20, 40, 31), (True, True, " yes")),
    ((20, 40, 20), (True, True, " yes")),
    ((20, 40, 40), (True, True, " yes")),
    ((20, 40, 19), (False, True, " no")),
    ((20, 40, 41), (True, False, " no")),
    ((1, 2, 59), (True, False, " no")),
]


@pytest.mark.parametrize(("row", "values"), TRUTH)
def test_truth_table(row, values):
    task = price_tag()
    setting = task.model.run(inputs(*row))
    assert (setting["left_ok"], setting["right_ok"], task.answer(setting)) == values


# base, source, variable → label, midpoint, identity
INTERCHANGES = [
    ((20, 40, 31), (50, 55, 10), "left_ok", " no", " no", " no"),
    # the middle 20 ± 10 leaves 31 out
    ((20, 40, 31), (10, 30, 15), "left_ok", " yes", " no", " yes"),
    ((20, 40, 15), (10, 30, 15), "left_ok", " yes", " yes", " yes"),
    ((20, 40, 15), (16, 30, 20), "left_ok", " yes", " yes", " no"),  # 16 is above the base's amount
    ((20, 40, 45), (10, 30, 15), "right_ok", " yes", " yes", " no"),
    ((20, 40, 15), (10, 50, 55), "right_ok", " no", " no", " no"),
]


@pytest.mark.parametrize(
    ("base", "source", "variable", "label", "midpoint", "identity"), INTERCHANGES
)
def test_interchanges(base, source, variable, label, midpoint, identity):
    task = price_tag()
    models = (task.model, task.rivals["midpoint"], task.rivals["identity"])
    found = [
        task.answer(model.interchange(inputs(*base), {variable: inputs(*source)}))
        for model in models
    ]
    assert found == [label, midpoint, identity]


def test_writer_and_roles_agree():
    prompt = price_tag().write(inputs(2, 40, 31))
    assert prompt.text == "between 2 and 40 ? 31 ="
    assert words(prompt) == {"lower": "2", "upper": "40", "amount": "31"}
    for template in range(len(SENTENCES)):
        prompt = price_tag(terse=False).write(inputs(205, 400, 31, template))
        assert words(prompt) == {"lower": "2.05", "upper": "4.00", "amount": "0.31"}
        assert "{" not in prompt.text


def words(prompt):
    return {role: prompt.text[start:stop] for role, (start, stop) in prompt.roles.items()}


@pytest.mark.parametrize("terse", [True, False])
def test_half_of_the_amounts_are_within_a_quarter_on_either_side(terse):
    task = price_tag(terse)
    columns = task.draw(np.random.default_rng(shifted(0)), task.pools, 4000)
    lower, upper, amount = (np.array(columns[name]) for name in ("lower", "upper", "amount"))
    assert (lower < upper).all()
    assert abs((amount < lower).mean() - 0.25) < 0.03
    assert abs((amount > upper).mean() - 0.25) < 0.03


def test_amounts_that_leave_a_side_empty_are_refused():
    task = price_tag()
    with pytest.raises(
        ValueError, match=r"'amount' \(2 entries\) has no amount above the bounds \[20, 40\]"
    ):
        task.draw(
            np.random.default_rng(shifted(0)),
            {**task.pools, "bounds": ((20, 40),), "amount": (10, 30)},
            50,
        )
