"""Pairing: bases with sources, labelled by interchange in the causal model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.causal import CausalModel, Task
from iit.causal.model import same
from iit.data.prompts import Answers, Prompts, answers
from iit.data.sources import Sources

ROUNDS = 200
STAND_IN = 3


@dataclass(frozen=True)
class Wanted:
    """What pairs are to be like.

    variables: whose values are interchanged. together: all of them in every pair, each from its own
        source; else one of them in each pair.
    changing_share: share of pairs whose label differs from the base's own answer; None takes them
        as they come.
    separate: rivals whose labels must all differ from the label.
    natural: whether natural counterparts are going to be looked for. kinds: whether anybody asks
        for the pairs' kinds.
    """

    variables: tuple[str, ...]
    together: bool = False
    changing_share: float | None = 0.5
    separate: tuple[str, ...] = ()
    natural: bool = False
    kinds: bool = True

    @property
    def patterns(self) -> list[tuple[str, ...]]:
        """Which variables a pair may interchange."""
        return (
            [self.variables]
            if self.together or not self.variables
            else [(variable,) for variable in self.variables]
        )


@dataclass
class Paired:
    """Labelled pairs in columns, each as long as the bases.

    sources, source_answers: variable → the prompts its value is taken from, and their answers; None
        in a pair that leaves it alone.
    labels: what the causal model answers after the interchange. rivals: rival → what that one does;
        None where it lacks a variable.
    kinds: which of the task's variables have another value in a source than in the base, joined by
        "+" ("none" where none has); None where nobody asks.
    source_values: variable → its value in the source; None where nobody asks.
    """

    bases: Prompts
    sources: dict[str, list[Any]]
    source_answers: dict[str, list[Any]]
    labels: list[Any]
    rivals: dict[str, list[Any]]
    kinds: list[Any] | None = None
    source_values: dict[str, list[Any]] | None = None

    @classmethod
    def empty(cls, bases: Prompts, wanted: Wanted, rivals: Iterable[str]) -> "Paired":
        """Pairs without sources and labels yet."""
        none = [None] * len(bases)
        sources, answers, values = ({v: [*none] for v in wanted.variables} for _ in range(3))
        made = cls(
            bases,
            sources,
            answers,
            [*none],
            {r: [*none] for r in rivals},
            [*none] if wanted.kinds else None,
        )
        made.source_values = values if wanted.natural else None
        return made

    def take(self, rows: Sequence[int] | np.ndarray) -> "Paired":
        """These pairs, in this order."""
        index = [int(i) for i in rows]

        def columns(of: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            return {name: [column[i] for i in index] for name, column in of.items()}

        labels = [self.labels[i] for i in index]
        kinds = None if self.kinds is None else [self.kinds[i] for i in index]
        values = None if self.source_values is None else columns(self.source_values)
        return Paired(
            self.bases.take(index),
            columns(self.sources),
            columns(self.source_answers),
            labels,
            columns(self.rivals),
            kinds,
            values,
        )

    @property
    def changing(self) -> np.ndarray:
        """bool[n]: whether the label differs from the base's own answer."""
        return _differ(self.labels, self.bases.answers)


def paired(
    task: Task,
    wanted: Wanted,
    bases: Prompts,
    sources: Sources,
    right: Answers | None,
    *,
    rng: np.random.Generator,
) -> Paired:
    """One labelled pair for each base, its source chosen anew until the pair is as it is wanted.

    Where some bases have no changing (or no other) pair, others stand in for them, as far as there
    are such.

    right: whether the network answers prompts that the sources' way writes anew; None does not ask.
    Others stand in for bases that find no source at all, too; raises ValueError when these are more
    than half.
    """
    n = len(bases)
    pattern = rng.permutation(np.arange(n) % len(wanted.patterns))
    found, asked = Paired.empty(bases, wanted, task.rivals), {}

    def fill(left: np.ndarray, changing: bool | None) -> np.ndarray:
        """Choose sources for these rows until their pairs are changing, or not; returns those that
        seem not to have any.
        """
        for number in range(ROUNDS):
            before = len(left)
            for index, variables in enumerate(wanted.patterns):
                part = left[pattern[left] == index]
                if not len(part):
                    continue
                here = bases.take(part)
                chosen = {variable: sources.choose(variable, here, rng) for variable in variables}
                labels = label(task, task.model, here, chosen)
                ok = np.ones(len(part), dtype=bool)
                for name in wanted.separate:
                    ok &= _differ(labels, label(task, task.rivals[name], here, chosen))
                for prompts in chosen.values():
                    ok &= _differ(prompts.keys, here.keys)
                if changing is not None:
                    ok &= _differ(labels, here.answers) == changing
                if sources.new and right is not None:
                    ok &= _answered(right, chosen, ok, asked)
                _put(found, task, part, ok, chosen, labels)
                left = np.setdiff1d(left, part[ok], assume_unique=True)
            hopeless = changing is not None and number >= 8 and before - len(left) <= before // 100
            if not len(left) or hopeless:
                break
        return left

    rest = rng.permutation(n)
    if wanted.changing_share is not None and wanted.variables:
        todo, rest = np.split(rest, [round(n * wanted.changing_share)])
        stuck = rest[:0]
        while len(todo):
            none = fill(todo, True)
            todo, rest = np.split(rest, [len(none)])
            stuck = np.concatenate([stuck, none])
        rest = fill(np.concatenate([stuck, rest]), False)
    rest = fill(rest, None)
    for _ in range(STAND_IN):
        if not 0 < len(rest) <= n // 2:
            break
        index = np.arange(n)
        index[rest] = rng.choice(np.setdiff1d(index, rest), size=len(rest))
        bases, pattern = bases.take(index), pattern[index]
        # `fill` reads the new bases where it asks what rivals say and which values differ.
        found.bases = bases
        rest = fill(rest, None)
    if len(rest):
        apart = f" that separates {list(wanted.separate)}" if wanted.separate else ""
        raise ValueError(
            f"Task {task.name!r}: no pair{apart} in {ROUNDS} draws for {len(rest)} of {n} bases, "
            "such as "
            f"{bases.given[rest[0]]!r}. Take other data.pairs, or add words to the pools."
        )
    return found


