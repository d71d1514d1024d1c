import numpy as np
import pytest

from iit.data import Pairs
from iit.tasks import ioi
from iit.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES
from tests.seeds import shifted


def inputs(first, second, subject, template=0):
    return {
        "template": template,
        "place": "store",
        "object": "drink",
        "first": first,
        "second": second,
        "subject": subject,
    }


# first, second, subject → subject_position, io_name
TRUTH = [
    (("Mary", "John", "John"), (1, "Mary")),
    (("Mary", "John", "Mary"), (0, "John")),
    (("Anna", "Peter", "Anna"), (0, "Peter")),
    (("Anna", "Peter", "Peter"), (1, "Anna")),
]


@pytest.mark.parametrize(("names", "values"), TRUTH)
def test_truth_table(names, values):
    setting = ioi().model.run(inputs(*names))
    assert (setting["subject_position"], setting["io_name"], setting["answer"]) == (
        *values,
        values[1],
    )


# base, source → answer after interchanging subject_position, after io_name, after both from the
# same source
INTERCHANGES = [
    (("Mary", "John", "John"), ("Anna", "Peter", "Anna"), "John", "Peter", "Peter"),
    (("Mary", "John", "John"), ("Anna", "Peter", "Peter"), "Mary", "Anna", "Anna"),
    (("Mary", "John", "Mary"), ("Anna", "Peter", "Peter"), "Mary", "Anna", "Anna"),
    (("Mary", "John", "Mary"), ("Anna", "Peter", "Anna"), "John", "Peter", "Peter"),
]


@pytest.mark.parametrize(("base", "source", "position", "name", "both"), INTERCHANGES)
def test_interchanges(base, source, position, name, both):
    model = ioi().model
    base, source = inputs(*base), inputs(*source)
    assert model.interchange(base, {"subject_position": source})["answer"] == position
    assert model.interchange(base, {"io_name": source})["answer"] == name
    assert (
        model.interchange(base, {"subject_position": source, "io_name": source})["answer"] == both
    )


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
@pytest.mark.parametrize("subject", ["Mary", "John"])
def test_writer_and_roles_agree(template, subject):
    prompt = ioi().write(inputs("Mary", "John", subject, template))
    words = {role: prompt.text[start:stop] for role, (start, stop) in prompt.roles.items()}
    other = "John" if subject == "Mary" else "Mary"
    assert words == {"s1": subject, "io": other, "s2": subject, "place": "store", "object": "drink"}
    assert prompt.text.index("Mary") < prompt.text.index("John")
    assert prompt.roles["s1"][0] == prompt.text.index(subject)
    assert prompt.roles["s2"][0] == prompt.text.rindex(subject) > prompt.roles["io"][0]
    assert "{" not in prompt.text
    assert "  " not in prompt.text
    assert prompt.text.endswith(" to")


def test_there_is_enough_of_everything():
    assert len(TEMPLATES) >= 15
    assert len(NAMES) >= 72
    assert min(len(set(words)) for words in (NAMES, PLACES, OBJECTS)) >= 60
    assert all(len(set(words)) == len(words) for words in (NAMES, PLACES, OBJECTS, TEMPLATES))
    assert all(word[0] not in "aeiou" for word in OBJECTS), "the templates say 'a'"
    assert any("{place}" in t and t.index("{place}") < t.index("{A}") for t in TEMPLATES), (
        "both orders"
    )
    assert len({len(t) - t.index("{S}") for t in TEMPLATES}) > 3, (
        "the subject is repeated early and late"
    )


def test_some_templates_are_for_test_alone():
    """Those of training and validation are what they were before there were these; a claim about
    unseen templates has 20 or more.
    """
    pairs = Pairs.sample(ioi(), n_train=200, n_val=200, n_test=600, seed=0)
    templates = {
        split: set(pairs.split(split)["case"]) for split in ("train", "validation", "test")
    }
    assert templates["train"] == {0, 1, 3, 5, 10, 11, 12, 15}
    assert templates["validation"] == {7, 8, 9}
    assert templates["test"] == {2, 4, 6, 13, 14, *range(16, len(TEMPLATES))}
    assert len(templates["test"]) >= 20
    shared = Pairs.sample(ioi(), n_train=400, n_val=400, n_test=400, splits=["name"], seed=0)
    assert {row["base"].partition(" ")[0] for row in shared.dataset} <= {
        text.partition(" ")[0] for text in TEMPLATES[:16]
    }


def test_draws_keep_to_the_pools():
    task, rng = ioi(), np.random.default_rng(shifted(0))
    pools = {
        "name": ("Mary", "John", "Anna"),
        "template": (3, 5),
        "place": ("park",),
        "object": ("ring", "book"),
    }
    drawn = task.draw(rng, pools, 200)
    assert set(drawn["template"]) == {3, 5}
    assert set(drawn["place"]) == {"park"}
    assert set(drawn["first"]) == set(drawn["second"]) == set(pools["name"])
    names = list(zip(drawn["first"], drawn["second"], drawn["subject"], strict=True))
    assert all(first != second and subject in (first, second) for first, second, subject in names)
    assert 60 < sum(subject == first for first, _, subject in names) < 140


