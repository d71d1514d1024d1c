from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import iit
from iit.causal import Task, ioi
from iit.causal.ioi import NAMES, OBJECTS, PLACES, TEMPLATES


def inputs(first, second, subject, template=0):
    return {"template": template, "place": "store", "object": "drink", "first": first, "second": second, "subject": subject}


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
    assert (setting["subject_position"], setting["io_name"], setting["answer"]) == (*values, values[1])


# base, source → answer after interchanging subject_position, after io_name, after both from the same source
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
    assert model.interchange(base, {"subject_position": source, "io_name": source})["answer"] == both


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
    assert any("{place}" in t and t.index("{place}") < t.index("{A}") for t in TEMPLATES), "both orders"
    assert len({len(t) - t.index("{S}") for t in TEMPLATES}) > 3, "the subject is repeated early and late"


def test_draws_keep_to_the_pools():
    task, rng = ioi(), np.random.default_rng(0)
    pools = {"name": ("Mary", "John", "Anna"), "template": (3, 5), "place": ("park",), "object": ("ring", "book")}
    drawn = [task.draw(rng, pools) for _ in range(200)]
    assert {d["template"] for d in drawn} == {3, 5}
    assert {d["place"] for d in drawn} == {"park"}
    assert {n for d in drawn for n in (d["first"], d["second"])} == set(pools["name"])
    assert all(d["first"] != d["second"] and d["subject"] in (d["first"], d["second"]) for d in drawn)
    assert 60 < sum(d["subject"] == d["first"] for d in drawn) < 140


def test_the_config_names_the_task():
    task = instantiate(OmegaConf.load(Path(iit.__file__).parent / "conf" / "causal" / "ioi.yaml"))
    assert isinstance(task, Task)
    assert task.name == "ioi"
    assert set(task.variables) <= set(task.model.variables)
    assert set(task.words) <= set(task.pools)


def test_one_name_is_too_few():
    task = ioi()
    with pytest.raises(ValueError, match=r"at least two names .* \['Mary'\]"):
        task.draw(np.random.default_rng(0), {**task.pools, "name": ("Mary",)})


def test_impossible_prompts_are_refused():
    for names in (("Mary", "Mary", "Mary"), ("Mary", "John", "Anna")):
        with pytest.raises(ValueError, match="two different names"):
            ioi().write(inputs(*names))
