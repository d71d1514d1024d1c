import pytest
from hypothesis import given
from hypothesis import strategies as st

from iit.causal import CausalModel, drop, marginalise, merge, separating_share
from iit.tasks import addition
from tests.causal.test_model import INPUTS, TABLES, build, layered


@given(TABLES, INPUTS, INPUTS)
def test_merged_variables_are_their_tuple(tables, base, source):
    fine = layered(tables)
    coarse = merge(fine, ["a", "b"], "ab")
    assert set(coarse.parents("ab")) == {"x", "y", "z"}
    assert coarse.parents("c") == ("ab",)
    setting = coarse.interchange(base, {"ab": source})
    expected = fine.interchange(base, {"a": source, "b": source})
    assert setting["ab"] == (expected["a"], expected["b"])
    assert setting["out"] == expected["out"]


@given(TABLES, INPUTS, INPUTS)
def test_merging_along_an_edge_and_merging_inputs(tables, base, source):
    fine = layered(tables)
    along = merge(fine, ["c", "a"], "ac")
    expected = fine.interchange(base, {"a": source, "c": source})
    assert along.interchange(base, {"ac": source})["out"] == expected["out"]
    inputs = merge(fine, ["x", "z"], "xz")
    assert inputs.inputs["xz"] == tuple((x, z) for x in range(3) for z in range(3))
    assert (
        inputs.run({"xz": (base["x"], base["z"]), "y": base["y"]})["out"] == fine.run(base)["out"]
    )


@given(TABLES, INPUTS, INPUTS, st.sampled_from(["a", "b", "c"]))
def test_marginalising_keeps_all_other_interchanges(tables, base, source, gone):
    fine = layered(tables)
    coarse = marginalise(fine, gone)
    assert gone not in coarse.variables
    for variable in set(coarse.variables) - set(coarse.inputs):
        expected = fine.interchange(base, {variable: source})
        assert coarse.interchange(base, {variable: source}) == {
            v: expected[v] for v in coarse.variables
        }


@given(TABLES, INPUTS, st.sampled_from(["a", "b", "c", "x", "y", "z"]), st.integers(0, 2))
def test_a_dropped_variable_has_the_same_value_always(tables, base, gone, value):
    fine = layered(tables)
    coarse = drop(fine, gone, value)
    expected = fine.do(base, {gone: value})
    assert coarse.run({v: base[v] for v in coarse.inputs}) == {
        v: expected[v] for v in coarse.variables
    }


def test_what_reads_only_the_dropped_is_dropped_too():
    model = CausalModel(
        {"x": None, "y": None}, {"a": lambda x: x + 1, "b": lambda a, y: a * y}, "b"
    )
    assert repr(drop(model, "x", 2)) == (
        "CausalModel causal model\n  inputs: y\n  b ← y\n  output: b"
    )
    assert drop(model, "x", 2).run({"y": 5})["b"] == 15
    unread = CausalModel({"x": None, "y": None}, {"b": lambda x: x}, "b")
    assert drop(unread, "y").inputs == {"x": None}


def test_addition_without_its_carry():
    task = addition()
    dropped = drop(task.model, "ones_carry", 0)
    pairs = [
        ({**dict.fromkeys(task.model.inputs, 0), "a_ones": a, "b_ones": b}, {})
        for a in range(10)
        for b in range(10)
    ]
    assert separating_share(dropped, task.rivals["no_carry"], pairs) == 0
    assert separating_share(dropped, task.model, pairs) == 0.45, (
        "45 of the 100 pairs of digits carry"
    )


def test_the_separating_share_counts_interchanges():
    one = build({"a": lambda x: x, "b": lambda a: a})
    other = build({"a": lambda x: 1 - x, "b": lambda a: 1 - a})
    zero, unit = {"x": 0}, {"x": 1}
    assert separating_share(one, other, [(zero, {}), (unit, {})]) == 0, "they behave alike"
    assert separating_share(one, other, [(zero, {"a": unit}), (zero, {"a": zero}), (zero, {})]) == 0
    third = build({"a": lambda x: 0 * x, "b": lambda a, x: x})
    assert (
        separating_share(
            one, third, [(zero, {"a": unit}), (zero, {"a": zero}), (zero, {}), (unit, {"a": zero})]
        )
        == 0.5
    )


def test_nested_interchanges_and_dropped_inputs_are_compared():
    model = CausalModel(
        {"x": None, "y": None}, {"s": lambda x, y: x + y, "b": lambda s: s % 3}, "b"
    )
    without = drop(model, "y", 0)
    base = {"x": 1, "y": 0}
    nested = model.interchange(base, {"x": {"x": 5, "y": 1}})
    assert separating_share(model, model, [(base, {"s": nested})]) == 0
    assert (
        separating_share(model, without, [(base, {"s": {"x": 1, "y": 1}}), (base, {"s": base})])
        == 0.5
    )
    with pytest.raises(ValueError, match="outside its domain"):
        drop(build({"b": lambda x, z: x + z}, {"x": (0, 1), "z": (0, 1)}), "x", 7)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: merge(m, ["a"], "n"), "two variables or more"),
        (lambda m: merge(m, ["a", "q"], "n"), r"no variable \['q'\]"),
        (lambda m: merge(m, ["a", "x"], "n"), r"\['x'\] are inputs"),
        (lambda m: merge(m, ["a", "out"], "n"), "the output 'out' cannot be merged"),
        (lambda m: merge(m, ["a", "b"], "c"), "the name 'c' is taken"),
        (lambda m: marginalise(m, "x"), "'x' is an input"),
        (lambda m: marginalise(m, "out"), "'out' is the output"),
        (lambda m: drop(m, "a"), r"\['c'\] read 'a'"),
        (lambda m: drop(m, "out"), "does not depend on anything"),
        (lambda m: drop(m, "q", 0), r"no variable \['q'\]"),
        (lambda m: separating_share(m, m, []), "no pairs"),
        (lambda m: separating_share(m, m, [({"x": 0}, {"q": {}})]), r"\['q'\]"),
        (lambda m: separating_share(m, m, [({"x": 0}, {}), ({"y": 0}, {})]), "is missing"),
    ],
)
def test_errors_name_the_culprit(make, said):
    with pytest.raises(ValueError, match=said):
        make(layered([[0] * 9] * 4))


def test_merging_around_a_variable_between_is_a_cycle():
    model = CausalModel(
        {"x": None}, {"a": lambda x: x, "m": lambda a: a, "c": lambda m: m, "b": lambda c: c}, "b"
    )
    with pytest.raises(ValueError, match=r"cycle: .*n"):
        merge(model, ["a", "c"], "n")
