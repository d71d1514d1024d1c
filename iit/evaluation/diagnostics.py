"""Rows of further questions about a trained alignment.

They are about its parts, its distance from natural activations, other seeds and other variables.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.abstraction_error import NotApplicableError, abstraction_error
from iit.evaluation.divergence import divergence, natural_activations
from iit.evaluation.illusion import read_controls, read_spaces, split_by_reading
from iit.evaluation.off_target import off_target, off_target_rows
from iit.evaluation.outcomes import evaluating
from iit.evaluation.rows import describe
from iit.evaluation.subspace import pairwise_angles, random_angles, span_of_rows, subspaces, within
from iit.evaluation.trust import Trust
from iit.intervened.sources import variables_of
from iit.result import Row, clustered_interval

log = logging.getLogger(__name__)

VARIANCE = 0.999
"""The share of natural activations' variance that the space of their variation holds."""


def spans(
    alignment: Alignment, pairs: Pairs, encoded: EncodedPairs, batch_size: int
) -> dict[str, dict[str, Tensor]]:
    """Two spaces at each variable's sites, as {name: {variable: columns}}.

    "natural" is the space in which the activations of the training pairs vary. "read" is the space
    that the network reads behind the sites (`read_spaces`).

    Returns:
        Nothing natural without training pairs. Nothing at all where an edit swaps no linear
        subspace, or swaps several positions as one vector.
    """
    # What reads several positions together, or a curved map, cannot be split by directions.
    joint = any(edit.joint for edit in alignment.edits.values())
    if joint or len(subspaces(alignment)) < len(alignment.variables):
        log.info(
            "The subspace is not split into what is read and what is not: %s swap none",
            alignment.interventions,
        )
        return {}
    spaces = {"read": read_spaces(alignment, encoded, batch_size=batch_size)}
    if "train" not in set(pairs.dataset["split"]):
        return spaces
    assert alignment.studied is not None
    train = EncodedPairs(pairs.split("train"), pairs.variables, alignment.studied)
    with evaluating(alignment):
        activations = natural_activations(alignment, train, batch_size)
    spaces["natural"] = {}
    for key, edit in alignment.edits.items():
        # Sites of one edit share the subspace, but each varies about a mean of its own.
        centred = [
            points.cpu() - points.cpu().mean(0)
            for place, points in activations.items()
            if place[0] == key
        ]
        if centred:
            span = span_of_rows(torch.cat(centred), VARIANCE)
            spaces["natural"] |= {str(variable): span for variable in variables_of(key, edit)}
    return spaces


def parts(
    alignment: Alignment, read: Mapping[str, Tensor], seed: int, n_random: int
) -> dict[str, Alignment]:
    """`split_by_reading` and `read_controls`; nothing where no read space is known."""
    if not read:
        return {}
    return split_by_reading(alignment, read) | read_controls(alignment, read, seed, n_random)


