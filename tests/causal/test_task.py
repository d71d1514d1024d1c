import pytest

from iit.causal.task import Prompt, written


def test_slots_are_filled_and_marked():
    words = {"a": ("one", "first"), "b": ("two", None), "c": ("three", "third")}
    assert written("{a}, {b} and {c}.", words) == Prompt(
        "one, two and three.", {"first": (0, 3), "third": (13, 18)}
    )
    assert written("no slots", {}) == Prompt("no slots", {})


def test_a_role_is_where_its_slot_comes_last():
    assert written("{a} {b} {a}", {"a": ("x", "role"), "b": ("y", None)}).roles == {"role": (4, 5)}


def test_a_slot_without_a_word_is_an_error():
    with pytest.raises(KeyError, match="b"):
        written("{a} {b}", {"a": ("x", None)})
