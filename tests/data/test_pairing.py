"""Ways to pair, on every task."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from iit import tasks
from iit.data import STRATEGIES, EncodedPairs, Pairs, disjoint_pools
from iit.data.pairing import Wanted, draw_pairs, label_columns, labels_of
from iit.data.prompts import draw_prompts, write
from iit.data.sources import Sources
from iit.network import mlp
from iit.tasks import addition, equality, greater_than, ioi, mcqa, price_tag, pvr
from iit.tasks.attribute import COUNTRIES
from tests.seeds import shifted

TASKS = {
    name: getattr(tasks, name)()
    for name in (
        "ioi",
        "equality",
        "addition",
        "attribute",
        "greater_than",
        "mcqa",
        "price_tag",
        "pvr",
    )
}
FEW = {"n_train": 60, "n_val": 20, "n_test": 20}


class Tensors:
    """A network fed with tensors, as far as encoding goes."""

    def encode(self, given, positions=None, answers=None):
        batch = {"x": torch.tensor(np.stack(given))}
        return (
            batch
            if answers is None
            else batch | {"answer": torch.tensor(list(answers)).unsqueeze(1)}
        )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("pairs", [*STRATEGIES, *TASKS["ioi"].counterfactuals])
def test_every_way_on_every_task(name, pairs):
    task = TASKS[name]
    if pairs not in STRATEGIES and (pairs not in task.counterfactuals or pairs == "abc"):
        pytest.skip("another task's own")
    found = Pairs.sample(task, pairs=pairs, seed=1, **FEW)
    for split, size in (("train", 60), ("validation", 20), ("test", 20)):
        part = found.split(split)
        if pairs != "exhaustive":
            assert len(part) == size
        for row in part:
            assert row["changing"] == (row["label"] != row["base_answer"])
            assert row["base"] != row["source"]
    assert found.facts["changing"]["train"] == sum(found.split("train")["changing"])


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_those_of_the_causal_model_one_at_a_time(name):
    """The label of a pair is what `interchange` says of the inputs that wrote its prompts."""
    task, asked = TASKS[name], {}
    write = task.write

    def watched(inputs):
        written = write(inputs)
        asked[written.text if hasattr(written, "text") else written.tobytes()] = inputs
        return written

    task = replace(task, write=watched)
    for variable in task.variables:
        found = Pairs.sample(task, variable=variable, seed=2, **FEW)
        rows = found.dataset.with_format(
            None if isinstance(found.dataset[0]["base"], str) else "numpy"
        )
        for row in rows:
            base, source = (
                asked[row[side] if isinstance(row[side], str) else row[side].tobytes()]
                for side in ("base", "source")
            )
            expected = task.answer(task.model.interchange(base, {variable: source}))
            label = row["label"]
            assert (tuple(label) if isinstance(expected, tuple) else label) == expected
            for rival, model in task.rivals.items():
                if variable in model.variables:
                    said = row["rival_labels"][rival]
                    expected = task.answer(model.interchange(base, {variable: source}))
                    assert (tuple(said) if isinstance(expected, tuple) else said) == expected


def test_minimal_pairs_differ_in_what_the_variable_depends_on_alone():
    task = TASKS["ioi"]
    found = Pairs.sample(task, pairs="minimal", variable="subject_position", seed=0, **FEW)
    for row in found.dataset:
        for role in ("place", "object"):
            words = {row[side][slice(*row[f"{side}_roles"][role])] for side in ("base", "source")}
            assert len(words) == 1


def test_balanced_sources_show_every_value_as_often():
    task = TASKS["addition"]
    found = Pairs.sample(
        task,
        pairs="balanced",
        variable="hundreds",
        changing_share=None,
        n_train=2000,
        n_val=20,
        n_test=20,
    )
    hundreds = [row["source_answer"].split()[0] for row in found.split("train")]
    assert 0.45 < np.mean([h == hundreds[0] for h in hundreds]) < 0.55
    plain = Pairs.sample(
        task, variable="tens", changing_share=None, n_train=2000, n_val=20, n_test=20
    )
    assert plain.facts["changing"]["train"] > 1000


def test_exhaustive_pairs_are_each_with_each():
    found = Pairs.sample(TASKS["price_tag"], pairs="exhaustive", n_train=60, n_val=20, n_test=20)
    rows = found.split("train").to_list()
    pairs = {(row["base"], row["source"]) for row in rows}
    bases = {row["base"] for row in rows}
    assert len(rows) == len(pairs) == len(bases) * (len(bases) - 1) == 56


def test_separating_pairs_tell_the_rival_apart():
    task = TASKS["price_tag"]
    rival = next(
        name for name, model in task.rivals.items() if task.variables[0] in model.variables
    )
    found = Pairs.sample(task, separate=[rival], changing_share=None, **FEW)
    assert all(row["rival_labels"][rival] != row["label"] for row in found.dataset)
    assert found.facts["separating"]["train"][rival] == 60
    with pytest.raises(ValueError, match="rivals of task 'price_tag' are"):
        Pairs.sample(task, separate=["nobody"], **FEW)


@pytest.mark.parametrize("together", [True, False])
def test_several_variables_have_a_source_each(together, tmp_path):
    task = TASKS["equality"]
    found = Pairs.sample(task, variable=["left_equal", "right_equal"], together=together, **FEW)
    kinds = {tuple(names) for names in found.dataset["interchanged"]}
    assert kinds == (
        {("left_equal", "right_equal")} if together else {("left_equal",), ("right_equal",)}
    )
    assert found.variable == "left_equal+right_equal"
    encoded = EncodedPairs(found.split("train"), found.variables, Tensors())
    batch = encoded.batch(range(10))
    for variable in found.variables:
        here = [variable in names for names in encoded.interchanged[:10]]
        assert together or batch["active"][variable].tolist() == here
        for i, there in enumerate(here):
            assert there != bool(
                (batch["sources"][variable]["x"][i] == batch["base"]["x"][i]).all()
            )
    assert together == (batch["active"] == {})
    found.save(tmp_path / "two.parquet")
    back = Pairs.load(tmp_path / "two.parquet", variable=["left_equal", "right_equal"])
    assert back.fingerprint == found.fingerprint
    assert (
        EncodedPairs(back.split("train"), back.variables, Tensors()).batch(range(10))["base"]["x"]
        == batch["base"]["x"]
    ).all()


def test_without_a_variable_there_are_prompts_alone():
    found = Pairs.sample(TASKS["addition"], variable=(), **FEW)
    assert "source" not in found.dataset.column_names
    assert not any(found.dataset["changing"])
    assert found.dataset["label"] == found.dataset["base_answer"]


@pytest.mark.parametrize("task", [TASKS["ioi"], TASKS["equality"]])
def test_fresh_pairs_by_epoch(task):
    found = Pairs.sample(task, fresh=True, seed=4, **FEW)
    one, two, again = (found.again(epoch).to_list() for epoch in (1, 2, 1))
    assert one == again
    assert one != two
    assert len(one) == 60
    assert not {str(row["base"]) for row in one} & {str(row["base"]) for row in found.split("test")}


@pytest.mark.parametrize("name", TASKS)
def test_saved_pairs_come_back(name, tmp_path):
    found = Pairs.sample(TASKS[name], **FEW)
    found.save(tmp_path / "pairs.parquet")
    assert (
        Pairs.load(tmp_path / "pairs.parquet", variable=found.variable).fingerprint
        == found.fingerprint
    )


def test_an_unknown_way_names_the_choices():
    with pytest.raises(ValueError, match=r"'sorted' is none of .*minimal.*s2_io_flip"):
        Pairs.sample(TASKS["ioi"], pairs="sorted", **FEW)


def test_bases_without_a_changing_pair_are_made_up_for(caplog):
    """Left of a quarter of the amounts that are too high nothing changes: at most three quarters of
    the pairs can.
    """
    found = Pairs.sample(
        TASKS["price_tag"], variable="left_ok", changing_share=0.9, n_train=90, n_val=20, n_test=20
    )
    assert 0.5 < found.facts["changing"]["train"] / 90 < 0.85
    assert "of the pairs are changing" in caplog.text


def test_half_of_the_pairs_change_where_a_third_of_the_prompts_ask():
    """And the others are of both kinds: another attribute is asked for, or the source has the
    base's value.
    """
    sizes = {"train": 300, "validation": 60, "test": 120}
    n_train, n_val, n_test = sizes.values()
    found = Pairs.sample(
        TASKS["attribute"],
        variable="continent",
        pairs="balanced",
        n_train=n_train,
        n_val=n_val,
        n_test=n_test,
        seed=1,
    )
    continents = {f" {row['continent']}" for row in COUNTRIES.values()}
    for split, n in sizes.items():
        changing, asked, same = [], [], []
        for row in found.split(split):
            changing.append(row["changing"])
            asked.append(row["base_answer"] in continents)
            same.append("continent" not in row["kind"].split("+"))
        changing, asked, same = np.array(changing), np.array(asked), np.array(same)
        assert found.split(split)["asked"][:] == asked.tolist()
        assert np.array_equal(changing, asked & ~same)
        assert n // 2 <= changing.sum() < 0.6 * n
        assert (~asked).sum() == n // 3
        assert (asked & same).sum() > 0.05 * n


@pytest.mark.parametrize(
    "make", [addition, price_tag, mcqa, ioi, lambda: equality(n_objects=60), pvr]
)
def test_minimal_sources_keep_to_the_pools_of_their_split(make):
    task = make()
    rng = np.random.default_rng(shifted(0))
    pools = disjoint_pools(task.pools, task.splits, (0.5, 0.2, 0.3), rng=rng)["validation"]
    prompts = write(task, task.draw(rng, pools, 100))
    way = Sources(task, "minimal", prompts, pools)
    for variable in task.variables:
        found = way.choose(variable, prompts, rng)
        for row in zip(*found.inputs.values(), strict=True):
            for pool, used in task.uses(dict(zip(found.inputs, row, strict=True))).items():
                assert set(used) <= set(pools[pool])


def test_a_tasks_own_sources_keep_what_the_splits_hold_apart():
    found = Pairs.sample(
        greater_than(1),
        pairs="apart",
        splits=["tens"],
        shares=(0.4, 0.3, 0.3),
        changing_share=None,
        **FEW,
    )
    digits = {
        split: {
            text[slice(*roles["start_tens"])]
            for text, roles in zip(part["source"], part["source_roles"], strict=True)
        }
        for split in ("train", "validation", "test")
        for part in [found.split(split)]
    }
    assert not digits["train"] & digits["test"]
    year = Pairs.sample(greater_than(), pairs="year_01", seed=2, **FEW)
    assert len(year.split("train")) == FEW["n_train"]


@pytest.mark.parametrize(("splits", "shared"), [(None, False), (["template"], True)])
def test_names_are_unseen_or_only_templates_are(splits, shared):
    """The two kinds of test of das_ioi_both."""
    variable = ["subject_position", "io_name"]
    found = Pairs.sample(
        ioi(), variable=variable, splits=splits, n_train=400, n_val=100, n_test=100, seed=1
    )
    names, templates = {}, {}
    for split in ("train", "test"):
        part = found.split(split)
        templates[split] = set(part["case"])
        names[split] = {
            text[slice(*roles[role])]
            for text, roles in zip(part["base"], part["base_roles"], strict=True)
            for role in ("s1", "io")
        }
    assert not templates["train"] & templates["test"]
    if shared:
        assert names["test"] <= names["train"]
    else:
        assert not names["train"] & names["test"]


def test_fresh_exhaustive_pairs_are_no_more_than_asked():
    found = Pairs.sample(ioi(), n=60, fresh=True, pairs="exhaustive")
    assert len(found.again(1)) <= 60


def test_rivals_are_heard_where_they_speak():
    pairs = Pairs.sample(equality(n_objects=60), variable=["left_equal", "right_equal"], **FEW)
    network = mlp(16, 2, 8, 1)
    encoded = EncodedPairs(pairs.split("test"), pairs.variables, network)
    on_left = torch.tensor([names == ("left_equal",) for names in encoded.interchanged])
    assert torch.equal(encoded.speaks["left_only"], on_left)
    assert torch.equal(encoded.speaks["first_argument_identity"], torch.ones_like(on_left))
    assert set(pairs.facts["separating"]["test"]) == {"first_argument_identity"}
    assert set(Pairs.sample(equality(n_objects=60), **FEW).facts["separating"]["test"]) == {
        "first_argument_identity",
        "left_only",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"changing_share": 2.0}, "from 0 to 1"),
        ({"variable": (), "pairs": "abc"}, "'abc' chooses sources"),
        ({"separate": "nobody"}, r"names \['nobody'\]"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Pairs.sample(ioi(), **FEW, **options)


def test_prompts_alone_are_saved_and_loaded(tmp_path):
    pairs = Pairs.sample(equality(n_objects=60), variable=(), **FEW)
    pairs.save(tmp_path / "prompts.parquet")
    loaded = Pairs.load(tmp_path / "prompts.parquet", variable=())
    assert loaded.dataset["label"] == pairs.dataset["label"]
    assert loaded.facts["right"] == {}, "nobody was asked"


def test_rivals_and_kinds_of_bases_that_stand_in_are_of_these_bases():
    """A third of the bases has no source but itself, so that others stand in for them."""
    task = ioi()
    rng = np.random.default_rng(shifted(3))
    drawn = draw_prompts(task, task.pools, 60, None, rng=rng, split="train")
    prompts = drawn.prompts
    lonely = set(prompts.keys[::3])

    def choose(rng, pools, inputs):
        others = rng.integers(len(prompts), size=len(inputs["template"]))
        keys = write(task, inputs).keys
        alone = [i for i, key in enumerate(keys) if key in lonely]
        others[alone] = [prompts.keys.index(keys[i]) for i in alone]
        return prompts.take(others).inputs

    own = replace(task, counterfactuals={"lonely": choose})
    wanted = Wanted(("subject_position",), changing_share=None)
    bases, parts = draw_pairs(
        own, wanted, prompts, Sources(own, "lonely", prompts, task.pools), None, rng=rng
    )
    assert not lonely & set(bases.keys)
    pairs = label_columns(own, wanted.variables, "train", bases, parts)
    assert pairs["base"] == bases.keys
    source = prompts.take([prompts.keys.index(text) for text in pairs["source"]])
    said = labels_of(task, task.rivals["subject_token"], bases, {"subject_position": source})
    assert [row["subject_token"] for row in pairs["rival_labels"]] == said
    before, after = (task.model.run_batch(p.inputs) for p in (bases, source))
    for row, kind in enumerate(pairs["kind"]):
        differs = [v for v in task.variables if before[v][row] != after[v][row]]
        assert kind == ("+".join(differs) or "none")
