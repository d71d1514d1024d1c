"""Which pairs an alignment gets right, by the causal model's label and by its rivals'."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.result import correct


def outcomes(
    alignment: Alignment, pairs: EncodedPairs, *, batch_size: int = 64, edited: bool = True
) -> dict[str | None, np.ndarray]:
    """bool[n] in the order of the pairs: is the label the argmax at every answer token? None: the causal model's; a name: a rival's.

    Labels of one token are scored in one pass over the network. Longer ones are teacher-forced, which takes a pass for each rival.

    edited: False leaves every edit out, for the network's own answer on the base.
    """
    right: dict[str | None, np.ndarray] = {name: np.zeros(len(pairs), dtype=bool) for name in (None, *pairs.rivals)}
    was_training = alignment.training
    alignment.eval()
    try:
        with torch.no_grad():
            for batch in pairs.batches(batch_size, alignment.n_columns):
                rows, label = batch["row"], batch["base"]["answer"]
                logits = _logits(alignment, batch, label, edited)
                right[None][rows.numpy()] = correct(logits, label.to(logits.device)).cpu().numpy()
                for name, labels in pairs.rivals.items():
                    theirs = labels[rows]
                    if theirs.shape[1] > 1 or label.shape[1] > 1:
                        logits = _logits(alignment, batch, theirs, edited)
                    right[name][rows.numpy()] = correct(logits, theirs.to(logits.device)).cpu().numpy()
    finally:
        alignment.train(was_training)
    return right


def _logits(alignment: Alignment, batch: dict[str, Any], answer: Tensor, edited: bool) -> Tensor:
    base = batch["base"] | {"answer": answer}
    if not edited:
        return alignment.answer_logits(base, active=dict.fromkeys(alignment.variables, False))
    idle = {variable: False for variable in alignment.variables if variable not in batch["sources"]}
    sources = batch["sources"] if alignment.needs_source else None
    return alignment.answer_logits(base, sources, batch["active"] | idle)
