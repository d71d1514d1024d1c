"""Which pairs an alignment gets right."""

import numpy as np
import torch

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.result import correct


def outcomes(alignment: Alignment, pairs: EncodedPairs, *, batch_size: int = 64, edited: bool = True) -> np.ndarray:
    """bool[n] in the order of the pairs: is the label the argmax at every answer token?

    edited: False leaves every edit out, for the network's own answer on the base.
    """
    right = np.zeros(len(pairs), dtype=bool)
    was_training = alignment.training
    alignment.eval()
    try:
        with torch.no_grad():
            for batch in pairs.batches(batch_size):
                if edited:
                    logits = alignment.answer_logits(batch["base"], batch["sources"] if alignment.needs_source else None)
                else:
                    logits = alignment.answer_logits(batch["base"], active=dict.fromkeys(alignment.variables, False))
                right[batch["row"].numpy()] = correct(logits, batch["base"]["answer"].to(logits.device)).cpu().numpy()
    finally:
        alignment.train(was_training)
    return right
