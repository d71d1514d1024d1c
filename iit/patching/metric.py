"""Metrics: what is read from the logits of an edited run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from iit.batch import IGNORED
from iit.intervention.precision import widened
from iit.result import correct, logit_difference

NORMALISED = "normalised_"


class Answers(NamedTuple):
    """What a metric may compare the logits with.

    label, own: LongTensor[batch, n_answer], −100 padded; own is the base's own answer, None where
        it is not known.
    unedited: Tensor[batch, n_answer, vocab], the base's logits without an edit; None for metrics
        that do not ask for them (`LIGHT`).
    """

    label: Int[Tensor, "batch n_answer"]
    own: Int[Tensor, "batch n_own"] | None
    unedited: Float[Tensor, "batch n_answer vocab"] | None


Metric = Callable[[Tensor, Answers], Tensor]
"""(logits[batch, n_answer, vocab], answers) → Tensor[batch]; NaN where it has no value."""
Figures = Mapping[str, np.ndarray]
"""{metric: its figures}"""
MetricChoice = str | Metric | Sequence[str] | Mapping[str, Metric]
"""A name, a function, several names, or {name: function}."""


def iia(logits: Tensor, answers: Answers) -> Tensor:
    """1 where every label token is the argmax, else 0."""
    return widened(correct(logits, answers.label))


def difference(logits: Tensor, answers: Answers) -> Tensor:
    """logit(label) − logit(own answer), where their tokens first differ."""
    if answers.own is None or answers.label.ndim != 2 or answers.own.ndim != 2:
        # Without an own answer, or with several right ones, there is no single difference.
        return torch.full((len(logits),), torch.nan, device=logits.device)
    return logit_difference(logits, answers.label, answers.own)


def probability(logits: Tensor, answers: Answers) -> Tensor:
    """P(label): the product over its tokens; of several right answers the sum."""
    label = answers.label
    if label.ndim != 3:
        # [batch, n_answer] → [batch, n_answer, n_alternatives], with one right answer
        label = label.unsqueeze(-1)
    by_token = (
        widened(logits)
        .softmax(-1)
        .gather(-1, label.clamp(min=0))
        .masked_fill(label == IGNORED, 0)
        .sum(-1)
    )
    # Padding multiplies by 1.
    return torch.where((label == IGNORED).all(-1), 1.0, by_token).prod(1)


def kl(logits: Tensor, answers: Answers) -> Tensor:
    """KL(unedited ‖ edited) in nats over the vocabulary, mean over the answer's tokens."""
    assert answers.unedited is not None
    new = widened(logits).log_softmax(-1)
    old = widened(answers.unedited).log_softmax(-1)
    by_token = (old.exp() * (old - new)).sum(-1)
    label = answers.label
    if label.ndim != 2:
        label = label[..., 0]
    # [batch, n_answer]: 1 at the answer's tokens, 0 at padding.
    real = widened(label != IGNORED)
    return (by_token * real).sum(1) / real.sum(1)


METRICS: dict[str, Metric] = {
    "iia": iia,
    "logit_difference": difference,
    "probability": probability,
    "kl": kl,
}

SHARE_METRICS = ("iia", "probability")
"""Metrics that lie between 0 and 1."""
LIGHT = (iia, difference, probability)
"""Metrics that do not read the unedited run's logits, which take memory."""


def metrics_of(metric: MetricChoice) -> dict[str, Metric]:
    """The metrics that are asked for, {name: metric}.

    A name with "normalised_" before it stands for the same figure; `Effects` divides.

    Raises:
        ValueError: for an unknown name, and for none.
    """
    if isinstance(metric, Mapping):
        return dict(metric)
    if callable(metric):
        return {getattr(metric, "__name__", "metric"): metric}
    metrics: dict[str, Metric] = {}
    for name in [metric] if isinstance(metric, str) else metric:
        plain = str(name).removeprefix(NORMALISED)
        if plain not in METRICS:
            raise ValueError(
                f"There is no metric {name!r}; there are {', '.join(METRICS)}, each also with "
                f"{NORMALISED!r} before it; functions of (logits, answers) are given as one, or as "
                "{name: function}."
            )
        metrics[name] = METRICS[plain]
    if not metrics:
        raise ValueError("No metric is named.")
    return metrics


def blank(metrics: Iterable[str], *shape: int) -> Figures:
    """{metric: float[shape]}, to be filled by `record`; NaN until then."""
    return {name: np.full(shape, np.nan) for name in metrics}


def record(
    values: Figures,
    index: Any,
    metrics: Mapping[str, Metric],
    logits: Tensor,
    answers: Answers,
) -> None:
    """Write what the metrics read from logits, a figure for each row, to values[metric][index].

    Raises:
        ValueError: for a metric that does not give one value for each row.
    """
    for name, metric in metrics.items():
        figures = torch.as_tensor(metric(logits, answers))
        if figures.shape != (len(logits),):
            raise ValueError(
                f"The metric {name!r} gave shape {tuple(figures.shape)}; expected one value for "
                f"each of {len(logits)} rows."
            )
        values[name][index] = widened(figures.cpu()).numpy()
