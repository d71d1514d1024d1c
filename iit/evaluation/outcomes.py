"""Which pairs an alignment gets right, by the causal model's label and by its rivals'."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.result import correct, logit_difference


class Outcomes(NamedTuple):
    """What an alignment does on pairs, in their order.

    right: bool[n], whether the label is the argmax at every answer token; None: the causal model's label, a name: a rival's.
    difference: float[n], logit of the label − logit of the base's own answer, where their tokens first differ; NaN where they do
        not, where the base's answer is not known, and where several answers are right.
    """

    right: dict[str | None, np.ndarray]
    difference: np.ndarray


def outcomes(alignment: Alignment, pairs: EncodedPairs, *, batch_size: int = 64, edited: bool = True) -> Outcomes:
    """Score every pair by the causal model's label and by its rivals'.

    Labels of one token are scored in one pass over the network. Longer ones are teacher-forced, which takes a pass for each rival.

    edited: False leaves every edit out, for the network's own answer on the base.
    """
    right: dict[str | None, np.ndarray] = {name: np.zeros(len(pairs), dtype=bool) for name in (None, *pairs.rivals)}
    difference = np.full(len(pairs), np.nan)
    with evaluating(alignment):
        for batch in pairs.batches(batch_size, alignment.n_columns):
            rows, label, own = batch["row"], batch["base"]["answer"], batch.get("base_answer")
            logits = _logits(alignment, batch, label, edited).cpu()
            right[None][rows.numpy()] = correct(logits, label).numpy()
            if own is not None and label.ndim == own.ndim == 2:
                difference[rows.numpy()] = logit_difference(logits, label, own).numpy()
            for name, labels in pairs.rivals.items():
                theirs = labels[rows]
                if theirs.shape[1] > 1 or label.shape[1] > 1:
                    logits = _logits(alignment, batch, theirs, edited).cpu()
                right[name][rows.numpy()] = correct(logits, theirs).numpy()
    return Outcomes(right, difference)


def answered(alignment: Alignment, pairs: EncodedPairs, *, batch_size: int = 64) -> np.ndarray | None:
    """bool[n]: does the unedited network give each base its own answer? None where the pairs do not know these."""
    right = np.zeros(len(pairs), dtype=bool)
    with evaluating(alignment):
        for batch in pairs.batches(batch_size, alignment.n_columns):
            if "base_answer" not in batch:
                return None
            logits = _logits(alignment, batch, batch["base_answer"], edited=False).cpu()
            right[batch["row"].numpy()] = correct(logits, batch["base_answer"]).numpy()
    return right


@contextmanager
def evaluating(alignment: Alignment) -> Iterator[None]:
    """Without gradients, and with learned gates hard."""
    was_training = alignment.training
    alignment.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        alignment.train(was_training)


def _logits(alignment: Alignment, batch: dict[str, Any], answer: Tensor, edited: bool) -> Tensor:
    base = batch["base"] | {"answer": answer}
    if not edited:
        return alignment.answer_logits(base, active=dict.fromkeys(alignment.variables, False))
    idle = {variable: False for variable in alignment.variables if variable not in batch["sources"]}
    sources = batch["sources"] if alignment.needs_source else None
    return alignment.answer_logits(base, sources, batch["active"] | idle)
