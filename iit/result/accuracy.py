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

    Logits that hold a NaN are never right.

    Arguments:
        answer: −100 where an answer is shorter. Of three dimensions, the last holds several tokens,
            any of which is right.

    Raises:
        ValueError: for an example without any answer token.
    """
    # [batch, n_answer, n_right]
    alternatives = answer if answer.ndim == 3 else answer.unsqueeze(-1)
    # [batch, n_answer]: padding, which is never wrong.
    absent = (alternatives == _IGNORED).all(-1)
    if bool(absent.all(1).any()):
        raise ValueError(
            f"Example {int(absent.all(1).nonzero()[0])} has no answer token: nothing can be "
            "right or wrong."
        )
    best = logits.max(-1)  # argmax alone would take the first NaN for the answer
    return (
        ((best.indices.unsqueeze(-1) == alternatives).any(-1) & ~best.values.isnan()) | absent
    ).all(1)


def log_probability(
    logits: Float[Tensor, "batch n_answer vocab"], answer: Int[Tensor, "batch n_answer"]
) -> Float[Tensor, " batch"]:
    """The log-probability of a teacher-forced answer, in fp32.

    It is the sum over all the answer's tokens. No token that would end the answer is counted.
    """
    logs = logits.float().log_softmax(-1).gather(-1, answer.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return logs.masked_fill(answer == _IGNORED, 0).sum(1)


def logit_difference(
    logits: Float[Tensor, "batch n_answer vocab"],
    label: Int[Tensor, "batch n_answer"],
    other: Int[Tensor, "batch n_other"],
) -> Float[Tensor, " batch"]:
    """logit(label) − logit(other), where their tokens first differ, in fp32.

    Arguments:
        logits: of a run in which the label is teacher-forced.

    Returns:
        NaN where the tokens do not differ, or one answer begins the other.
    """
    # Both get the same width, so that they can be compared token by token.
    width = max(label.shape[1], other.shape[1])
    label_tokens, other_tokens = (
        torch.nn.functional.pad(answer, (0, width - answer.shape[1]), value=_IGNORED)
        for answer in (label, other)
    )

    # [batch, 1]; up to this token the other answer's run is the label's, too.
    first = (label_tokens != other_tokens).float().argmax(1, keepdim=True)
    label_tokens = label_tokens.gather(1, first)
    other_tokens = other_tokens.gather(1, first)

    # A token against padding means that one answer begins the other.
    is_padding = (label_tokens == _IGNORED) | (other_tokens == _IGNORED)
    is_known = ((label_tokens != other_tokens) & ~is_padding).squeeze(1)

    # [batch, vocab]: the logits at that token.
    at_first = (
        logits.gather(
            1, first.clamp(max=logits.shape[1] - 1).unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        )
        .squeeze(1)
        .float()
    )
    label_logits = at_first.gather(1, label_tokens.clamp(min=0))
    other_logits = at_first.gather(1, other_tokens.clamp(min=0))
    gap = label_logits - other_logits
    return gap.squeeze(1).masked_fill(~is_known, torch.nan)
