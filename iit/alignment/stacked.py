"""Batches that are stacked along their rows, so that several runs are one pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED = -100


def stacked(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One batch with the rows of the first, then the rows of the second, and so on.

    Shorter prompts, answers and roles are padded on the right. Answers and roles are padded with
    −100, which means "absent", and all else with 0.
    """
    first = batches[0]
    stack: dict[str, Any] = {}
    for key in first:
        if key == "positions":
            roles = first[key]
            stack[key] = {
                role: _under([batch[key][role] for batch in batches], IGNORED) for role in roles
            }
        else:
            stack[key] = _under(
                [batch[key] for batch in batches], IGNORED if key == "answer" else 0
            )
    return stack


def rows_of(batch: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Some rows of a batch.

    Arguments:
        rows: LongTensor[n].
    """
    return {
        key: {role: column[rows] for role, column in value.items()}
        if key == "positions"
        else value[rows]
        for key, value in batch.items()
    }


def _under(tensors: Sequence[Tensor], fill: int) -> Tensor:
    widest = max(tensor.shape[-1] for tensor in tensors)
    # Columns of one dimension, such as class indices, have nothing to pad.
    return torch.cat(
        [pad(t, (0, widest - t.shape[-1]), value=fill) if t.ndim > 1 else t for t in tensors]
    )
