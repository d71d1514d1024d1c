"""Natural counterparts: prompts whose own values are those that an interchange asks for."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from iit.causal import Columns, Task
from iit.data.pairing import SourcedRows
from iit.data.prompts import Prompts
from iit.data.table import prompt_columns


def counterparts(
    task: Task,
    variables: Sequence[str],
    bases: Prompts,
    parts: Sequence[SourcedRows],
    prompts: Prompts,
    rng: np.random.Generator,
) -> dict[str, list[Any]]:
    """For each pair a prompt that has by itself what the interchange asks for, as table columns.

    It is drawn from the prompts in which the variables and the output have the values that they
    have after the interchange. The base stands in where there is none.

    Arguments:
        bases, parts: the pairs, as `draw_pairs` returns them.
        prompts: of the pairs' split.

    Raises ValueError where no pair has a counterpart.
    """
    names = (*variables, task.model.output)
    # {values of the variables and the output: rows of `prompts`}
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, key in enumerate(_keys(task.model.run_batch(prompts.inputs), names)):
        groups[key].append(row)
    candidates: list[list[int]] = [[]] * len(bases)
    for part_rows, sources in parts:
        part = bases.take(part_rows)
        inputs = {variable: source.inputs for variable, source in sources.items()}
        after = task.model.interchange_batch(part.inputs, inputs)
        for i, key in zip(part_rows, _keys(after, names), strict=True):
            candidates[i] = groups.get(key, [])
    if not any(candidates):
        raise ValueError(
            f"data.natural: none of the {len(prompts)} prompts has by itself what an interchange "
            f"of {list(variables)} asks for; give more prompts, or leave it out."
        )
    natural = list(bases.written)
    for i, rows in enumerate(candidates):
        if rows:
            natural[i] = prompts.written[rows[rng.integers(len(rows))]]
    return prompt_columns("natural", natural) | {"has_natural": list(map(bool, candidates))}


def _keys(settings: Columns, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """For each setting the values of these variables; `repr` makes any value hashable."""
    return zip(*(map(repr, settings[name]) for name in names), strict=True)
