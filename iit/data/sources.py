"""Choosing the source of a pair for its base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.causal import CausalModel, Task
from iit.data.prompts import Prompts, write

STRATEGIES = {
    "random": "any other prompt",
    "balanced": "every value of the variable is as frequent among the sources",
    "minimal": (
        "the base with what the variable depends on taken from another prompt; all else is equal"
    ),
    "exhaustive": "each prompt with each",
}
"""The ways that every task has; the task's own `counterfactuals` are further names."""

TRIES = 20
"""How many prompts `minimal` tries for a base."""
Choose = Callable[[str, Prompts, np.random.Generator], Prompts]
"""(variable, bases, rng) → one source for each base."""


@dataclass(frozen=True)
class Sources:
    """A way to choose a source for each base.

    Arguments:
        choose: (variable, bases, rng) → sources.
        new: whether it writes new prompts. The network has not been asked for their answers yet.
    """

    choose: Choose
    new: bool


def sources(
    task: Task,
    strategy: str,
    prompts: Prompts,
    pools: Mapping[str, Sequence[Any]],
    apart: Sequence[str] = (),
) -> Sources:
    """The way to choose sources that has a name, on the prompts and pools of one split.

    A prompt that is written anew is made of entries of the split's pools. `minimal` keeps to all
    pools, a task's own counterfactuals keep to those that are divided among the splits. A base for
    which no other source is found is its own source, which `paired` then refuses.

    Arguments:
        strategy: a name in `STRATEGIES`, or in the task's `counterfactuals`.
        prompts: the prompts of the split, from which sources are taken.
        pools: the pools of the split, {pool: entries}.
        apart: the pools that are divided among the splits.

    Raises ValueError for an unknown name.
    """
    if strategy in ("random", "exhaustive"):
        return Sources(
            # It may draw the base itself; `paired` then draws again.
            lambda variable, bases, rng: prompts.take(rng.integers(len(prompts), size=len(bases))),
            new=False,
        )
    if strategy == "balanced":
        groups = _groups(task.model, prompts)
        return Sources(
            lambda variable, bases, rng: prompts.take(_balanced(groups(variable), len(bases), rng)),
            new=False,
        )
    if strategy == "minimal":
        inside = _inside(task, pools)

        def minimal(variable: str, bases: Prompts, rng: np.random.Generator) -> Prompts:
            # The inputs that the variable depends on come from another prompt; all else stays the
            # base's.
            from_other = [
                name for name in bases.inputs if name in task.model.ancestors(variable) | {variable}
            ]
            inputs = {name: list(column) for name, column in bases.inputs.items()}
            # Rows whose mixture has not fitted yet.
            left = np.arange(len(bases))
            for _ in range(TRIES):
                others = prompts.take(rng.integers(len(prompts), size=len(left)))
                mixture = {
                    name: others.inputs[name]
                    if name in from_other
                    else [inputs[name][i] for i in left]
                    for name in inputs
                }
                # Not every mixture of two prompts is made of entries of these pools: bool[n].
                ok = inside(mixture)
                for name in from_other:
                    for i, value, fits in zip(left.tolist(), mixture[name], ok, strict=True):
                        if fits:
                            inputs[name][i] = value
                left = left[~ok]
                if not len(left):
                    break
            # A row that has never fitted is its base.
            return write(task, inputs)

        return Sources(minimal, new=True)
    if strategy in task.counterfactuals:
        make, inside = (
            task.counterfactuals[strategy],
            _inside(task, {name: pools[name] for name in apart}),
        )

        def own(variable: str, bases: Prompts, rng: np.random.Generator) -> Prompts:
            counterfactual_inputs = make(rng, pools, bases.inputs)
            ok = inside(counterfactual_inputs)
            # A row that leaves the pools stays as its base is.
            return write(
                task,
                {
                    name: [
                        new if fits else base
                        for new, base, fits in zip(
                            counterfactual_inputs[name], column, ok, strict=True
                        )
                    ]
                    for name, column in bases.inputs.items()
                },
            )

        return Sources(own, new=True)
    raise ValueError(
        f"data.pairs={strategy!r} is none of {[*STRATEGIES, *task.counterfactuals]} (the latter "
        f"are task {task.name!r}'s own)."
    )


def _inside(
    task: Task, pools: Mapping[str, Sequence[Any]]
) -> Callable[[Mapping[str, Sequence[Any]]], np.ndarray]:
    """(inputs in columns) → bool[n], whether each row is made of entries of these pools."""
    allowed = {name: frozenset(entries) for name, entries in pools.items()}

    def inside(inputs: Mapping[str, Sequence[Any]]) -> np.ndarray:
        rows = (dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True))
        return np.array(
            [
                all(
                    allowed[p].issuperset(used)
                    for p, used in task.uses(row).items()
                    if p in allowed
                )
                for row in rows
            ]
        )

    return inside


def _groups(model: CausalModel, prompts: Prompts) -> Callable[[str], list[np.ndarray]]:
    """variable → [the rows that have a value, for each of its values], computed once a variable."""
    by_variable: dict[str, list[np.ndarray]] = {}

    def groups(variable: str) -> list[np.ndarray]:
        if variable not in by_variable:
            values = [repr(value) for value in model.run_batch(prompts.inputs)[variable]]
            value_numbers = np.unique(values, return_inverse=True)[1]
            by_variable[variable] = [
                np.flatnonzero(value_numbers == number) for number in range(value_numbers.max() + 1)
            ]
        return by_variable[variable]

    return groups


def _balanced(groups: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows, int[n], drawn so that each group is as frequent as the others."""
    sizes = np.array([len(rows) for rows in groups])
    # A value first, then a prompt that has it: each value is as frequent as the others.
    group = rng.integers(len(groups), size=n)
    inside = (rng.random(n) * sizes[group]).astype(int)
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    return np.concatenate(groups)[starts[group] + inside]
