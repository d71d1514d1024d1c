import pytest

from iit.causal import Prompt
from iit.tasks.template import fill


def test_slots_are_filled_and_marked():
    words = {"a": "one", "b": "two", "c": "three"}
    assert fill("{a}, {b} and {c}.", words, {"a": "first"}) == Prompt(
        "one, two and three.", {"first": (0, 3), "b": (5, 8), "c": (13, 18)}
    )
    assert fill("no slots", words) == Prompt("no slots", {})


def test_a_role_is_where_its_slot_comes_last():
    assert fill("{a} {b} {a}", {"a": "x", "b": "y"}).roles == {"a": (4, 5), "b": (2, 3)}


def test_a_slot_without_a_word_is_an_error():
    with pytest.raises(KeyError, match="b"):
        fill("{a} {b}", {"a": "x"})
