"""What is read off an edited run's logits."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iit.intervention.precision import widened
from iit.network.answering import IGNORED
from iit.result import correct, logit_difference

NORMALISED = "normalised_"


class Answers(NamedTuple):
    """What a metric may hold the logits against.

    label, own: LongTensor[batch, n_answer], −100 padded; own is None where it is not known.
    unedited: the base's logits without an edit, Tensor[batch, n_answer, vocab]; None for metrics that do not ask (`LIGHT`).
    """

    label: Int[Tensor, "batch n_answer"]
    own: Int[Tensor, "batch n_own"] | None
    unedited: Float[Tensor, "batch n_answer vocab"] | None


Metric = Callable[[Tensor, Answers], Tensor]
"""(logits[batch, n_answer, vocab], answers) → Tensor[batch]; NaN where it has no value."""


def iia(logits: Tensor, answers: Answers) -> Tensor:
    """1 where every label token is the argmax, else 0."""
    return widened(correct(logits, answers.label))


def difference(logits: Tensor, answers: Answers) -> Tensor:
    """logit(label) − logit(own answer), where their tokens first differ."""
    if answers.own is None or answers.label.ndim != 2 or answers.own.ndim != 2:
        return torch.full((len(logits),), torch.nan, device=logits.device)
    return logit_difference(logits, answers.label, answers.own)


def probability(logits: Tensor, answers: Answers) -> Tensor:
    """P(label): the product over its tokens; of several right answers the sum."""
    label = answers.label if answers.label.ndim == 3 else answers.label.unsqueeze(-1)
    each = widened(logits).softmax(-1).gather(-1, label.clamp(min=0)).masked_fill(label == IGNORED, 0).sum(-1)
    return torch.where((label == IGNORED).all(-1), 1.0, each).prod(1)


def kl(logits: Tensor, answers: Answers) -> Tensor:
    """KL(unedited ‖ edited) in nats over the vocabulary, mean over the answer's tokens."""
    assert answers.unedited is not None
    new, old = widened(logits).log_softmax(-1), widened(answers.unedited).log_softmax(-1)
    each = (old.exp() * (old - new)).sum(-1)
    real = widened((answers.label if answers.label.ndim == 2 else answers.label[..., 0]) != IGNORED)
    return (each * real).sum(1) / real.sum(1)


METRICS: dict[str, Metric] = {"iia": iia, "logit_difference": difference, "probability": probability, "kl": kl}

SHARES = ("iia", "probability")
"""Those that lie between 0 and 1."""
LIGHT = (iia, difference, probability)
"""Those that do not read the unedited run's logits, which take room."""


def metrics_of(given: str | Metric | Sequence[str] | Mapping[str, Metric]) -> dict[str, Metric]:
    """{name: metric} of a name, a function, several names, or {name: function}.

    A name with "normalised_" before it stands for the same figure; `Effects` divides. Raises ValueError for an unknown name.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if callable(given):
        return {getattr(given, "__name__", "metric"): given}
    names = [given] if isinstance(given, str) else list(given)
    if not names:
        raise ValueError("No metric is named.")
    unknown = [name for name in names if not isinstance(name, str) or name.removeprefix(NORMALISED) not in METRICS]
    if unknown:
        raise ValueError(
            f"There is no metric {unknown[0]!r}; there are {', '.join(METRICS)}, each also with {NORMALISED!r} before it; functions "
            "of (logits, answers) are given as one, or as {name: function}."
        )
    return {name: METRICS[name.removeprefix(NORMALISED)] for name in names}
