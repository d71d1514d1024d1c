import numpy as np
import pytest

from iit.data import Pairs
from iit.tasks import greater_than
from iit.tasks.greater_than import TEMPLATES
from tests.seeds import shifted


def inputs(century, tens, ones, template=0):
    return {"template": template, "event": "war", "century": century, "tens": tens, "ones": ones}


# century, tens, ones → answer
TRUTH = [
    ((17, 3, 2), ("3", "4", "5")),
    ((11, 0, 1), ("0", "1", "2")),
    ((16, 8, 8), ("8", "9")),
    ((19, 9, 0), ("9",)),
]


@pytest.mark.parametrize(("row", "answer"), TRUTH)
def test_truth_table(row, answer):
    task = greater_than()
    setting = task.model.run(inputs(*row))
    assert setting["start_tens"] == row[1]
    assert task.answer(setting) == answer


def test_without_an_end_each_answer_can_be_the_tens_digit_of_a_later_year():
    """And no other digit can: against the definition, counted out."""
    task = greater_than(reach=9)
    for tens in range(10):
        for ones in task.pools["ones"]:
            later = {str(end // 10) for end in range(100) if end > 10 * tens + ones}
            assert set(task.answer(task.model.run(inputs(17, tens, ones)))) == later


# base, source → label after interchanging start_tens, and what the rivals say
INTERCHANGES = [
    ((17, 3, 2), (18, 8, 5), "89", {"same_tens": "8", "after_tens": "9", "start_ones": "567"}),
    ((18, 8, 5), (17, 3, 7), "345", {"same_tens": "3", "after_tens": "4", "start_ones": "789"}),
    ((17, 3, 2), (17, 9, 1), "9", {"same_tens": "9", "after_tens": "9", "start_ones": "123"}),
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
    apart, first = (
        task.counterfactuals[name](rng, task.pools, base) for name in ("apart", "year_01")
    )
    assert set(apart["tens"]) == set(range(10))
    assert 9 not in base["tens"]
    assert set(first["tens"]) == {0}
    assert set(first["ones"]) == {1}
    for name in ("template", "event", "century"):
        assert base[name] == apart[name] == first[name]
    assert base["ones"] == apart["ones"]


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_sources_that_are_apart_share_no_answer_and_come_before_and_after(reach):
    task, rng = greater_than(reach), np.random.default_rng(shifted(0))
    base = task.draw(rng, task.pools, 600)
    source = task.counterfactuals["apart"](rng, task.pools, base)
    answers = [map(set, task.model.run_batch(columns)["answer"]) for columns in (base, source)]
    assert all(not own & new for own, new in zip(*answers, strict=True))
    later = np.mean(np.array(source["tens"]) > np.array(base["tens"]))
    assert 0.4 < later < 0.7


def test_a_reach_that_leaves_nothing_apart_is_refused():
    task, rng = greater_than(5), np.random.default_rng(shifted(0))
    with pytest.raises(ValueError, match="4 at most"):
        task.counterfactuals["apart"](rng, task.pools, task.draw(rng, task.pools, 60))
    with pytest.raises(ValueError, match="reach=0"):
        greater_than(0)


@pytest.mark.parametrize("seed", range(3))
def test_no_one_digit_is_right_on_half_of_the_experiments_pairs(seed, configured):
    """Nor is a base that is left alone, and the training pairs' most frequent answer is no
    better.
    """
    data = dict(configured("+experiment=das_greater_than").data)
    pairs = Pairs.sample(
        greater_than(),
        pairs=data["pairs"],
        changing_share=data["changing_share"],
        n=300,
        seed=shifted(seed),
    )
    test = pairs.split("test")
    right = {
        str(digit): np.mean([str(digit) in label for label in test["label"]]) for digit in range(10)
    }
    assert max(right.values()) < 0.5
    assert all(
        not set(label) & set(own)
        for label, own in zip(test["label"], test["base_answer"], strict=True)
    )
