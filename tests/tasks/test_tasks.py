"""What holds for every task."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import iit
from iit.causal import Prompt, Task
from iit.tasks import (
    addition,
    attribute,
    equality,
    facts,
    greater_than,
    ioi,
    mcqa,
    modular_sum,
    price_tag,
    pvr,
)
from tests.seeds import shifted

CONFIGS = sorted((Path(iit.__file__).parent / "conf" / "causal").glob("*.yaml"))
TASKS = {
    "ioi": ioi,
    "equality": lambda: equality(n_objects=50),
    "addition": addition,
    "addition_digits": lambda: addition(separator=""),
    "attribute": attribute,
    "facts": facts,
    "greater_than": greater_than,
    "mcqa": mcqa,
    "mcqa_sentences": lambda: mcqa(terse=False),
    "modular_sum": modular_sum,
    "price_tag": price_tag,
    "price_tag_sentences": lambda: price_tag(terse=False),
    "pvr": pvr,
}
# The rivals that no behaviour tells from the hypothesis: only pairs do.
SAME_BEHAVIOUR = {
    "ioi": {"subject_token"},
    "equality": {"first_argument_identity"},
    "addition": {"ones_sum", "first_ones", "column_sum"},
    "attribute": {"whole_entity", "asked_at_once"},
    "facts": set(),
    "greater_than": set(),
    "modular_sum": {"first_is_a"},
    "mcqa": {"symbol_at_once", "pointer_till_the_end"},
    "price_tag": {"midpoint", "identity"},
    "pvr": {"value"},
}


@pytest.fixture(params=TASKS, scope="module")
def task(request):
    return TASKS[request.param]()


def drawn(task, n=200, seed=0):
    columns = task.draw(np.random.default_rng(seed), task.pools, n)
    return columns, [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]


def key(written):
    return written.text if isinstance(written, Prompt) else written.tobytes()


def test_a_task_is_whole(task):
    assert set(task.variables) <= set(task.model.mechanisms)
    assert task.variables
    assert set(task.words) <= set(task.pools)
    assert set(task.splits) <= set(task.pools)
    assert task.splits
    assert all(isinstance(pool, tuple) for pool in task.pools.values())


def test_drawn_columns_are_inputs_in_plain_python(task):
    columns, rows = drawn(task)
    assert set(columns) == set(task.model.inputs)
    assert all(type(value) in (int, str, tuple) for column in columns.values() for value in column)
    for row in rows:
        task.model.run(row)
    assert columns == drawn(task)[0], "a seed fixes the draw"
    assert columns != drawn(task, seed=1)[0]
    assert all(
        column == []
        for column in task.draw(np.random.default_rng(shifted(0)), task.pools, 0).values()
    )


def test_what_is_written_tells_all_inputs_that_matter(task):
    """Equal prompts have equal answers, and prompts of one task have one form."""
    _, rows = drawn(task)
    answers = {}
    for row in rows:
        written, answer = task.write(row), task.answer(task.model.run(row))
        assert answers.setdefault(key(written), answer) == answer
        if isinstance(written, Prompt):
            assert isinstance(answer, str | tuple)
            assert not written.text.endswith(" ")
            assert "{" not in written.text
            assert all(
                0 <= start < stop <= len(written.text) for start, stop in written.roles.values()
            )
        else:
            assert isinstance(answer, int)
            assert written.dtype == np.float32
    assert len(answers) > 50


def test_vocabularies_hold_every_word(task):
    if task.vocabulary:
        assert len(set(task.vocabulary)) == len(task.vocabulary)
        for row in drawn(task)[1]:
            said = task.write(row).text + task.answer(task.model.run(row))
            assert set(said.split(" ")) <= set(task.vocabulary)


def test_splits_share_no_prompt(task):
    parts = iit.data.disjoint_pools(task.pools, task.splits, rng=np.random.default_rng(shifted(0)))
    found = []
    for pools in parts.values():
        columns = task.draw(np.random.default_rng(shifted(0)), pools, 100)
        found.append(
            {
                key(task.write(dict(zip(columns, row, strict=True))))
                for row in zip(*columns.values(), strict=True)
            }
        )
    assert not found[0] & found[1]
    assert not found[0] & found[2]
    assert not found[1] & found[2]


def test_rivals_answer_the_same_pairs(task):
    assert task.rivals
    rows = drawn(task, 300)[1]
    for name, rival in task.rivals.items():
        assert rival.name == name
        assert rival.inputs == task.model.inputs
        rivalled = set(task.variables) & set(rival.mechanisms)
        assert rivalled
        kinds = {type(task.answer(task.model.run(row))) for row in rows}
        same = [task.answer(rival.run(row)) == task.answer(task.model.run(row)) for row in rows]
        assert all(same) == (name in SAME_BEHAVIOUR[task.name])
        apart = 0
        for base, source in pairwise(rows):
            for variable in rivalled:
                answer = task.answer(rival.interchange(base, {variable: source}))
                assert type(answer) in kinds
                apart += answer != task.answer(task.model.interchange(base, {variable: source}))
        assert apart, "some pairs separate the hypothesis from the rival"


def test_every_variable_changes_some_answers(task):
    rows = drawn(task, 300)[1]
    for variable in task.variables:
        changed = [
            task.answer(task.model.interchange(base, {variable: source}))
            != task.answer(task.model.run(base))
            for base, source in pairwise(rows)
        ]
        assert 0.02 < np.mean(changed) < 1


def test_counterfactuals_are_inputs_of_the_same_shape(task):
    columns, _ = drawn(task, 60)
    before = {name: list(column) for name, column in columns.items()}
    for make in task.counterfactuals.values():
        sources = make(np.random.default_rng(shifted(0)), task.pools, columns)
        assert columns == before, "the base is left alone"
        assert set(sources) == set(columns)
        for row in zip(*sources.values(), strict=True):
            inputs = dict(zip(sources, row, strict=True))
            task.write(inputs)
            task.model.run(inputs)
        assert [len(column) for column in sources.values()] == [60] * len(sources)


def test_empty_and_missing_pools_are_refused(task):
    for name in task.pools:
        with pytest.raises(
            ValueError,
            match=rf"at least \d entries of the pool '{name}'; it holds \[\].*data.splits",
        ):
            task.draw(np.random.default_rng(shifted(0)), {**task.pools, name: ()}, 5)
    for name in task.pools:
        with pytest.raises(ValueError, match=f"pool '{name}' is missing"):
            task.draw(
                np.random.default_rng(shifted(0)),
                {k: v for k, v in task.pools.items() if k != name},
                5,
            )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_config_names_the_task(path):
    task = instantiate(OmegaConf.load(path))
    assert isinstance(task, Task)
    assert task.name == path.stem


def test_every_task_has_a_config():
    assert {path.stem for path in CONFIGS} == set(SAME_BEHAVIOUR)


def test_meanings_name_variables_and_roles():
    named, known = {}, {}
    for make in TASKS.values():
        task = make()
        assert set(task.variables) <= set(task.meanings)
        assert all(words and not words.endswith(".") for words in task.meanings.values())
        columns = task.draw(np.random.default_rng(0), task.pools, 1)
        written = task.write({key: column[0] for key, column in columns.items()})
        roles = set(getattr(written, "roles", ()))
        # Some roles stand in one of the ways to write a task only.
        known.setdefault(task.name, set(task.variables)).update(roles, map("{}_last".format, roles))
        named[task.name] = set(task.meanings)
    assert len(named) == 10
    for name, names in named.items():
        assert names <= known[name]