def test_few_names_are_too_few():
    task, rng = ioi(), np.random.default_rng(shifted(0))
    with pytest.raises(
        ValueError, match=r"at least 2 entries of the pool 'name'; it holds \['Mary'\]"
    ):
        task.draw(rng, {**task.pools, "name": ("Mary",)}, 3)
    base, pools = (
        columns(("Mary", "John", "John")),
        {**task.pools, "name": ("Mary", "John", "Anna")},
    )
    for name, needed in (("random_names", 4), ("abc", 5)):
        with pytest.raises(ValueError, match=f"at least {needed} entries of the pool 'name'"):
            task.counterfactuals[name](rng, pools, base)


def columns(*names):
    rows = [inputs(*row) for row in names]
    return {name: [row[name] for row in rows] for name in rows[0]}


# counterfactual → first, second, subject made from (Mary, John, John) and (Mary, John, Mary)
FLIPS = {
    "s1_io_flip": [("John", "Mary", "John"), ("John", "Mary", "Mary")],
    "s2_io_flip": [("Mary", "John", "Mary"), ("Mary", "John", "John")],
    "both": [("John", "Mary", "Mary"), ("John", "Mary", "John")],
}


@pytest.mark.parametrize("name", FLIPS)
def test_flips(name):
    task, base = ioi(), columns(("Mary", "John", "John"), ("Mary", "John", "Mary"))
    made = task.counterfactuals[name](np.random.default_rng(shifted(0)), task.pools, base)
    assert list(zip(made["first"], made["second"], made["subject"], strict=True)) == FLIPS[name]
    assert all(made[rest] == base[rest] for rest in ("template", "place", "object"))


# counterfactual → does the subject's position flip, does its name
SIGNALS = {
    "s1_io_flip": (True, False),
    "s2_io_flip": (True, True),
    "both": (False, True),
    "random_names": (False, True),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_position_and_token_flip_as_the_table_says(name):
    task, rng = ioi(), np.random.default_rng(shifted(0))
    base = task.draw(rng, task.pools, 100)
    source = task.counterfactuals[name](rng, task.pools, base)
    for row, other in zip(
        zip(*base.values(), strict=True), zip(*source.values(), strict=True), strict=True
    ):
        row, other = dict(zip(base, row, strict=True)), dict(zip(source, other, strict=True))
        position = (
            task.model.run(row)["subject_position"] != task.model.run(other)["subject_position"]
        )
        assert (position, row["subject"] != other["subject"]) == SIGNALS[name]
        shared = {row["first"], row["second"]} & {other["first"], other["second"]}
        assert len(shared) == (0 if name == "random_names" else 2)


def test_abc_repeats_no_name_and_has_no_answer():
    task, rng = ioi(), np.random.default_rng(shifted(0))
    base = task.draw(rng, task.pools, 100)
    source = task.counterfactuals["abc"](rng, task.pools, base)
    for at in range(100):
        row = {name: column[at] for name, column in source.items()}
        names = {row["first"], row["second"], row["subject"]}
        assert len(names | {base["first"][at], base["second"][at]}) == 5
        setting = task.model.run(row)
        assert setting["subject_position"] is setting["io_name"] is None
        with pytest.raises(
            ValueError, match=f"{row['subject']} is repeated, so there is no indirect object"
        ):
            task.answer(setting)
        prompt = task.write(row)
        assert [prompt.text[slice(*prompt.roles[role])] for role in "abc"] == [
            row["first"],
            row["second"],
            row["subject"],
        ]


def test_unseen_names_are_equally_likely():
    task = ioi()
    pools = {**task.pools, "name": ("A", "B", "C", "D", "E", "F")}
    for own, others in (
        (("B", "E", "E"), "ACDF"),
        (("A", "X", "A"), "BCDEF"),
        (("X", "Y", "Y"), "ABCDEF"),
    ):
        made = task.counterfactuals["random_names"](
            np.random.default_rng(shifted(0)), pools, columns(*[own] * 4000)
        )
        found = {name: (made["first"] + made["second"]).count(name) for name in "ABCDEF"}
        assert {name for name, count in found.items() if count} == set(others), found
        assert max(found.values()) < 1.2 * min(count for count in found.values() if count)


# rival → its answer on (Mary, John, John), and after subject_position, or else io_name, came from
# (John, Peter, John)
RIVALS = {
    "subject_token": ("Mary", "Mary"),
    "first_name": ("Mary", "John"),
    "second_name": ("John", "Peter"),
    "recency": ("John", "John"),
}


@pytest.mark.parametrize("name", RIVALS)
def test_rivals(name):
    rival = ioi().rivals[name]
    variable = "subject_position" if name == "subject_token" else "io_name"
    base, source = inputs("Mary", "John", "John"), inputs("John", "Peter", "John")
    assert (
        rival.run(base)["answer"],
        rival.interchange(base, {variable: source})["answer"],
    ) == RIVALS[name]
    assert ioi().model.interchange(base, {"subject_position": source})["answer"] == "John"


def test_impossible_prompts_are_refused():
    with pytest.raises(ValueError, match=r"two different names .* Mary twice"):
        ioi().write(inputs("Mary", "Mary", "Mary"))
