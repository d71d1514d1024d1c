"""A task: a causal model, and how its inputs are written for a network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from string import Formatter
from types import MappingProxyType
from typing import Any

import numpy as np

from iit.causal.model import CausalModel

Pools = Mapping[str, Sequence[Any]]
"""What inputs are drawn from: name → entries."""
Columns = dict[str, list[Any]]
"""Inputs of n examples: name → n values."""
Counterfactual = Callable[[np.random.Generator, Pools, Mapping[str, Sequence[Any]]], Columns]
"""(rng, pools, the bases' columns) → the sources' columns."""
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Prompt:
    """A text with marked spans.

    roles: name → (start, stop) in characters of the text.
    """

    text: str
    roles: Mapping[str, tuple[int, int]]


class Task(ABC):
    """What the data room needs to sample prompts and pairs.

    name: of the task. model: the causal model. variables: those that may be aligned.
    rivals: other hypotheses about some of these variables, on the same inputs and with the same
        kind of output.
    pools: what inputs are drawn from, name → entries; a split restricts them.
    splits: the pools of which no entry occurs in two splits, unless one says otherwise.
    test_only: pool → further entries, which the test split alone gets where the pool is divided
        among the splits.
    words: the pools whose entries should be one token after a space.
    vocabulary: the words that its texts and answers are made of, with a space before each, for
        networks trained on it from scratch; empty where the texts are natural language or where it
        writes tensors.
    counterfactuals: the task's own ways to make a source from a base.
    asks: the input that names the variable whose value is the answer; None where there is no such
        input.
    """

    name: str
    model: CausalModel
    variables: tuple[str, ...]
    pools: Mapping[str, tuple[Any, ...]]
    rivals: Mapping[str, CausalModel] = NONE
    splits: tuple[str, ...] = ()
    test_only: Mapping[str, tuple[Any, ...]] = NONE
    words: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    counterfactuals: Mapping[str, Counterfactual] = NONE
    asks: str | None = None

    @abstractmethod
    def draw(self, rng: np.random.Generator, pools: Pools, n: int) -> Columns:
        """n inputs from these pools, as columns. Raises ValueError for a pool with too few
        entries.
        """

    def uses(self, inputs: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The entries of each pool that these inputs are made of; here of the pools that are called
        as an input is.
        """
        return {pool: [inputs[pool]] for pool in self.pools if pool in inputs}

    @abstractmethod
    def write(self, inputs: Mapping[str, Any]) -> Prompt | np.ndarray:
        """The prompt that states these inputs, up to where the answer begins; or a float32
        tensor.
        """

    @abstractmethod
    def answer(self, setting: Mapping[str, Any]) -> str | int | tuple[str, ...]:
        """The setting's answer: text that continues the prompt, a class for tensors. It depends on
        the output's value alone.

        Several texts where each of them is right: then the network is right whose argmax is one of
        them.
        """


def written(template: str, words: Mapping[str, tuple[str, str | None]]) -> Prompt:
    """Fill `{slot}`s of a template and mark where each word went.

    words: slot → (word, role or None). A slot that occurs twice keeps the span of its last
        occurrence.
    """
    text, roles = "", {}
    for before, slot in _parts(template):
        text += before
        if slot is not None:
            word, role = words[slot]
            stop = len(text) + len(word)
            if role is not None:
                roles[role] = (len(text), stop)
            text += word
    return Prompt(text, roles)


@cache
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((before, slot) for before, slot, _, _ in Formatter().parse(template))
