import numpy as np
import pytest

from iit.tasks import attribute
from iit.tasks.attribute import QUERIES, TEMPLATES
from iit.tasks.data_file import table
from tests.seeds import shifted


def inputs(entity, query, template=0):
    return {"template": template, "query": query, "entity": entity}


# country, query → answer
TRUTH = [
    ("Japan", "capital", " Tokyo"),
    ("Japan", "language", " Japanese"),
    ("Japan", "continent", " Asia"),
    ("Brazil", "capital", " Brasilia"),
    ("Brazil", "language", " Portuguese"),
    ("Brazil", "continent", " South America"),
    ("Saudi Arabia", "capital", " Riyadh"),
    ("Egypt", "language", " Arabic"),
    ("Egypt", "continent", " Africa"),
]


@pytest.mark.parametrize(("entity", "query", "answer"), TRUTH)
def test_truth_table(entity, query, answer):
    task = attribute()
    setting = task.model.run(inputs(entity, query))
    assert task.answer(setting) == answer
    assert f" {setting[query]}" == answer


# base, source, variable → label, whole_entity, asked_at_once
INTERCHANGES = [
    (("Japan", "capital"), ("Brazil", "capital"), "capital", " Brasilia", " Brasilia", " Brasilia"),
    (
        ("Japan", "capital"),
        ("Brazil", "language"),
        "capital",
        " Brasilia",
        " Brasilia",
        " Portuguese",
    ),
    (
        ("Japan", "language"),
        ("Brazil", "capital"),
        "capital",
        " Japanese",
        " Portuguese",
        " Brasilia",
    ),
    (
        ("Japan", "language"),
        ("Brazil", "language"),
        "language",
        " Portuguese",
        " Portuguese",
        " Portuguese",
    ),
    (
        ("Japan", "continent"),
        ("Brazil", "language"),
        "continent",
        " South America",
        " South America",
        " Portuguese",
    ),
    (("Japan", "capital"), ("Brazil", "capital"), "continent", " Tokyo", " Brasilia", " Brasilia"),
]


@pytest.mark.parametrize(("base", "source", "variable", "label", "whole", "asked"), INTERCHANGES)
def test_interchanges(base, source, variable, label, whole, asked):
    task = attribute()
    models = (task.model, task.rivals["whole_entity"], task.rivals["asked_at_once"])
    found = [
        task.answer(model.interchange(inputs(*base), {variable: inputs(*source)}))
        for model in models
    ]
    assert found == [label, whole, asked]


@pytest.mark.parametrize("entity", ["Japan", "Saudi Arabia", "Mali"])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_writer_and_roles_agree(template, query, entity):
    prompt = attribute().write(inputs(entity, query, template))
    words = {role: prompt.text[start:stop] for role, (start, stop) in prompt.roles.items()}
    assert words == {"entity": entity}
    assert prompt.text.count(entity) == 1


def test_nothing_up_to_the_entity_tells_what_is_asked():
    for row in TEMPLATES:
        assert set(row) == set(QUERIES)
        assert len({template.partition("{entity}")[0] for template in row.values()}) == 1
    assert len({template for row in TEMPLATES for template in row.values()}) == 3 * len(TEMPLATES)


def test_the_table_is_whole():
    rows = [tuple(row.values()) for row in table("countries.csv")]
    assert len(rows) >= 170
    assert all(len(row) == 4 and all(row) for row in rows)
    names, capitals, languages, continents = zip(*rows, strict=True)
    assert len(set(names)) == len(set(capitals)) == len(rows)
    assert set(continents) == {
        "Africa",
        "Asia",
        "Europe",
        "North America",
        "Oceania",
        "South America",
    }
    assert len(set(languages)) > 40


def test_the_answer_depends_on_nothing_but_what_is_asked():
    task, rng = attribute(), np.random.default_rng(shifted(0))
    columns = task.draw(rng, task.pools, 60)
    run = task.model.run_batch(columns)
    assert run["answer"] == [run[name][row] for row, name in enumerate(columns[task.asks])]


def test_draws_keep_to_the_pools():
    task = attribute()
    pools = {"entity": ("Japan", "Mali"), "query": ("capital",), "template": (2,)}
    columns = task.draw(np.random.default_rng(shifted(0)), pools, 60)
    assert {name: set(column) for name, column in columns.items()} == {
        name: set(pool) for name, pool in pools.items()
    }
