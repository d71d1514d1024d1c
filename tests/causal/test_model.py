import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iit.causal import CausalModel

# Random layered models: x, y, z → a(x, y), b(y, z) → c(a, b) → out(c, x); mechanisms are tables
# over 0, 1, 2. The tests draw tables and build the model themselves: beartype's sampling inside a
# strategy would be randomness that hypothesis cannot see.
VALUES = st.integers(0, 2)
TABLES = st.tuples(*[st.lists(VALUES, min_size=9, max_size=9)] * 4)
INPUTS = st.fixed_dictionaries({"x": VALUES, "y": VALUES, "z": VALUES})


def layered(tables):
    ta, tb, tc, tout = tables
    mechanisms = {
        "out": lambda c, x: tout[3 * c + x],
        "c": lambda a, b: tc[3 * a + b],
        "b": lambda y, z: tb[3 * y + z],
        "a": lambda x, y: ta[3 * x + y],
    }
    return CausalModel(
        {"x": range(3), "y": range(3), "z": range(3)}, mechanisms, "out", name="random"
    )


@given(TABLES, INPUTS)
def test_interchange_with_oneself_is_the_identity(tables, base):
    model = layered(tables)
    for variable in model.variables:
        assert model.interchange(base, {variable: base}) == model.run(base)


@given(TABLES, INPUTS, INPUTS)
def test_interchanging_all_parents_gives_the_sources_value(tables, base, source):
    model = layered(tables)
    for variable in model.mechanisms:
        parents = {parent: dict(source) for parent in model.parents(variable)}
        assert model.interchange(base, parents)[variable] == model.run(source)[variable]


@given(TABLES, INPUTS, INPUTS, INPUTS)
def test_the_order_of_disjoint_interchanges_does_not_matter(tables, base, one, two):
    model = layered(tables)
    assert model.interchange(base, {"a": one, "b": two}) == model.interchange(
        base, {"b": two, "a": one}
    )


@given(TABLES, INPUTS, INPUTS)
def test_only_descendants_change(tables, base, source):
    model = layered(tables)
    setting, own = model.interchange(base, {"b": source}), model.run(base)
    assert {v: setting[v] for v in ("x", "y", "z", "a")} == {
        v: own[v] for v in ("x", "y", "z", "a")
    }
    assert setting["b"] == model.run(source)["b"]


@given(TABLES, INPUTS)
def test_a_setting_holds_every_variable_after_its_parents(tables, base):
    model = layered(tables)
    setting = list(model.run(base))
    assert tuple(setting) == model.order
    assert sorted(setting) == sorted(model.variables)
    assert all(
        setting.index(parent) < setting.index(v) for v in setting for parent in model.parents(v)
    )


