"""Natural counterparts: prompts whose own values are those that an interchange asks for."""

from typing import Any

import numpy as np

from iit.causal import Task
from iit.data.pairing import Paired
from iit.data.prompts import Prompts


def counterparts(
    task: Task, pairs: Paired, prompts: Prompts, rng: np.random.Generator
) -> list[Any]:
    """For each pair a written prompt that has by itself what the interchange asks for, or None.

    It is drawn from the prompts in which the pairs' variables and the output have the values that
    they have after the interchange.

    Raises ValueError where no pair has a counterpart.
    """
    variables = list(pairs.sources)
    prompt_settings = task.model.run_batch(prompts.inputs)
    # {(values of the variables and the output): rows of `prompts`}; `repr` makes any value
    # hashable.
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(
        zip(*(map(repr, prompt_settings[v]) for v in (*variables, task.model.output)), strict=True)
    ):
        groups.setdefault(key, []).append(row)
    base_settings = task.model.run_batch(pairs.bases.inputs)
    assert pairs.source_values is not None
    # {variable: its value after the interchange}. One that the pair leaves alone keeps the base's.
    swapped_values = {
        v: [
            base_settings[v][i] if source is None else pairs.source_values[v][i]
            for i, source in enumerate(pairs.sources[v])
        ]
        for v in variables
    }
    after = task.model.do_batch(pairs.bases.inputs, swapped_values)
    keys = zip(*(map(repr, after[v]) for v in (*variables, task.model.output)), strict=True)
    candidates = [groups.get(key) for key in keys]
    if not any(candidates):
        raise ValueError(
            f"data.natural: none of the {len(prompts)} prompts has by itself what an interchange "
            f"of {variables} asks for; give more prompts, or leave it out."
        )
    return [
        prompts.written[rows[int(rng.integers(len(rows)))]] if rows else None for rows in candidates
    ]
