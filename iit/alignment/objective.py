"""What training minimises."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100


def cross_entropy(logits: Float[Tensor, "batch n_answer vocab"], answer: Int[Tensor, "batch n_answer"]) -> Float[Tensor, ""]:
    """Cross-entropy over the whole vocabulary: the mean over answer tokens of −log p(token), in nats and fp32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), answer.flatten(), ignore_index=IGNORED)