def views(
    frames: Sequence[Tensor], variable: str, spaces: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Sequence[Tensor]]:
    """The subspaces, and the part of them inside of each of the variable's `spans` (see `within`).

    Returns:
        {"": the subspaces, "/natural": …, "/read": …}.
    """
    by_suffix = {"": frames}
    for name, space in spaces.items():
        if variable in space:
            by_suffix[f"/{name}"] = [within(frame, space[variable]) for frame in frames]
    return by_suffix


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The figures of a row: the mean, the least, the largest, and how many."""
    return {
        "value": float(np.mean(values)),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def angle_rows(
    alignments: Sequence[Alignment],
    pairs: Pairs,
    told: dict[str, Any],
    spaces: Mapping[str, Mapping[str, Tensor]],
) -> list[Row]:
    """Rows `principal_angle`: degrees between the subspaces of several trainings.

    There are rows of the subspaces and of each of their `views`.

    Control `seeds`: the mean over dimensions and pairs of trainings. Low and high are the smallest
    and the largest of these pairs' means, and n counts the pairs.

    Control `random_subspace`: the same of random subspaces of these ranks, in a space of this width
    (`random_angles`). Value, low and high are the mean, the 2.5% and the 97.5% quantile over draws,
    and n counts the draws.
    """
    by_training = [subspaces(alignment) for alignment in alignments]
    rows = []
    for variable in by_training[0]:
        facts = describe(alignments[0], pairs, (variable,)) | told
        frames = [frames_of[variable] for frames_of in by_training if variable in frames_of]
        for suffix, view in views(frames, variable, spaces).items():
            # A part inside of a space may have no dimension, and then no angle.
            not_empty = [frame for frame in view if frame.shape[1]]
            if len(not_empty) < 2:
                continue
            # A view is in coordinates of its space: its rows are that space's dimensions.
            null = random_angles(len(view[0]), [frame.shape[1] for frame in not_empty])
            low, high = np.quantile(null, (0.025, 0.975)).tolist()
            random = spread(null.tolist()) | {"low": low, "high": high}
            figures = {"seeds": spread(pairwise_angles(not_empty)), "random_subspace": random}
            for control, figure in figures.items():
                rows.append(
                    Row(
                        **facts,
                        subset="all",
                        control=control,
                        metric=f"principal_angle{suffix}",
                        **figure,
                    )
                )
    return rows


def divergence_rows(
    alignment: Alignment,
    pairs: Pairs,
    encoded: EncodedPairs,
    told: dict[str, Any],
    resamples: int,
    batch_size: int,
) -> list[Row]:
    """Rows `divergence`: how many edited activations are far from natural ones.

    The figure is the share of changing pairs whose edited activation is farther from natural ones
    than 95% of the unedited are; see the function `divergence`.
    """
    # Attention weights have no fixed width, and so no distance.
    weights = any(
        site.component == "attention_weight"
        for edit in alignment.edits.values()
        for site in edit.sites
    )
    if weights or "train" not in set(pairs.dataset["split"]) or not alignment.needs_source:
        return []
    assert alignment.studied is not None
    natural = EncodedPairs(pairs.split("train"), pairs.variables, alignment.studied)
    # 1 is the distance that 95% of the unedited activations stay within.
    far = (divergence(alignment, encoded, natural, batch_size=batch_size) > 1).astype(float)
    rows = []
    for variables in dict.fromkeys(encoded.interchanged):
        # Changing pairs that interchange exactly these variables.
        chosen = (
            np.array([names == variables for names in encoded.interchanged])
            & encoded.changing.numpy()
        )
        if chosen.any():
            interval = clustered_interval(
                far[chosen], encoded.clusters[chosen], resamples=resamples
            )
            facts = describe(alignment, pairs, variables) | told
            rows.append(
                Row(
                    **facts,
                    subset="changing",
                    control=None,
                    metric="divergence",
                    **interval._asdict(),
                )
            )
    return rows


def abstraction_rows(
    alignment: Alignment,
    pairs: Pairs,
    split: str,
    told: dict[str, Any],
    trust: Trust,
    batch_size: int,
) -> list[Row]:
    """Rows `abstraction_error/up` and `abstraction_error/down`.

    They are of all variables of the alignment at once, and n counts interventions. There are no
    rows where the error does not apply; the log says why.
    """
    try:
        compared = abstraction_error(
            alignment,
            pairs,
            split=split,
            n=trust.interventions,
            seed=told["seed"],
            batch_size=batch_size,
        )
    except NotApplicableError as error:
        log.info("The abstraction error was not computed: %s", error)
        return []
    facts = describe(alignment, pairs, [str(v) for v in alignment.variables]) | told
    rows = []
    for direction, comparisons in compared.items():
        interval = clustered_interval(
            comparisons.wrong.astype(float),
            comparisons.base,
            groups=comparisons.variable,
            resamples=trust.resamples,
        )
        # Each intervention compares several variables; n counts it once.
        value = interval._replace(n=comparisons.n)._asdict()
        rows.append(
            Row(
                **facts,
                subset="all",
                control=None,
                metric=f"abstraction_error/{direction}",
                **value,
            )
        )
    return rows


def other_variables(
    alignment: Alignment,
    pairs: Pairs,
    split: str,
    told: dict[str, Any],
    resamples: int,
    batch_size: int,
) -> list[Row]:
    """Rows of the edit on pairs that interchange the task's other variables: `off_target/VARIABLE`.

    They are for alignments of one variable. The pairs are sampled as the alignment's were, from the
    same split's words.
    """
    others = (
        [v for v in pairs.task.variables if v not in pairs.variables]
        if pairs.task is not None
        else []
    )
    if len(alignment.variables) != 1 or pairs.sampled is None:
        return []
    rows = []
    for other in others:
        n = min(len(pairs.split(split)), 200)
        # Only the test pairs are used, so the other splits are small.
        sizes = {"n": None, "n_train": 2, "n_val": 2, "n_test": n}
        try:
            sampled = pairs.sampled(
                **sizes, variable=other, separate=(), together=False, fresh=False, natural=False
            )
        except ValueError as error:  # a variable that cannot be interchanged by itself in this way
            log.info("off_target: no pairs for %s: %s", other, error)
            continue
        assert alignment.studied is not None
        encoded = EncodedPairs(sampled.split("test"), other, alignment.studied)
        (off_target_item,) = off_target(alignment, encoded, batch_size).items()
        # The rows are the other variable's, but the edit that they describe is this one's.
        facts = describe(alignment, pairs, pairs.variables) | told | {"variable": other}
        rows += off_target_rows(
            *off_target_item, encoded, np.ones(len(encoded), dtype=bool), facts, resamples
        )
    return rows