def build(mechanisms, inputs=None, output="b"):
    return CausalModel(inputs or {"x": (0, 1)}, mechanisms, output, name="m")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: build({"a": lambda b: b, "b": lambda a: a}), "cycle: .*a → b|cycle: .*b → a"),
        (lambda: build({"b": lambda y: y}), r"'b' reads \['y'\]"),
        (lambda: build({"b": lambda x=1: x}), "'x=1'"),
        (lambda: build({"b": lambda *x: x}), r"'\*x'"),
        (lambda: build({"b": lambda: 1}), "reads nothing"),
        (lambda: build({"a": lambda x: x}), "output 'b'"),
        (lambda: build({"x": lambda b: b, "b": lambda x: x}), "both as inputs"),
        (lambda: build({"b": lambda x: x}).run({}), "input 'x' is missing"),
        (lambda: build({"b": lambda x: x}).run({"x": 2}), r"x=2 is outside its domain \(0, 1\)"),
        (lambda: build({"b": lambda x: x}).run({"x": [0]}), r"x=\[0\] is outside"),
        (
            lambda: build({"b": lambda x: x}, {"x": "abc"}).run({"x": "ab"}),
            r"x='ab' is outside its domain \('a', 'b', 'c'\)",
        ),
        (
            lambda: build({"b": lambda x: x}, {"x": range(9)}).run({"x": 9}),
            r"\(0, 1, 2, 3, 4, 5, …\)",
        ),
        (
            lambda: build({"b": lambda x: x}).interchange({"x": 1}, {"x": {"x": 2}}),
            "x=2 is outside",
        ),
        (lambda: build({"b": lambda x: x}).do({"x": 1}, {"x": 2}), "x=2 is outside"),
        (lambda: build({"b": lambda x: x}).run({"x": 1, "y": 1}), r"no variable \['y'\]"),
        (
            lambda: build({"b": lambda x: x}).interchange({"x": 1}, {"c": {"x": 0}}),
            r"no variable \['c'\]",
        ),
        (lambda: build({"b": lambda x: x}).parents("c"), r"no variable \['c'\]"),
    ],
)
def test_errors_name_the_culprit(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_several_variables_from_several_sources():
    model = CausalModel(
        {"p": None, "q": None},
        {
            "sum": lambda p, q: p + q,
            "product": lambda p, q: p * q,
            "out": lambda sum, product: (sum, product),
        },
        "out",
    )
    assert model.interchange(
        {"p": 1, "q": 2}, {"sum": {"p": 5, "q": 5}, "product": {"p": 3, "q": 3}}
    )["out"] == (10, 9)
    assert model.do({"p": 1, "q": 2}, {"product": 7})["out"] == (3, 7)
    assert model.run(model.run({"p": 1, "q": 2})) == model.run({"p": 1, "q": 2}), (
        "a setting's inputs are read"
    )
    assert repr(model) == (
        "CausalModel causal model\n  inputs: p, q\n  sum ← p, q\n  product ← p, q\n"
        "  out ← sum, product\n  output: out"
    )


@given(TABLES, INPUTS, INPUTS, INPUTS)
def test_interchanges_nest(tables, base, source, other):
    model = layered(tables)
    inner = model.interchange(source, {"a": other})
    ab = {"c": inner["c"]}
    assert model.interchange(base, {"c": inner}) == model.do(base, ab), (
        "a source keeps what is held in it"
    )
    assert model.interchange(
        model.interchange(base, {"a": other}), {"b": source}
    ) == model.interchange(base, {"a": other, "b": source}), "and a base does"
    assert model.run(inner) == inner
    assert inner.held == {"a": model.run(other)["a"]}


@given(TABLES, st.lists(st.tuples(INPUTS, INPUTS, INPUTS), min_size=1, max_size=5))
def test_a_batch_is_one_at_a_time(tables, rows):
    model = layered(tables)
    base, a, b = ({name: [row[i][name] for row in rows] for name in "xyz"} for i in range(3))
    columns = model.interchange_batch(base, {"a": a, "b": model.interchange_batch(b, {"y": a})})
    for i, (one, from_a, from_b) in enumerate(rows):
        alone = model.interchange(one, {"a": from_a, "b": model.interchange(from_b, {"y": from_a})})
        assert {v: column[i] for v, column in columns.items()} == alone
        assert {v: column[i] for v, column in columns.held.items()} == alone.held


def test_all_inputs_are_enumerated():
    assert build({"b": lambda x, y: x}, {"x": (0, 1), "y": "ab"}).all_inputs() == {
        "x": [0, 0, 1, 1],
        "y": ["a", "b", "a", "b"],
    }
    with pytest.raises(ValueError, match=r"\['y'\] have no domain"):
        build({"b": lambda x, y: x}, {"x": (0, 1), "y": None}).all_inputs()
    with pytest.raises(ValueError, match="1,000,000 inputs, more than most=10"):
        build({"b": lambda x, y: x}, {"x": range(1000), "y": range(1000)}).all_inputs(most=10)


def test_equal_values_are_told_as_equal_whatever_they_are():
    one = {"a": np.array([1.0, np.nan]), "b": (torch.tensor([1.0, 2.0]), float("nan"))}
    model = build({"b": lambda x: {"a": one["a"] * x, "b": (one["b"][0] * x, float("nan"))}})
    assert model.run({"x": 1})["b"]["a"][0] == 1.0
    with pytest.raises(ValueError, match="mechanism of 'b' tells no parents"):
        build({"b": max})


@pytest.mark.parametrize("answers", [iter(range(100)), iter([(0, np.zeros(2)), (0, np.ones(2))])])
def test_a_mechanism_that_is_not_deterministic_is_refused(answers):
    with pytest.raises(
        ValueError, match=r"'b' is not deterministic: at x=1 it gives .*0.* then .*1"
    ):
        build({"b": lambda x: next(answers)}).run({"x": 1})


def test_a_computed_value_outside_its_domain_is_refused():
    model = CausalModel(
        {"x": range(5)}, {"b": lambda x: 2 * x}, "b", name="m", domains={"b": (0, 2, 4)}
    )
    assert model.run({"x": 2})["b"] == 4
    for make in (
        lambda: model.run({"x": 3}),
        lambda: model.run_batch({"x": [0, 3]}),
        lambda: model.do({"x": 0}, {"b": 6}),
    ):
        with pytest.raises(ValueError, match=r"b=6 is outside its domain \(0, 2, 4\)"):
            make()


def test_computed_values_are_held_not_given():
    model = build({"b": lambda x: x})
    with pytest.raises(ValueError, match=r"\['b'\] are computed, not given"):
        model.run({"x": 1, "b": 0})
    with pytest.raises(ValueError, match="differ in length"):
        model.do_batch({"x": [0, 1]}, {"b": [0]})


def test_values_may_be_arrays():
    shapes = [np.zeros(2), np.ones(2)]
    model = CausalModel(
        {"v": shapes, "w": None},
        {"sum": lambda v, w: v + w, "b": lambda sum: float(sum.max())},
        "b",
    )
    assert (
        model.interchange(
            {"v": shapes[0], "w": 1}, {"sum": {"v": shapes[1], "w": np.array([2.0, 3.0])}}
        )["b"]
        == 4.0
    )
    assert model.run_batch({"v": np.eye(2)[[0]] * 0, "w": np.array([5])})["b"] == [5.0]
    with pytest.raises(ValueError, match="outside its domain"):
        model.run({"v": np.full(2, 2.0), "w": 0})
