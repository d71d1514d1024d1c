"""Pairing: bases with sources, labelled by interchange in the causal model.

In a pair, the variable of the base takes the value that it has in the source. The label is what the
causal model then answers. A pair is changing where the label differs from the base's own answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.causal import CausalModel, Task
from iit.causal.model import same
from iit.data.prompts import Answers, Prompts, answers
from iit.data.sources import Sources

ROUNDS = 200
"""How often sources are drawn anew for bases whose pairs do not fit."""
STAND_IN = 3
"""How often other bases stand in for those that find no source."""


@dataclass(frozen=True)
class Wanted:
    """What pairs are to be like.

    Arguments:
        variables: the variables whose values are interchanged.
        together: whether every pair interchanges all of them, each from a source of its own.
            Otherwise each pair interchanges one of them.
        changing_share: the share of changing pairs; None takes pairs as they come.
        separate: rivals whose labels must all differ from the label.
        natural: whether natural counterparts will be looked for (see `iit.data.natural`). They need
            the variables' values in the sources.
        kinds: whether the pairs' kinds are wanted (see `Paired`).
    """

    variables: tuple[str, ...]
    together: bool = False
    changing_share: float | None = 0.5
    separate: tuple[str, ...] = ()
    natural: bool = False
    kinds: bool = True

    @property
    def patterns(self) -> list[tuple[str, ...]]:
        """The sets of variables that a pair may interchange."""
        return (
            [self.variables]
            if self.together or not self.variables
            else [(variable,) for variable in self.variables]
        )


@dataclass
class Paired:
    """Labelled pairs in columns, each as long as the bases.

    Arguments:
        bases: the prompts that are edited.
        sources: {variable: the prompt that its value is taken from, in each pair}. It is None in a
            pair that leaves the variable alone.
        source_answers: {variable: the source's own answer}, likewise.
        labels: what the causal model answers after the interchange.
        rivals: {rival: what that causal model answers}. It is None where the rival lacks a
            variable.
        kinds: which of the task's variables have another value in a source than in the base, joined
            by "+" ("none" where none has). The whole column is None where it is not wanted.
        source_values: {variable: its value in the source}; None where it is not wanted.
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
        """Pairs that have no sources and labels yet."""
        none = [None] * len(bases)
        sources, answers, values = ({v: [*none] for v in wanted.variables} for _ in range(3))
        pairs = cls(
            bases,
            sources,
            answers,
            [*none],
            {r: [*none] for r in rivals},
            [*none] if wanted.kinds else None,
        )
        pairs.source_values = values if wanted.natural else None
        return pairs

    def take(self, rows: Sequence[int] | np.ndarray) -> "Paired":
        """The pairs of these rows, in this order."""
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
        """Whether the label differs from the base's own answer, bool[n]."""
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
    """One labelled pair for each base; its source is drawn anew until the pair is as wanted.

    Some bases have no changing pair, or no unchanging one. As far as possible another base gets one
    in their place. A base that finds no source at all is replaced by another base.

    Arguments:
        bases: the prompts that are edited, one a pair.
        sources: the way to choose sources.
        right: asks the network whether it answers new prompts rightly; None does not ask.
        rng: of all draws.

    Raises:
        ValueError: more than half of the bases find no source; or some still have none after they
            were replaced by others.
    """
    n = len(bases)
    # Which variables each pair interchanges, as an index of `wanted.patterns`: int[n], evenly
    # spread.
    pattern = rng.permutation(np.arange(n) % len(wanted.patterns))
    # What the network has been asked: {prompt's key: answered rightly}.
    pairs, asked = Paired.empty(bases, wanted, task.rivals), {}

    def fill(left: np.ndarray, changing: bool | None) -> np.ndarray:
        """Choose sources for some rows until their pairs are changing (or not).

        Returns the rows that seem to have no such pair.
        """
        for number in range(ROUNDS):
            before = len(left)
            for index, variables in enumerate(wanted.patterns):
                part = left[pattern[left] == index]
                if not len(part):
                    continue
                part_bases = bases.take(part)
                chosen = {
                    variable: sources.choose(variable, part_bases, rng) for variable in variables
                }
                labels = label(task, task.model, part_bases, chosen)
                ok = np.ones(len(part), dtype=bool)
                for name in wanted.separate:
                    ok &= _differ(labels, label(task, task.rivals[name], part_bases, chosen))
                # A base is no source of itself.
                for prompts in chosen.values():
                    ok &= _differ(prompts.keys, part_bases.keys)
                if changing is not None:
                    ok &= _differ(labels, part_bases.answers) == changing
                # Asked last: only about pairs that fit otherwise.
                if sources.new and right is not None:
                    ok &= _answered(right, chosen, ok, asked)
                _put(pairs, task, part, ok, chosen, labels)
                left = np.setdiff1d(left, part[ok], assume_unique=True)
            # After 8 rounds, a round in which at most 1% of the rows find a pair is the last one.
            hopeless = changing is not None and number >= 8 and before - len(left) <= before // 100
            if not len(left) or hopeless:
                break
        return left

    rest = rng.permutation(n)
    if wanted.changing_share is not None and wanted.variables:
        # `todo` are rows that are to get changing pairs, `rest` the others. For each row that finds
        # none, a row of the others tries.
        todo, rest = np.split(rest, [round(n * wanted.changing_share)])
        stuck = rest[:0]
        while len(todo):
            failed = fill(todo, True)
            todo, rest = np.split(rest, [len(failed)])
            stuck = np.concatenate([stuck, failed])
        rest = fill(np.concatenate([stuck, rest]), False)
    # What is left may be either.
    rest = fill(rest, None)
    for _ in range(STAND_IN):
        if not 0 < len(rest) <= n // 2:
            break
        # Bases without a source are replaced by bases that found one. `fill` reads `bases` and
        # `pattern` of this function, so they are rebound before it runs.
        index = np.arange(n)
        index[rest] = rng.choice(np.setdiff1d(index, rest), size=len(rest))
        bases, pattern = bases.take(index), pattern[index]
        # `fill` reads the new bases where it asks what rivals say and which values differ.
        pairs.bases = bases
        rest = fill(rest, None)
    if len(rest):
        apart = f" that separates {list(wanted.separate)}" if wanted.separate else ""
        raise ValueError(
            f"Task {task.name!r}: no pair{apart} in {ROUNDS} draws for {len(rest)} of {n} bases, "
            f"such as {bases.given[rest[0]]!r}. Take other data.pairs, or add words to the pools."
        )
    return pairs


def each_with_each(task: Task, wanted: Wanted, prompts: Prompts) -> Paired:
    """Every ordered pair of different prompts; all variables take the same source.

    Pairs on which a rival in `separate` agrees are left out. Raises ValueError when no pair is
    left.
    """
    first, second = (index.ravel() for index in np.indices((len(prompts), len(prompts))))
    apart = first != second
    # All pairs once for each pattern of variables.
    first, second = (np.tile(index[apart], len(wanted.patterns)) for index in (first, second))
    pattern = np.repeat(np.arange(len(wanted.patterns)), int(apart.sum()))
    pairs = Paired.empty(prompts.take(first), wanted, task.rivals)
    separated = np.zeros(len(first), dtype=bool)
    for number, variables in enumerate(wanted.patterns):
        part = np.flatnonzero(pattern == number)
        chosen = dict.fromkeys(variables, prompts.take(second[part]))
        bases = pairs.bases.take(part)
        labels = label(task, task.model, bases, chosen)
        separated[part] = True
        for name in wanted.separate:
            separated[part] &= _differ(labels, label(task, task.rivals[name], bases, chosen))
        _put(pairs, task, part, separated[part], chosen, labels)
    if not separated.any():
        raise ValueError(
            f"Task {task.name!r}: none of the {len(first)} pairs of {len(prompts)} prompts "
            f"separates {wanted.separate}."
        )
    return pairs.take(np.flatnonzero(separated))


def _put(
    found: Paired,
    task: Task,
    part: np.ndarray,
    ok: np.ndarray,
    chosen: Mapping[str, Prompts],
    labels: list[Any],
) -> None:
    """Enter those pairs of `part` that are as wanted into the columns of all pairs.

    Arguments:
        found: all pairs.
        part: rows of `found`.
        ok: bool[len(part)], which pairs are as wanted.
        chosen: {variable: the sources of these rows}.
        labels: the rows' labels.
    """
    inside = np.flatnonzero(ok)
    rows = part[inside].tolist()
    bases, sources = (
        found.bases.take(rows),
        {variable: prompts.take(inside) for variable, prompts in chosen.items()},
    )
    # (column of `found`, its values in `rows`)
    into = [(found.labels, [labels[j] for j in inside.tolist()])]
    if found.kinds is not None:
        into.append((found.kinds, _kinds(task, bases, list(sources.values()))))
    for name, rival in task.rivals.items():
        # A rival that lacks one of these variables says nothing of these pairs.
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
    """What a causal model answers after each variable takes its source's value."""
    settings = model.interchange_batch(
        bases.inputs, {v: source.inputs for v, source in sources.items()}
    )
    return answers(task, settings, model.output)


def _kinds(task: Task, bases: Prompts, sources: Sequence[Prompts]) -> list[str]:
    """Which of the task's variables differ between each base and its sources, joined by "+"."""
    base_settings = task.model.run_batch(bases.inputs)
    source_settings = [task.model.run_batch(prompts.inputs) for prompts in sources]
    differ = {
        v: np.array(
            [
                any(not same(base_settings[v][i], settings[v][i]) for settings in source_settings)
                for i in range(len(bases))
            ]
        )
        for v in task.variables
    }
    return [
        "+".join(v for v, differs in differ.items() if differs[i]) or "none"
        for i in range(len(bases))
    ]


def _answered(
    right: Answers, chosen: Mapping[str, Prompts], ok: np.ndarray, asked: dict[Any, bool]
) -> np.ndarray:
    """Whether the network answers every new source rightly, bool[n].

    Each source is asked for once, and only where its pair fits otherwise.
    """
    answered = ok.copy()
    for prompts in chosen.values():
        keys = prompts.keys
        new = list({keys[j]: int(j) for j in np.flatnonzero(ok) if keys[j] not in asked}.values())
        if new:
            part = prompts.take(new)
            asked.update(zip(part.keys, map(bool, right(part.given, part.answers)), strict=True))
        answered &= np.array([asked.get(key, False) for key in keys])
    return answered


def _differ(one: Sequence[Any], other: Sequence[Any]) -> np.ndarray:
    """Whether the entries of two columns differ, bool[n]."""
    return np.array([a != b for a, b in zip(one, other, strict=True)], dtype=bool)
