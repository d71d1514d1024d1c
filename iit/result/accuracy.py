"""When a pair counts as right: the network gives the label at every answer token.

`logits` are read where the answer stands; the answer itself is teacher-forced, so the logits of its
second token are those behind its first one.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iit.batch import IGNORED


def correct(
    logits: Float[Tensor, "batch n_answer vocab"],
    answer: Int[Tensor, "batch n_answer"] | Int[Tensor, "batch 1 n_alternatives"],
) -> Bool[Tensor, " batch"]:
    """Is every answer token the argmax over the whole vocabulary?

    Logits that hold a NaN are never right.

    Arguments:
        logits: at the columns where the answer's tokens are read.
        answer: the tokens, −100 behind an answer that is shorter than others. With three
            dimensions an answer is one token, and the last dimension holds the tokens of which any
            is right (n_alternatives of them, −100 padded).

    Raises:
        ValueError: for an example without any answer token.
    """
    # [batch, n_answer, n_alternatives]
    alternatives = answer if answer.ndim == 3 else answer.unsqueeze(-1)
    # [batch, n_answer], True at padding, which is never wrong.
    absent = (alternatives == IGNORED).all(-1)
    if bool(absent.all(1).any()):
        raise ValueError(
            f"Example {int(absent.all(1).nonzero()[0])} has no answer token: nothing can be "
            "right or wrong."
        )
    best = logits.max(-1)  # argmax alone would take the first NaN for the answer
    is_answer = (best.indices.unsqueeze(-1) == alternatives).any(-1)
    is_right = is_answer & ~best.values.isnan()
    return (is_right | absent).all(1)


def log_probability(
    logits: Float[Tensor, "batch n_answer vocab"], answer: Int[Tensor, "batch n_answer"]
) -> Float[Tensor, " batch"]:
    """The log-probability of a teacher-forced answer: the sum over its tokens, in nats and fp32.

    Whether the text ends behind the answer is not asked: no end token is counted.
    """
    log_probabilities = logits.float().log_softmax(-1)
    tokens = answer.clamp(min=0).unsqueeze(-1)
    token_log_probabilities = log_probabilities.gather(-1, tokens).squeeze(-1)
    return token_log_probabilities.masked_fill(answer == IGNORED, 0).sum(1)


def logit_difference(
    logits: Float[Tensor, "batch n_answer vocab"],
    label: Int[Tensor, "batch n_answer"],
    other: Int[Tensor, "batch n_other"],
) -> Float[Tensor, " batch"]:
    """logit(label) − logit(other) at the first token in which the two answers differ, in fp32.

    Arguments:
        logits: of a run in which the label is teacher-forced.
        label: the tokens of the label, −100 padded.
        other: the tokens of another answer, such as the base's own, −100 padded.

    Returns:
        NaN where the answers are the same, or one is the beginning of the other.
    """
    # Both get the same width, so that they can be compared token by token.
    width = max(label.shape[1], other.shape[1])
    label_tokens, other_tokens = (
        torch.nn.functional.pad(answer, (0, width - answer.shape[1]), value=IGNORED)
        for answer in (label, other)
    )

    # [batch, 1]: the first token that differs. Before it both answers are the same tokens, so the
    # label's run serves both.
    first_difference = (label_tokens != other_tokens).float().argmax(1, keepdim=True)
    label_tokens = label_tokens.gather(1, first_difference)
    other_tokens = other_tokens.gather(1, first_difference)

    # A token against padding: one answer is the beginning of the other.
    is_padding = (label_tokens == IGNORED) | (other_tokens == IGNORED)
    is_known = ((label_tokens != other_tokens) & ~is_padding).squeeze(1)

    # [batch, vocab]: the logits at that token.
    at_first = (
        logits.gather(
            1,
            first_difference.clamp(max=logits.shape[1] - 1)
            .unsqueeze(-1)
            .expand(-1, -1, logits.shape[-1]),
        )
        .squeeze(1)
        .float()
    )
    label_logits = at_first.gather(1, label_tokens.clamp(min=0))
    other_logits = at_first.gather(1, other_tokens.clamp(min=0))
    gap = label_logits - other_logits
    return gap.squeeze(1).masked_fill(~is_known, torch.nan)
