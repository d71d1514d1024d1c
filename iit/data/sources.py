"""Choosing the source of a pair for its base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from iit.causal import Columns, Pools, Task
from iit.data.prompts import Prompts, as_rows, write

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


@dataclass(frozen=True)
class Sources:
    """A way to choose a source for each base, on the prompts and pools of one split.

    A prompt that is written anew is made of entries of the split's pools. `minimal` keeps to all
    pools, a task's own counterfactuals keep to those that are divided among the splits. A base for
    which no other source is found is its own source, which `draw_pairs` then refuses.

    Arguments:
        task: the task.
        strategy: random | balanced | minimal, or a name in the task's `counterfactuals`. Exhaustive
            pairs are made by `each_with_each`.
        prompts: the prompts of the split, from which sources are taken.
        pools: the pools of the split, {pool: entries}.
        divided: the pools that are divided among the splits.
    """

    task: Task
    strategy: str
    prompts: Prompts
    pools: Pools
    divided: Sequence[str] = ()

    @property
    def new(self) -> bool:
        """Whether prompts are written that the network has not been asked for yet."""
        return self.strategy not in ("random", "balanced")

    def choose(self, variable: str, bases: Prompts, rng: np.random.Generator) -> Prompts:
        """One source for each base."""
        if self.strategy == "random":
            # It may draw the base itself; `draw_pairs` then draws again.
            return self.prompts.take(rng.integers(len(self.prompts), size=len(bases)))
        if self.strategy == "balanced":
            return self.prompts.take(self._balanced(variable, len(bases), rng))
        inputs = {name: list(column) for name, column in bases.inputs.items()}
        # Rows whose inputs have not fitted yet.
        left = np.arange(len(bases))
        for _ in range(TRIES if self.strategy == "minimal" else 1):
            candidates = self._candidates(variable, bases.take(left), rng)
            allowed = np.array(list(map(self._is_allowed, as_rows(candidates))))
            for name, column in inputs.items():
                for i in np.flatnonzero(allowed):
                    column[left[i]] = candidates[name][i]
            left = left[~allowed]
            if not len(left):
                break
        # A row that has never fitted is its base.
        return write(self.task, inputs)

    def _balanced(self, variable: str, n: int, rng: np.random.Generator) -> np.ndarray:
        """n rows of the prompts, drawn so that each value is as frequent as the others."""
        values = list(map(repr, self.task.model.run_batch(self.prompts.inputs)[variable]))
        _, numbers, sizes = np.unique(values, return_inverse=True, return_counts=True)
        # A value first, then a prompt that has it.
        value = rng.integers(len(sizes), size=n)
        place = (rng.random(n) * sizes[value]).astype(int)
        starts = sizes.cumsum() - sizes
        # Sorted by value: the rows of each value stand together.
        return numbers.argsort(kind="stable")[starts[value] + place]

    def _candidates(self, variable: str, bases: Prompts, rng: np.random.Generator) -> Columns:
        """The inputs of a new prompt for each base, in columns."""
        if self.strategy != "minimal":
            return self.task.counterfactuals[self.strategy](rng, self.pools, bases.inputs)
        # What the variable depends on comes from another prompt; all else stays the base's.
        others = self.prompts.take(rng.integers(len(self.prompts), size=len(bases)))
        causes = self.task.model.ancestors(variable) | {variable}
        inputs = dict(bases.inputs)
        for name in causes.intersection(inputs):
            inputs[name] = others.inputs[name]
        return inputs

    @cached_property
    def _entries(self) -> dict[str, frozenset[Any]]:
        """{pool: the entries that a new prompt may have}."""
        names = self.pools if self.strategy == "minimal" else self.divided
        return {name: frozenset(self.pools[name]) for name in names}

    def _is_allowed(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a prompt is made of entries of the pools. Not every mixture of two prompts is."""
        uses = self.task.uses(inputs)
        return all(
            entries.issuperset(uses.get(name, ())) for name, entries in self._entries.items()
        )
