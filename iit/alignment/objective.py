"""What training minimises: a loss for each pair."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iit.batch import IGNORED
from iit.result import logit_difference

PairsBatch = Mapping[str, Any]
"""A batch of `EncodedPairs`: base, sources, active, changing, and more by the pairs' columns."""


class Prediction(NamedTuple):
    """The logits of an edited run, and the answers that they are compared with.

    Arguments:
        logits: Tensor[batch, n_answer, vocab], at the answer's tokens; the answer is
            teacher-forced.
        answer: LongTensor[batch, n_answer], the label's tokens, −100 where it is shorter. Or
            LongTensor[batch, 1, n_alternatives], where each of several tokens is right.
        base_answer: the base's own answer, in the form of `answer`; None where it is not known.
        latents: () → [(edited activation, natural activation, BoolTensor[batch] of pairs that have
            a natural one)], one entry for each edit. Activations are Tensor[batch, position,
            width]. None where the pairs have no natural counterparts.
    """

    logits: Tensor
    answer: Tensor
    base_answer: Tensor | None = None
    latents: Callable[[], list[tuple[Tensor, Tensor, Tensor]]] | None = None


class Objective(ABC):
    """A loss of each pair, of which the Lightning module takes the mean.

    Attributes:
        needs_natural: whether it reads the pairs' natural counterparts.
    """

    needs_natural = False

    @abstractmethod
    def __call__(self, prediction: Prediction) -> Float[Tensor, " batch"]:
        """The loss of each pair, in fp32; a mean over the answer's tokens."""

    # Not abstract: most objectives read nothing but the label.
    def check(self, batch: PairsBatch) -> None:  # noqa: B027
        """Check a batch of pairs (see `EncodedPairs`) before anything is trained.

        Raises ValueError for a batch that lacks what the objective reads.
        """

    def on_own_answer(self) -> "Objective":
        """The objective of pairs whose right answer is the base's own: nothing is to change.

        Some parts of a loss are of such pairs: `isolate` of `DAS`, and `behaviour` and `strict` of
        `IIT`. By default it is this objective itself.
        """
        return self


@final
class CrossEntropy(Objective):
    """−log p(label) over the whole vocabulary, in nats.

    Where several tokens are right, p is the sum of their probabilities.
    """

    def __call__(self, prediction: Prediction) -> Tensor:
        """The cross-entropy of each pair."""
        right, present = _right_tokens(prediction.answer)
        log_p = prediction.logits.float().log_softmax(-1).gather(-1, right)
        # log Σ p over the right tokens: Tensor[batch, n_answer], −∞ at padding.
        likely = log_p.masked_fill(~present, -torch.inf).logsumexp(-1)
        has_answer = present.any(-1)
        return _over_tokens(-likely.masked_fill(~has_answer, 0.0), has_answer)


@final
class KLDivergence(Objective):
    """The KL divergence of the network's distribution from the label's, in nats.

        KL(q ‖ p) = Σ q · (log q − log p)

    The label's distribution q spreads 1 − smoothing evenly over the right tokens, and smoothing
    evenly over the vocabulary; p is the network's. With one right token and no smoothing it is the
    cross-entropy. With several right tokens it asks for all of them, while the cross-entropy asks
    for any.

    Arguments:
        smoothing: a share of the probability, 0 ≤ smoothing < 1.

    Raises:
        ValueError: for another smoothing.

    References:
        arXiv 1512.00567, for smoothing.
    """

    def __init__(self, smoothing: float = 0.0):
        if not 0 <= smoothing < 1:
            raise ValueError(
                f"smoothing={smoothing} is a share of the probability: at least 0 and below 1."
            )
        self.smoothing = smoothing

    def __call__(self, prediction: Prediction) -> Tensor:
        """The KL divergence of each pair."""
        log_p = prediction.logits.float().log_softmax(-1)
        right, present = _right_tokens(prediction.answer)
        n_right, n = present.sum(-1), log_p.shape[-1]
        # q is `on_label + even` on a right token, and `even` on any other.
        even = self.smoothing / n
        on_label = (1 - self.smoothing) / n_right.clamp(min=1)
        on_right = (log_p.gather(-1, right) * present).sum(-1)
        # −Σ q · log p, the cross-entropy of the two distributions: Tensor[batch, n_answer].
        against = -(on_label * on_right + even * log_p.sum(-1))
        q = on_label + even
        # The entropy of q, which the network cannot change; 0 · log 0 counts as 0.
        of_others = even * math.log(even) if even else 0.0
        entropy = -(n_right * q * q.log() + (n - n_right) * of_others)
        return _over_tokens(against - entropy, present.any(-1))


@final
class LogitDifference(Objective):
    """−(logit of the label − logit of the base's own answer), where their tokens first differ.

    It is 0 where they are the same, or where one begins with the other. For pairs whose right
    answer is the base's own, `AnswerMargin` with the same margin takes its place.

    Arguments:
        margin: the difference that is enough. The loss is then max(0, margin − difference). With
            None it is −difference, without an end.

    Raises:
        ValueError: when called or checked, where the base's own answer is not known, or several
            tokens are right.
    """

    def __init__(self, margin: float | None = None):
        self.margin = margin

    def __call__(self, prediction: Prediction) -> Tensor:
        """The negative logit difference, or what it lacks of the margin."""
        difference = logit_difference(
            prediction.logits,
            prediction.answer,
            _checked(prediction.answer, prediction.base_answer),
        )
        # The logit difference is NaN where the answers do not differ, or where one begins the
        # other.
        return torch.where(difference.isnan(), 0.0, _lacking(difference, self.margin))

    def check(self, batch: PairsBatch) -> None:
        """Raises ValueError for pairs without own answers, or with several right ones."""
        _checked(batch["base"]["answer"], batch.get("base_answer"))

    def on_own_answer(self) -> "AnswerMargin":
        """The same margin, against the best other token."""
        return AnswerMargin(self.margin)


