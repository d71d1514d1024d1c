"""A task: a causal model, and how its inputs are written for a network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iit.causal.model import CausalModel

Pools = Mapping[str, Sequence[Any]]
"""{pool: entries}: what inputs are drawn from, such as names, objects and templates."""
Inputs = Mapping[str, Any]
"""One value for each input of the causal model (`iit.batch.Inputs` are those of a network)."""
Columns = Mapping[str, list[Any]]
"""The inputs of n examples: name → n values."""
Counterfactual = Callable[[np.random.Generator, Pools, Columns], Columns]
"""(rng, pools, the bases' columns) → the sources' columns: one source for each base."""


@dataclass(frozen=True)
class Prompt:
    """A text with roles: named spans, such as `s2` for the second mention of the subject.

    Arguments:
        text: the text. It ends where the answer begins.
        roles: {role: (start, stop)}, in characters of the text.
    """

    text: str
    roles: Mapping[str, tuple[int, int]]


def by_name(inputs: Inputs, *names: str) -> dict[str, list[Any]]:
    """{input: [its value]}, for inputs that are entries of the pools of their names.

    Arguments:
        names: the inputs; by default all.
    """
    return {name: [inputs[name]] for name in names or inputs}


# Tasks are compared by identity. A pool may hold 100,000 entries, too many to print.
@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """A causal model, its rivals, and how inputs are drawn, written and answered.

    Arguments:
        name: of the task.
        model: the causal model.
        variables: the variables that may be aligned.
        pools: {pool: the entries that inputs are drawn from}. In a split some pools hold only a
            part of their entries.
        draw: (rng, pools, n) → n inputs, as columns. It raises ValueError for a pool with too few
            entries.
        write: inputs → a prompt that ends where the answer begins, or a float32 tensor.
        answer: setting → the text that continues the prompt, or for a tensor the class. It depends
            on the output's value alone. It may be several texts, each of which is right: the
            network is right when its argmax is one of them.
        uses: inputs → {pool: the entries that the inputs are made of}. By default each input is an
            entry of the pool that has its name.
        rivals: {rival: another hypothesis about some of the variables}. Rivals have the same
            inputs, and outputs of the same kind.
        splits: the pools that are divided among train, validation and test. `Pairs.sample` may name
            others.
        test_only: {pool: further entries}. Only the test split gets them, and only where the pool
            is divided.
        words: the pools whose entries should be one token after a space.
        vocabulary: all words of the texts and answers, for a network that is trained on them from
            scratch. It is empty where the texts are natural language, and where there are none.
        counterfactuals: {name: the task's own way to make sources from bases}.
        alternatives: the possible answers, for score=forced. A prompt lists those that it holds as
            words, or all where it holds none. Empty where a task does not say.
        asks: the input that says which variable a prompt asks for, where prompts of the task ask
            for different ones; else None. The output is the value of that variable.
        meanings: {variable or role: what it holds, in words}.
        stem: an example of what stands before answers, where that is no word and no space: a
            conversation. The answers' words should be one token there, too.
    """

    name: str
    model: CausalModel
    variables: tuple[str, ...]
    pools: Mapping[str, tuple[Any, ...]]
    draw: Callable[[np.random.Generator, Pools, int], Columns]
    write: Callable[[Inputs], Prompt | np.ndarray]
    answer: Callable[[Mapping[str, Any]], str | int | tuple[str, ...]]
    uses: Callable[[Inputs], dict[str, list[Any]]] = by_name
    rivals: Mapping[str, CausalModel] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    test_only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    counterfactuals: Mapping[str, Counterfactual] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    asks: str | None = None
    stem: str | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)
