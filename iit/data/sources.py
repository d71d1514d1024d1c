"""How the source of a pair is chosen for its base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.causal import CausalModel, Task
from iit.data.prompts import Prompts, write

STRATEGIES = {
    "random": "any other prompt",
    "balanced": "every value of the variable is as frequent among the sources",
    "minimal": "the base with what the variable depends on taken from another prompt; all else is equal",
    "exhaustive": "each prompt with each",
}
"""The ways that every task has; a task's own `counterfactuals` are further names."""

Choose = Callable[[str, Prompts, np.random.Generator], Prompts]
"""(variable, bases, rng) → one source a base."""


@dataclass(frozen=True)
class Sources:
    """A way to choose sources. new: whether it writes prompts that the network has not been asked yet."""

    choose: Choose
    new: bool


def sources(task: Task, strategy: str, prompts: Prompts, pools: Mapping[str, Sequence[Any]]) -> Sources:
    """The way of that name, on these prompts and pools. Raises ValueError for an unknown name."""
    if strategy in ("random", "exhaustive"):
        return Sources(lambda variable, bases, rng: prompts.take(rng.integers(len(prompts), size=len(bases))), new=False)
    if strategy == "balanced":
        groups = _groups(task.model, prompts)
        return Sources(lambda variable, bases, rng: prompts.take(_balanced(groups(variable), len(bases), rng)), new=False)
    if strategy == "minimal":

        def minimal(variable: str, bases: Prompts, rng: np.random.Generator) -> Prompts:
            others = prompts.take(rng.integers(len(prompts), size=len(bases)))
            from_other = task.model.ancestors(variable) | {variable}
            return write(task, {n: others.inputs[n] if n in from_other else bases.inputs[n] for n in bases.inputs})

        return Sources(minimal, new=True)
    if strategy in task.counterfactuals:
        make = task.counterfactuals[strategy]
        return Sources(lambda variable, bases, rng: write(task, make(rng, pools, bases.inputs)), new=True)
    raise ValueError(
        f"data.pairs={strategy!r} is none of {[*STRATEGIES, *task.counterfactuals]} (the latter are task {task.name!r}'s own)."
    )


def _groups(model: CausalModel, prompts: Prompts) -> Callable[[str], list[np.ndarray]]:
    """Variable → for each of its values the rows that have it."""
    found: dict[str, list[np.ndarray]] = {}

    def groups(variable: str) -> list[np.ndarray]:
        if variable not in found:
            values = [repr(value) for value in model.run_batch(prompts.inputs)[variable]]
            of = np.unique(values, return_inverse=True)[1]
            found[variable] = [np.flatnonzero(of == number) for number in range(of.max() + 1)]
        return found[variable]

    return groups


def _balanced(groups: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    sizes = np.array([len(rows) for rows in groups])
    group = rng.integers(len(groups), size=n)
    inside = (rng.random(n) * sizes[group]).astype(int)
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    return np.concatenate(groups)[starts[group] + inside]
