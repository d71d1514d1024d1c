"""Passes over the network that several intervened models share."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from iit.batch import Batch, Inputs
from iit.intervened.answers import reason_not_to_resume, resumed_logits
from iit.intervened.intervened_model import IntervenedModel
from iit.intervened.sources import Active, SourceInputs
from iit.network.answering import with_answer
from iit.network.inputs import prepare


def together(
    cells: Sequence[IntervenedModel],
    base: Inputs,
    sources: SourceInputs = None,
    active: Active = None,
) -> list[Tensor]:
    """`answer_logits` of each of several cells, on the same inputs.

    Cells share a pass where they have the same network and store, resume at the same block, and run
    equally many positions: their batches are stacked. Other cells run one after another.
    """
    if len(cells) == 1:
        return [cells[0].answer_logits(base, sources, active)]
    batch, answer_columns = with_answer(cells[0].network, prepare(cells[0].network, base))
    alike: dict[Any, list[IntervenedModel]] = {}
    for cell in cells:
        alike.setdefault(_shared(cell, batch, answer_columns, active), []).append(cell)
    logits: dict[IntervenedModel, Tensor] = {}
    for shared, group in alike.items():
        if shared is None or len(group) == 1:
            for cell in group:
                logits[cell] = cell.answer_logits(base, sources, active)
        else:
            assert answer_columns is not None, "cells that share a pass are read at tokens"
            _, store, layer, _ = shared
            # Each cell reads its own sources; the store runs each prompt once.
            runs = [cell.edited_run(batch, sources, active) for cell in group]
            logits |= zip(group, resumed_logits(runs, answer_columns, layer, store), strict=True)
    # In the order of the cells, not of the passes.
    return [logits[cell] for cell in cells]


def _shared(
    cell: IntervenedModel, batch: Batch, answer_columns: Tensor | None, active: Active
) -> Any:
    """What the cells that can share a pass have in common; None for a cell that shares none."""
    store, layer = cell.store, cell.first_block
    if store is None or cell.stored:
        return None
    run = cell.run_without_sources(batch, active)
    if (
        answer_columns is None
        or layer is None
        or reason_not_to_resume(run, answer_columns, layer, store)
        # A cell that was not compared with a whole run yet compares itself, alone.
        or not store.is_trusted(layer, run.flags)
    ):
        return None
    first, stop = run.span(answer_columns)
    return cell.network, store, layer, int((stop - first).max())
