"""When a pair counts as right."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

_IGNORED = -100


def correct(
    logits: Float[Tensor, "batch n_answer vocab"], answer: Int[Tensor, "batch n_answer"] | Int[Tensor, "batch 1 n_right"]
) -> Bool[Tensor, " batch"]:
    """Is every answer token the argmax over the whole vocabulary?

    answer: −100 where an answer is shorter. Of three dimensions, the last holds the tokens each of which is right. Logits that hold a NaN are never right. Raises ValueError for an example without
    any answer token.
    """
    alternatives = answer if answer.ndim == 3 else answer.unsqueeze(-1)
    absent = (alternatives == _IGNORED).all(-1)
    if bool(absent.all(1).any()):
        raise ValueError(f"Example {int(absent.all(1).nonzero()[0])} has no answer token: nothing can be right or wrong.")
    best = logits.max(-1)  # argmax would call the first NaN the answer
    return (((best.indices.unsqueeze(-1) == alternatives).any(-1) & ~best.values.isnan()) | absent).all(1)
