"""What training minimises."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits, answer) → loss."""


def cross_entropy(
    logits: Float[Tensor, "batch n_answer vocab"], answer: Int[Tensor, "batch n_answer"] | Int[Tensor, "batch 1 n_right"]
) -> Float[Tensor, ""]:
    """Cross-entropy over the whole vocabulary: the mean over answer tokens of −log p(token), in nats and fp32.

    Where several tokens are right (`answer` of three dimensions), p is the sum of their probabilities.
    """
    if answer.ndim == 3:
        chosen = logits.float().log_softmax(-1).gather(-1, answer.clamp(min=0))
        return -chosen.masked_fill(answer == IGNORED, -torch.inf).logsumexp(-1).mean()
    return F.cross_entropy(logits.flatten(0, 1).float(), answer.flatten(), ignore_index=IGNORED)
