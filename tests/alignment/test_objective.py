"""Objectives against what is computed by hand."""

import math

import pytest
import torch

from iit.alignment import (
    AnswerMargin,
    CounterfactualLatent,
    CrossEntropy,
    KLDivergence,
    LogitDifference,
    MeanSquaredError,
    Prediction,
)

LOGITS = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]], [[0.0, 1.0, 1.0], [5.0, 0.0, 0.0]]])
ANSWER = torch.tensor([[1, 2], [2, -100]])
P = LOGITS.softmax(-1)


def test_cross_entropy_is_a_mean_over_each_pairs_tokens():
    expected = torch.stack([-(P[0, 0, 1].log() + P[0, 1, 2].log()) / 2, -P[1, 0, 2].log()])
    torch.testing.assert_close(CrossEntropy()(Prediction(LOGITS, ANSWER)), expected)
    several = torch.tensor([[[0, 1, -100]], [[2, -100, -100]]])
    expected = torch.stack([-(P[0, 0, 0] + P[0, 0, 1]).log(), -P[1, 0, 2].log()])
    torch.testing.assert_close(CrossEntropy()(Prediction(LOGITS[:, :1], several)), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_kl_is_the_divergence_from_the_labels_distribution(smoothing):
    def kl(q, p):
        return sum(
            a * (math.log(a) - math.log(b))
            for a, b in zip(q.tolist(), p.tolist(), strict=True)
            if a
        )

    def on(*right):
        q = torch.full((3,), smoothing / 3, dtype=torch.float64)
        q[list(right)] += (1 - smoothing) / len(right)
        return q

    expected = [(kl(on(1), P[0, 0]) + kl(on(2), P[0, 1])) / 2, kl(on(2), P[1, 0])]
    torch.testing.assert_close(
        KLDivergence(smoothing)(Prediction(LOGITS, ANSWER)), torch.tensor(expected)
    )
    several = torch.tensor([[[0, 1, -100]], [[2, -100, -100]]])
    expected = [kl(on(0, 1), P[0, 0]), kl(on(2), P[1, 0])]
    torch.testing.assert_close(
        KLDivergence(smoothing)(Prediction(LOGITS[:, :1], several)), torch.tensor(expected)
    )


def test_logit_difference_is_read_where_the_answers_first_differ():
    made = Prediction(LOGITS.clone().requires_grad_(), ANSWER, torch.tensor([[1, 0], [2, -100]]))
    loss = LogitDifference()(made)
    torch.testing.assert_close(loss, torch.tensor([-3.0, 0.0]))
    loss.sum().backward()
    expected = torch.zeros_like(LOGITS)
    expected[0, 1, 2], expected[0, 1, 0] = -1, 1
    torch.testing.assert_close(made.logits.grad, expected)
    torch.testing.assert_close(LogitDifference(margin=4.0)(made), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(LogitDifference(margin=2.0)(made), torch.tensor([0.0, 0.0]))
    with pytest.raises(ValueError, match="base_answer"):
        LogitDifference()(Prediction(LOGITS, ANSWER))


def test_a_margin_is_kept_above_the_best_other_token():
    other = torch.tensor([[2.0 - 1.0, 3.0 - 0.0], [1.0 - 1.0, 0.0]])
    expected = torch.stack([-other[0].mean(), -other[1, 0]])
    torch.testing.assert_close(AnswerMargin()(Prediction(LOGITS, ANSWER)), expected)
    torch.testing.assert_close(
        AnswerMargin(2.0)(Prediction(LOGITS, ANSWER)), torch.tensor([0.5, 2.0])
    )
    several = torch.tensor([[[0, 1, -100]], [[2, -100, -100]]])
    torch.testing.assert_close(
        AnswerMargin()(Prediction(LOGITS[:, :1], several)), torch.tensor([-2.0, 0.0])
    )


def test_what_is_minimised_where_the_label_is_the_bases_own_answer():
    kept = CounterfactualLatent(LogitDifference(3.0), 0.2).on_own_answer()
    assert isinstance(kept.objective, AnswerMargin)
    assert (kept.objective.margin, kept.weight) == (3.0, 0.2)
    for objective in (
        CrossEntropy(),
        KLDivergence(),
        MeanSquaredError(),
        CounterfactualLatent(CrossEntropy()),
    ):
        assert objective.on_own_answer() is objective


def test_squared_error_of_the_probabilities():
    def brier(p, right):
        return sum((p[i] - (1 / len(right) if i in right else 0)) ** 2 for i in range(3))

    expected = torch.stack([(brier(P[0, 0], [1]) + brier(P[0, 1], [2])) / 2, brier(P[1, 0], [2])])
    torch.testing.assert_close(MeanSquaredError()(Prediction(LOGITS, ANSWER)), expected)
    several = torch.tensor([[[0, 1, -100]], [[2, -100, -100]]])
    expected = torch.stack([brier(P[0, 0], [0, 1]), brier(P[1, 0], [2])])
    torch.testing.assert_close(MeanSquaredError()(Prediction(LOGITS[:, :1], several)), expected)


def test_the_distance_from_natural_activations():
    edited, natural = (
        torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]]),
        torch.tensor([[[0.0, 4.0]], [[0.0, 9.0]]]),
    )
    made = Prediction(
        LOGITS, ANSWER, None, lambda: [(edited, natural, torch.tensor([True, False]))]
    )
    apart = 0.5 * (9 / 16) + 0.5 * (1 - 4 / 5)
    expected = CrossEntropy()(made) + 0.5 * torch.tensor([apart, 0.0])
    torch.testing.assert_close(CounterfactualLatent(CrossEntropy(), 0.5)(made), expected)
    with pytest.raises(ValueError, match=r"data\.natural"):
        CounterfactualLatent(CrossEntropy())(Prediction(LOGITS, ANSWER))


def test_what_cannot_be_minimised_is_refused():
    with pytest.raises(ValueError, match=r"smoothing=1\.0"):
        KLDivergence(1.0)
    with pytest.raises(ValueError, match="cannot be negative"):
        CounterfactualLatent(CrossEntropy(), -1.0)