def each_with_each(task: Task, wanted: Wanted, prompts: Prompts) -> Paired:
    """Every ordered pair of different prompts, all variables from the same source; rivals in
    `separate` are minded.

    Raises ValueError when no pair separates them.
    """
    first, second = (index.ravel() for index in np.indices((len(prompts), len(prompts))))
    apart = first != second
    first, second = (np.tile(index[apart], len(wanted.patterns)) for index in (first, second))
    pattern = np.repeat(np.arange(len(wanted.patterns)), int(apart.sum()))
    found = Paired.empty(prompts.take(first), wanted, task.rivals)
    kept = np.zeros(len(first), dtype=bool)
    for number, variables in enumerate(wanted.patterns):
        part = np.flatnonzero(pattern == number)
        chosen = dict.fromkeys(variables, prompts.take(second[part]))
        bases = found.bases.take(part)
        labels = label(task, task.model, bases, chosen)
        kept[part] = True
        for name in wanted.separate:
            kept[part] &= _differ(labels, label(task, task.rivals[name], bases, chosen))
        _put(found, task, part, kept[part], chosen, labels)
    if not kept.any():
        raise ValueError(
            f"Task {task.name!r}: none of the {len(first)} pairs of {len(prompts)} prompts "
            f"separates {wanted.separate}."
        )
    return found.take(np.flatnonzero(kept))


def _put(
    found: Paired,
    task: Task,
    part: np.ndarray,
    ok: np.ndarray,
    chosen: Mapping[str, Prompts],
    labels: list[Any],
) -> None:
    """Enter those pairs of `part` that are as wanted, with what the rivals say of them that have
    these variables.
    """
    inside = np.flatnonzero(ok)
    rows = part[inside].tolist()
    bases, sources = (
        found.bases.take(rows),
        {variable: prompts.take(inside) for variable, prompts in chosen.items()},
    )
    into = [(found.labels, [labels[j] for j in inside.tolist()])]
    if found.kinds is not None:
        into.append((found.kinds, _kinds(task, bases, list(sources.values()))))
    for name, rival in task.rivals.items():
        if set(chosen) <= set(rival.variables):
            into.append((found.rivals[name], label(task, rival, bases, sources)))
    for variable, prompts in sources.items():
        into += [
            (found.sources[variable], prompts.written),
            (found.source_answers[variable], prompts.answers),
        ]
        if found.source_values is not None:
            into.append(
                (found.source_values[variable], task.model.run_batch(prompts.inputs)[variable])
            )
    for column, values in into:
        for i, value in zip(rows, values, strict=True):
            column[i] = value


def label(
    task: Task, model: CausalModel, bases: Prompts, sources: Mapping[str, Prompts]
) -> list[Any]:
    """What a causal model answers after each variable took its source's value."""
    settings = model.interchange_batch(
        bases.inputs, {v: source.inputs for v, source in sources.items()}
    )
    return answers(task, settings, model.output)


def _kinds(task: Task, bases: Prompts, sources: Sequence[Prompts]) -> list[str]:
    """Which of the task's variables differ between each base and its sources."""
    own = task.model.run_batch(bases.inputs)
    others = [task.model.run_batch(prompts.inputs) for prompts in sources]
    differ = {
        v: np.array(
            [any(not same(own[v][i], other[v][i]) for other in others) for i in range(len(bases))]
        )
        for v in task.variables
    }
    return [
        "+".join(v for v, here in differ.items() if here[i]) or "none" for i in range(len(bases))
    ]


def _answered(
    right: Answers, chosen: Mapping[str, Prompts], ok: np.ndarray, asked: dict[Any, bool]
) -> np.ndarray:
    """Whether the network answers every new source rightly; each is asked once, and only where the
    pair fits otherwise.
    """
    found = ok.copy()
    for prompts in chosen.values():
        keys = prompts.keys
        new = list({keys[j]: int(j) for j in np.flatnonzero(ok) if keys[j] not in asked}.values())
        if new:
            part = prompts.take(new)
            asked.update(zip(part.keys, map(bool, right(part.given, part.answers)), strict=True))
        found &= np.array([asked.get(key, False) for key in keys])
    return found


def _differ(one: Sequence[Any], other: Sequence[Any]) -> np.ndarray:
    return np.array([a != b for a, b in zip(one, other, strict=True)], dtype=bool)
