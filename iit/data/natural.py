"""Natural counterparts: prompts that have by themselves what an interchange asks for."""

from typing import Any

import numpy as np

from iit.causal import Task
from iit.data.pairing import Paired
from iit.data.prompts import Prompts


def counterparts(
    task: Task, pairs: Paired, prompts: Prompts, rng: np.random.Generator
) -> list[Any]:
    """For each pair a written prompt, drawn from those whose variables and output have the values
    that they have after the
    interchange; None where there is no such prompt.

    Raises ValueError where no pair has one.
    """
    variables = list(pairs.sources)
    own = task.model.run_batch(prompts.inputs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(
        zip(*(map(repr, own[v]) for v in (*variables, task.model.output)), strict=True)
    ):
        groups.setdefault(key, []).append(row)
    base = task.model.run_batch(pairs.bases.inputs)
    assert pairs.source_values is not None
    held = {
        v: [
            base[v][i] if source is None else pairs.source_values[v][i]
            for i, source in enumerate(pairs.sources[v])
        ]
        for v in variables
    }
    after = task.model.do_batch(pairs.bases.inputs, held)
    wanted = zip(*(map(repr, after[v]) for v in (*variables, task.model.output)), strict=True)
    found = [groups.get(key) for key in wanted]
    if not any(found):
        raise ValueError(
            f"data.natural: none of the {len(prompts)} prompts has by itself what an interchange "
            f"of {variables} asks for; give "
            "more prompts, or leave it out."
        )
    return [prompts.written[rows[int(rng.integers(len(rows)))]] if rows else None for rows in found]
