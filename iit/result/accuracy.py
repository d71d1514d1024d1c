"""When a pair counts as right."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_IGNORED = -100


def correct(
    logits: Float[Tensor, "batch n_answer vocab"],
    answer: Int[Tensor, "batch n_answer"] | Int[Tensor, "batch 1 n_right"],
) -> Bool[Tensor, " batch"]:
    """Is every answer token the argmax over the whole vocabulary?

    answer: −100 where an answer is shorter. Of three dimensions, the last holds the tokens each of
    which is right. Logits that hold a NaN are never right. Raises ValueError for an example without
    any answer token.
    """
    alternatives = answer if answer.ndim == 3 else answer.unsqueeze(-1)
    absent = (alternatives == _IGNORED).all(-1)
    if bool(absent.all(1).any()):
        raise ValueError(
            f"Example {int(absent.all(1).nonzero()[0])} has no answer token: nothing can be "
            "right or wrong."
        )
    best = logits.max(-1)  # argmax would call the first NaN the answer
    return (
        ((best.indices.unsqueeze(-1) == alternatives).any(-1) & ~best.values.isnan()) | absent
    ).all(1)


def log_probability(
    logits: Float[Tensor, "batch n_answer vocab"], answer: Int[Tensor, "batch n_answer"]
) -> Float[Tensor, " batch"]:
    """The sum over all tokens of an answer that is teacher-forced, in fp32; no token that would end
    it is counted.
    """
    logs = logits.float().log_softmax(-1).gather(-1, answer.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return logs.masked_fill(answer == _IGNORED, 0).sum(1)


def logit_difference(
    logits: Float[Tensor, "batch n_answer vocab"],
    label: Int[Tensor, "batch n_answer"],
    other: Int[Tensor, "batch n_other"],
) -> Float[Tensor, " batch"]:
    """logit(label) − logit(other), where their tokens first differ, in fp32; NaN where they do not,
    or one begins the other.

    logits: of a run in which the label is teacher-forced.
    """
    width = max(label.shape[1], other.shape[1])
    one, two = (
        torch.nn.functional.pad(answer, (0, width - answer.shape[1]), value=_IGNORED)
        for answer in (label, other)
    )
    first = (one != two).float().argmax(1, keepdim=True)
    one, two = one.gather(1, first), two.gather(1, first)
    known = ((one != two) & (one != _IGNORED) & (two != _IGNORED)).squeeze(1)
    at = (
        logits.gather(
            1, first.clamp(max=logits.shape[1] - 1).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        )
        .squeeze(1)
        .float()
    )
    found = at.gather(1, one.clamp(min=0)) - at.gather(1, two.clamp(min=0))
    return found.squeeze(1).masked_fill(~known, torch.nan)
