"""Pairing: bases with sources, labelled by interchange in the causal model.

In a pair, the variable of the base takes the value that it has in the source. The label is what the
causal model then answers. A pair is changing where the label differs from the base's own answer.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import ne
from typing import Any

import numpy as np

from iit.causal import CausalModel, Columns, Task
from iit.causal.model import same
from iit.data.prompts import AnswersRightly, Prompts, answers, as_rows, at
from iit.data.sources import Sources
from iit.data.table import columns_of, source_columns

ROUNDS = 200
"""How often sources are drawn anew for bases whose pairs do not fit."""
STAND_IN = 3
"""How often other bases stand in for those that find no source."""
SourcedRows = tuple[np.ndarray, Mapping[str, Prompts]]
"""Rows of the bases, and {variable: their sources}."""


@dataclass(frozen=True)
class Wanted:
    """What pairs are to be like.

    Arguments:
        variables: the variables whose values are interchanged.
        together: whether every pair interchanges all of them, each from a source of its own.
            Otherwise each pair interchanges one of them.
        changing_share: the share of changing pairs; None takes pairs as they come.
        separate: rivals whose labels must all differ from the label.
    """

    variables: tuple[str, ...]
    together: bool = False
    changing_share: float | None = 0.5
    separate: tuple[str, ...] = ()

    @property
    def patterns(self) -> list[tuple[str, ...]]:
        """The sets of variables that a pair may interchange."""
        if self.together or not self.variables:
            return [self.variables]
        return [(variable,) for variable in self.variables]


def base_rows(task: Task, wanted: Wanted, prompts: Prompts, n: int) -> np.ndarray:
    """The rows of the prompts that are bases, int[n].

    Each prompt is as often a base as the others. Where a task asks, this holds in two groups. Two
    thirds of the bases ask for a variable that is wanted. Only these can change their answer. So
    half of all pairs can be changing, and some bases that ask are left for unchanging pairs.
    """
    rows = np.arange(len(prompts))
    if task.asks is not None:
        asking = np.isin(prompts.inputs[task.asks], wanted.variables)
        if 0 < asking.sum() < len(prompts):
            return np.concatenate(
                [np.resize(rows[asking], n - n // 3), np.resize(rows[~asking], n // 3)]
            )
    return np.resize(rows, n)


def draw_pairs(
    task: Task,
    wanted: Wanted,
    bases: Prompts,
    sources: Sources,
    right: AnswersRightly | None,
    *,
    rng: np.random.Generator,
) -> tuple[Prompts, list[SourcedRows]]:
    """One pair for each base; its source is drawn anew until the pair is as wanted.

    Some bases have no changing pair, or no unchanging one. As far as possible another base gets one
    in their place. A base that finds no source at all is replaced by another base.

    Arguments:
        bases: the prompts that are edited, one a pair.
        sources: the way to choose sources.
        right: asks the network whether it answers new prompts rightly; None does not ask.
        rng: of all draws.

    Returns:
        The bases, and for parts of their rows the sources.

    Raises:
        ValueError: more than half of the bases find no source; or some still have none after they
            were replaced by others.
    """
    n = len(bases)
    # Which variables each pair interchanges, as an index of `wanted.patterns`: int[n], evenly
    # spread.
    pattern = rng.permutation(np.arange(n) % len(wanted.patterns))
    parts: list[SourcedRows] = []
    # What the network has been asked: {prompt's key: answered rightly}.
    asked: dict[Any, bool] = {}

    def fill(left: np.ndarray, changing: bool | None) -> np.ndarray:
        """Choose sources for some rows until their pairs are changing (or not).

        Returns the rows that seem to have no such pair.
        """
        for number in range(ROUNDS):
            before = len(left)
            for index, variables in enumerate(wanted.patterns):
                rows = left[pattern[left] == index]
                if not len(rows):
                    continue
                some = bases.take(rows)
                chosen = {variable: sources.choose(variable, some, rng) for variable in variables}
                labels = labels_of(task, task.model, some, chosen)
                fits = _separates(task, wanted, some, chosen, labels)
                # A base is no source of itself.
                for prompts in chosen.values():
                    fits &= _differ(prompts.keys, some.keys)
                if changing is not None:
                    fits &= _differ(labels, some.answers) == changing
                # Asked last: only about pairs that fit otherwise.
                if sources.new and right is not None:
                    fits &= _answered(right, chosen, fits, asked)
                inside = np.flatnonzero(fits)
                parts.append((rows[fits], {v: chosen[v].take(inside) for v in variables}))
                left = np.setdiff1d(left, rows[fits], assume_unique=True)
            # After 8 rounds, a round in which at most 1% of the rows find a pair is the last one.
            hopeless = changing is not None and number >= 8 and before - len(left) <= before // 100
            if not len(left) or hopeless:
                break
        return left

    rest = rng.permutation(n)
    if wanted.changing_share is not None:
        # `todo` are rows that are to get changing pairs, `rest` those for unchanging ones. A row
        # that finds no changing pair gets an unchanging one; a row of `rest` takes its place.
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
        rest = fill(rest, None)
    if len(rest):
        raise ValueError(
            f"Task {task.name!r}: no pair in {ROUNDS} draws for {len(rest)} of {n} bases, such as "
            f"{bases.given[rest[0]]!r}. Take other data.pairs, add words to the pools, or leave "
            "out data.separate."
        )
    return bases, parts


def each_with_each(
    task: Task, wanted: Wanted, prompts: Prompts
) -> tuple[Prompts, list[SourcedRows]]:
    """Every ordered pair of different prompts; all variables take the same source.

    Pairs on which a rival in `separate` agrees are left out. Returns bases and sources as
    `draw_pairs` does. Raises ValueError when no pair is left.
    """
    # Rows of the prompts, off the diagonal of first × second.
    first, second = np.nonzero(~np.eye(len(prompts), dtype=bool))
    bases, sources = prompts.take(first), prompts.take(second)
    # All pairs once for each pattern of variables.
    rows: list[int] = []
    parts: list[SourcedRows] = []
    for variables in wanted.patterns:
        chosen = dict.fromkeys(variables, sources)
        labels = labels_of(task, task.model, bases, chosen)
        inside = np.flatnonzero(_separates(task, wanted, bases, chosen, labels))
        # Each pair that is left stands behind those before it.
        part_rows = len(rows) + np.arange(len(inside))
        parts.append((part_rows, dict.fromkeys(variables, sources.take(inside))))
        rows += inside.tolist()
    if not rows:
        raise ValueError(
            f"Task {task.name!r}: no pair of {len(prompts)} prompts separates {wanted.separate}."
        )
    return bases.take(rows), parts


def label_columns(
    task: Task, variables: Sequence[str], split: str, bases: Prompts, parts: Sequence[SourcedRows]
) -> dict[str, list[Any]]:
    """The pairs as columns of the table, with what the causal model and its rivals answer.

    Arguments:
        parts: the pairs' sources. Each row of the bases is in one of them.
    """
    columns: dict[str, list[Any]] = defaultdict(list)
    for rows, sources in parts:
        part = bases.take(rows)
        n = len(rows)
        labels = labels_of(task, task.model, part, sources)
        part_columns = columns_of(split, part, labels) | {"kind": _kinds(task, part, sources)}
        if len(variables) > 1:
            part_columns["interchanged"] = [list(sources)] * n
        for variable in variables:
            prompts = sources.get(variable, Prompts({}, [None] * n, [None] * n))
            part_columns |= source_columns(variable, variables, prompts.written, prompts.answers)
        if task.rivals:
            rivals = {
                name: labels_of(task, rival, part, sources) for name, rival in task.rivals.items()
            }
            part_columns["rival_labels"] = list(as_rows(rivals))
        for name, column in part_columns.items():
            columns[name] += column
    order = np.concatenate([rows for rows, _ in parts]).argsort()
    return {name: at(column, order) for name, column in columns.items()}


def count_separating(columns: Columns) -> dict[str, int]:
    """{rival: number of pairs on which its label differs from the causal model's}.

    Only rivals count that have a label for every pair.
    """
    counts = {}
    rival_labels = columns.get("rival_labels", [{}])
    for name in rival_labels[0]:
        labels = [row[name] for row in rival_labels]
        if None not in labels:
            counts[name] = int(_differ(labels, columns["label"]).sum())
    return counts


def labels_of(
    task: Task, model: CausalModel, bases: Prompts, sources: Mapping[str, Prompts]
) -> list[Any]:
    """What a causal model answers after each variable takes its source's value.

    None for all pairs where the model lacks one of the variables.
    """
    if not set(sources) <= set(model.variables):
        return [None] * len(bases)
    inputs = {variable: prompts.inputs for variable, prompts in sources.items()}
    return answers(task, model.interchange_batch(bases.inputs, inputs))


def _separates(
    task: Task, wanted: Wanted, bases: Prompts, sources: Mapping[str, Prompts], labels: list[Any]
) -> np.ndarray:
    """Whether each pair's label differs from that of every rival in `separate`, bool[n]."""
    separates = np.ones(len(bases), dtype=bool)
    for name in wanted.separate:
        separates &= _differ(labels, labels_of(task, task.rivals[name], bases, sources))
    return separates


def _kinds(task: Task, bases: Prompts, sources: Mapping[str, Prompts]) -> list[str]:
    """Which of the task's variables differ between each base and its sources, joined by "+"."""
    settings = [as_rows(task.model.run_batch(p.inputs)) for p in (bases, *sources.values())]
    kinds = []
    for before, *others in zip(*settings, strict=True):
        names = []
        for name in task.variables:
            if not all(same(before[name], other[name]) for other in others):
                names.append(name)
        kinds.append("+".join(names) or "none")
    return kinds


def _answered(
    right: AnswersRightly, sources: Mapping[str, Prompts], fits: np.ndarray, asked: dict[Any, bool]
) -> np.ndarray:
    """Whether the network answers every new source rightly, bool[n].

    Each source is asked for once, and only where its pair fits otherwise.
    """
    answered = fits.copy()
    for prompts in sources.values():
        keys = prompts.keys
        new = {keys[i]: i for i in np.flatnonzero(fits).tolist() if keys[i] not in asked}
        if new:
            part = prompts.take(list(new.values()))
            asked.update(zip(new, right(part.given, part.answers), strict=True))
        answered &= np.array([asked.get(key, False) for key in keys])
    return answered


def _differ(one: Sequence[Any], other: Sequence[Any]) -> np.ndarray:
    """Whether the entries of two columns differ, bool[n]."""
    return np.array(list(map(ne, one, other)), dtype=bool)
