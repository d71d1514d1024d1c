"""Rows of further questions about a trained alignment.

Do other seeds find the same subspace? Are edited activations like natural ones? Does the causal
model abstract the network?
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from iit.alignment import Alignment
from iit.evaluation.abstraction_error import abstraction_error
from iit.evaluation.angles import pairwise_angles, random_angles
from iit.evaluation.divergence import divergence
from iit.evaluation.illusion import views
from iit.evaluation.rows import mean_rows, row_of
from iit.evaluation.scoring import Scoring
from iit.evaluation.subspace import subspaces
from iit.evaluation.trust import NotApplicableError
from iit.result import TRAINED, Arm, Interval, Row, clustered_interval


def spread(values: Sequence[float]) -> Interval:
    """The mean, the least, the largest, and how many."""
    return Interval(float(np.mean(values)), min(values), max(values), len(values))


def angle_rows(
    alignments: Sequence[Alignment],
    cell_columns: Callable[[Sequence[str]], dict[str, Any]],
    spaces: Mapping[str, Mapping[str, Tensor]],
) -> list[Row]:
    """Rows `principal_angle`: degrees between the subspaces of several trainings.

    There are rows of the subspaces and of each of their `views`.

    Control `seeds`: the mean over dimensions and pairs of trainings. Low and high are the smallest
    and the largest of these pairs' means, and n counts the pairs.

    Control `random_subspace`: the same of random subspaces of these ranks, in a space of this width
    (`random_angles`). Value, low and high are the mean, the 2.5% and the 97.5% quantile over draws,
    and n counts the draws.

    Arguments:
        cell_columns: variables → the columns that say which cell a row belongs to.
        spaces: what `spans` gives.
    """
    by_training = list(map(subspaces, alignments))
    rows = []
    for variable in by_training[0]:
        columns = cell_columns((variable,))
        frames = [frames_of[variable] for frames_of in by_training if variable in frames_of]
        for suffix, view in views(frames, variable, spaces).items():
            # A part inside of a space may have no dimension, and then no angle.
            not_empty = [frame for frame in view if frame.shape[1]]
            if len(not_empty) < 2:
                continue
            # A view is in coordinates of its space: its rows are that space's dimensions.
            null = random_angles(len(view[0]), [frame.shape[1] for frame in not_empty])
            low, high = np.quantile(null, (0.025, 0.975)).tolist()
            random = Interval(float(np.mean(null)), low, high, len(null))
            figures = {"seeds": spread(pairwise_angles(not_empty)), "random_subspace": random}
            for control, figure in figures.items():
                metric = f"principal_angle{suffix}"
                rows.append(row_of(columns, figure, metric, arm=Arm(control)))
    return rows


def divergence_rows(scoring: Scoring) -> list[Row]:
    """Rows `divergence`: how many edited activations are far from natural ones.

    The figure is the share of changing pairs whose edited activation is farther from natural ones
    than 95% of the unedited are; see the function `divergence`.

    Raises:
        NotApplicableError: without training pairs, where no edit reads a source, and for attention
            weights.
    """
    alignment = scoring.alignment
    if not alignment.needs_source:
        raise NotApplicableError("no edit reads a source")
    natural = scoring.on_train_split.encoded
    # 1 is the distance that 95% of the unedited activations stay within.
    far = divergence(alignment, scoring.encoded, natural, batch_size=scoring.batch_size) > 1
    rows = []
    for _, group in scoring.groups():
        rows += mean_rows({TRAINED: far}, group, "divergence")
    return rows


def abstraction_rows(scoring: Scoring) -> list[Row]:
    """Rows `abstraction_error/up` and `abstraction_error/down`.

    They are of all variables of the alignment at once, and n counts interventions.

    Raises:
        NotApplicableError: where the error does not apply.
    """
    alignment, trust = scoring.alignment, scoring.trust
    compared = abstraction_error(
        alignment,
        scoring.pairs,
        split=scoring.split,
        n=trust.interventions,
        seed=scoring.seed,
        batch_size=scoring.batch_size,
    )
    columns = scoring.cell_columns(list(map(str, alignment.variables)))
    rows = []
    for direction, comparisons in compared.items():
        interval = clustered_interval(
            comparisons.wrong.astype(float),
            comparisons.base,
            groups=comparisons.variable,
            resamples=trust.resamples,
        )
        # Each intervention compares several variables; n counts it once.
        interval = interval._replace(n=comparisons.n)
        rows.append(row_of(columns, interval, f"abstraction_error/{direction}"))
    return rows
