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
        return cls(
            bases,
            sources,
            answers,
            [*none],
            {r: [*none] for r in rivals},
            [*none] if wanted.kinds else None,
            values if wanted.natural else None,
        )

    @property
    def changing(self) -> np.ndarray:
        """Whether the label differs from the base's own answer, bool[n]."""
        return _differ(self.labels, self.bases.answers)

    @property
    def separating(self) -> dict[str, int]:
        """{rival: number of pairs on which its label differs from the causal model's}.

        Only rivals count that have a label for every pair.
        """
        return {
            name: sum(rival != label for rival, label in zip(labels, self.labels, strict=True))
            for name, labels in self.rivals.items()
            if all(rival is not None for rival in labels)
        }


def base_rows(task: Task, wanted: Wanted, prompts: Prompts, n: int) -> np.ndarray:
    """The rows of the prompts that are bases, int[n].

    Each prompt is as often a base as the others. Where a task asks, this holds in two groups: two
    thirds of the bases ask for a variable that is wanted, one third does not. Half of all pairs can
    then change, and in the others the value can stay.
    """
    rows = np.arange(len(prompts))
    if task.asks is not None:
        asking = np.array([name in wanted.variables for name in prompts.inputs[task.asks]])
        if 0 < asking.sum() < len(prompts):
            return np.concatenate(
                [np.resize(rows[asking], n - n // 3), np.resize(rows[~asking], n // 3)]
            )
    return np.resize(rows, n)


def n_prompts(wanted: Wanted, strategy: str, n: int) -> int:
    """How many prompts make `n` pairs.

    As many as pairs; where each is paired with each, the most that do not make more pairs than `n`.
    """
    if strategy != "exhaustive":
        return n
    # p prompts make p · (p − 1) pairs for each pattern; p is the largest number that stays within
    # n.
    return max(2, int((1 + np.sqrt(1 + 4 * (n // len(wanted.patterns)))) // 2))


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
    # Rows of the prompts, off the diagonal of first × second.
    first, second = np.nonzero(~np.eye(len(prompts), dtype=bool))
    bases, sources = prompts.take(first), prompts.take(second)
    # All pairs once for each pattern of variables.
    parts = []
    for variables in wanted.patterns:
        chosen = dict.fromkeys(variables, sources)
        labels = label(task, task.model, bases, chosen)
        ok = np.ones(len(first), dtype=bool)
        for name in wanted.separate:
            ok &= _differ(labels, label(task, task.rivals[name], bases, chosen))
        parts.append((ok, chosen, labels))
    rows = np.concatenate([np.flatnonzero(ok) for ok, _, _ in parts])
    if not len(rows):
        raise ValueError(
            f"Task {task.name!r}: none of the {len(first) * len(parts)} pairs of {len(prompts)} "
            f"prompts separates {wanted.separate}."
        )
    pairs, start = Paired.empty(bases.take(rows), wanted, task.rivals), 0
    for ok, chosen, labels in parts:
        # Each pair that is left stands behind those before it.
        _put(pairs, task, start + ok.cumsum() - 1, ok, chosen, labels)
        start += ok.sum()
    return pairs


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
    bases = found.bases.take(rows)
    sources = {variable: prompts.take(inside) for variable, prompts in chosen.items()}
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
    kinds = []
    for i in range(len(bases)):
        names = [
            v
            for v in task.variables
            if any(not same(base_settings[v][i], settings[v][i]) for settings in source_settings)
        ]
        kinds.append("+".join(names) or "none")
    return kinds


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