@final
class AnswerMargin(Objective):
    """−(logit of the label − the highest logit of another token), a mean over the answer's tokens.

    Where several tokens are right, the best of them counts.

    Arguments:
        margin: the difference that is enough. The loss is then max(0, margin − difference). With
            None it is −difference, without an end.
    """

    def __init__(self, margin: float | None = None):
        self.margin = margin

    def __call__(self, prediction: Prediction) -> Tensor:
        """The negative logit difference, or what it lacks of the margin."""
        logits, (right, present) = prediction.logits.float(), _right_tokens(prediction.answer)
        # Padding adds nothing to the token 0 that stands in for it.
        is_right = torch.zeros_like(logits).scatter_add(-1, right, present.float()) > 0
        # The highest logit among right tokens, and among all others: Tensor[batch, n_answer].
        best = logits.masked_fill(~is_right, -torch.inf).amax(-1)
        other = logits.masked_fill(is_right, -torch.inf).amax(-1)
        has_answer = present.any(-1)
        difference = torch.where(has_answer, best, 0.0) - other
        return _over_tokens(_lacking(difference, self.margin), has_answer)


@final
class MeanSquaredError(Objective):
    """Σ (p − q)² over the vocabulary, for the network's probabilities p and the label's q.

    q is 1 on the right token, or spread evenly over several.
    """

    def __call__(self, prediction: Prediction) -> Tensor:
        """The squared error of the probabilities (the Brier score)."""
        log_p = prediction.logits.float().log_softmax(-1)
        right, present = _right_tokens(prediction.answer)
        share = 1 / present.sum(-1).clamp(min=1)
        on_right = (log_p.gather(-1, right).exp() * present).sum(-1)
        # Σ p² − 2 Σ p·q + Σ q²; the last sum is n · (1/n)² = 1/n for n right tokens.
        errors = log_p.exp().square().sum(-1) - 2 * share * on_right + share
        return _over_tokens(errors, present.any(-1))


@final
class CounterfactualLatent(Objective):
    """objective + weight · the distance of edited activations from natural ones.

        distance = ½ · ‖e − n‖² / ‖n‖² + ½ · (1 − cos(e, n))

    Here e is what an edit makes of the base's activation. n is the activation of a prompt whose own
    variables have the values that the interchange asks for (`data.natural=true`). The distance is a
    mean over each edit's positions, and then over edits. A pair without such a prompt adds nothing.

    Arguments:
        objective: the loss that the distance is added to.
        weight: of the distance; 0.1 by default.

    Raises:
        ValueError: for a weight that is negative or not finite; when called or checked, for pairs
            without natural counterparts.

    References:
        after arXiv 2511.04638.
    """

    needs_natural = True

    def __init__(self, objective: Objective, weight: float = 0.1):
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"The weight of the distance cannot be negative, and is finite; got {weight}."
            )
        self.objective, self.weight = objective, weight

    def __call__(self, prediction: Prediction) -> Tensor:
        """The objective and the weighted distance."""
        if prediction.latents is None:
            raise ValueError(_UNNATURAL)
        distances = []
        for edited, natural, has_natural in prediction.latents():
            edited, natural = edited.float(), natural.float()
            # Tensor[batch, position] each: relative squared distance, and 1 − cosine.
            squared = (edited - natural).square().sum(-1)
            squared = squared / natural.square().sum(-1).clamp(min=1e-12)
            turned = 1 - F.cosine_similarity(edited, natural, dim=-1)
            distances.append(torch.where(has_natural, (0.5 * (squared + turned)).mean(1), 0.0))
        return self.objective(prediction) + self.weight * torch.stack(distances).mean(0)

    def check(self, batch: PairsBatch) -> None:
        """Raises ValueError for pairs without natural counterparts, and as its objective does."""
        if "natural" not in batch:
            raise ValueError(_UNNATURAL)
        self.objective.check(batch)

    def on_own_answer(self) -> "CounterfactualLatent":
        """The distance, added to what takes the place of its objective."""
        objective = self.objective.on_own_answer()
        return self if objective is self.objective else CounterfactualLatent(objective, self.weight)


_UNNATURAL = (
    "The objective CounterfactualLatent needs natural counterparts of the pairs: set "
    "data.natural=true."
)


def _checked(answer: Tensor, base_answer: Tensor | None) -> Tensor:
    if base_answer is None or base_answer.ndim != 2 or answer.ndim != 2:
        raise ValueError(
            "The objective LogitDifference compares the label with the base's own answer: the "
            "pairs need the column base_answer, and one right answer each."
        )
    return base_answer


def _right_tokens(answer: Tensor) -> tuple[Tensor, Tensor]:
    """The right tokens, Tensor[batch, n_answer, n_alternatives], and which of them exist.

    Padding (−100) becomes token 0, which can be gathered.
    """
    right = answer if answer.ndim == 3 else answer.unsqueeze(-1)
    return right.clamp(min=0), right != IGNORED


def _lacking(difference: Tensor, margin: float | None) -> Tensor:
    """What a difference lacks of the margin; without a margin its negative."""
    return -difference if margin is None else F.relu(margin - difference)


def _over_tokens(losses: Tensor, present: Tensor) -> Tensor:
    """The mean over each example's answer tokens: Tensor[batch, n_answer] → Tensor[batch]."""
    return (losses * present).sum(1) / present.sum(1).clamp(min=1)
