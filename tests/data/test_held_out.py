"""The test split opens for a frozen choice, and not before."""

import json
from dataclasses import replace

import pytest

from iit.data import Choice, Pairs, freeze, hold_out
from iit.tasks import equality


@pytest.fixture(scope="module")
def pairs():
    return Pairs.sample(equality(), n_train=8, n_val=8, n_test=8)


def test_what_is_trained_and_chosen_on_has_no_test_rows(pairs):
    rest, _ = hold_out(pairs)
    assert set(rest.dataset["split"]) == {"train", "validation"}
    with pytest.raises(ValueError, match="no pairs in split 'test'"):
        rest.split("test")
    assert len(pairs.split("test")) == 8


def test_nothing_in_it_leads_to_test_rows(pairs, tmp_path):
    rest, _ = hold_out(pairs)
    assert rest.sampler is None
    rest.save(tmp_path / "rest.parquet")
    assert set(Pairs.load(tmp_path / "rest.parquet", variable=rest.variables).dataset["split"]) == {
        "train",
        "validation",
    }
    assert rest.fingerprint != pairs.fingerprint
    for name in ("train", "validation"):
        assert rest.split(name)[:] == pairs.split(name)[:]


def test_a_frozen_choice_opens_it(pairs, tmp_path):
    _, held_out = hold_out(pairs)
    choice = freeze(tmp_path, {"rank": 4, "validation_iia": 0.5})
    assert json.loads((tmp_path / "choice.json").read_text()) == {"rank": 4, "validation_iia": 0.5}
    assert held_out.opened(choice) is pairs


def test_nothing_else_does(pairs, tmp_path):
    _, held_out = hold_out(pairs)
    with pytest.raises(ValueError, match="freeze"):
        held_out.opened(Choice(tmp_path / "choice.json", "{}"))
    choice = freeze(tmp_path, {"rank": 4})
    choice.path.write_text("{}")
    with pytest.raises(ValueError, match=r"choice\.json"):
        held_out.opened(choice)


def test_pairs_say_which_variables_differ_and_are_sampled_again_for_others(pairs):
    rows = pairs.dataset[:]
    task = equality()

    def run(x):
        a, b, c, d = x.reshape(4, -1)
        return (a == b).all(), (c == d).all()

    given = pairs.dataset.with_format("numpy")[:]
    for base, source, kind in zip(given["base"], given["source"], rows["kind"], strict=True):
        differ = [
            v
            for v, one, other in zip(task.variables, run(base), run(source), strict=True)
            if one != other
        ]
        assert kind == ("+".join(differ) or "none")
    other = replace(pairs.sampler.options, variable="right_equal")(task)
    assert other.variables == ("right_equal",)
    assert len(other.dataset) == len(pairs.dataset)
    back = replace(other.sampler.options, variable="left_equal")(task)
    assert back.fingerprint == pairs.fingerprint == pairs.sampler.pairs().fingerprint
