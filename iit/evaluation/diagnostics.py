"""Rows of what is asked of a finished alignment: its parts, its distance from natural activations,
other seeds, other variables.
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
"""The share of the variance of natural activations that the space in which they vary holds."""


def spans(
    alignment: Alignment, pairs: Pairs, encoded: EncodedPairs, batch_size: int
) -> dict[str, dict[str, Tensor]]:
    """{"natural": {variable: columns}, "read": {variable: columns}}: the space in which the
    activations of the training pairs vary at a variable's sites, and the space that is read behind
    them (`read_spaces`).

    Nothing natural without training pairs; nothing at all where an edit swaps no linear subspace,
    or swaps several positions as one vector.
    """
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
    """`split_by_reading` and `read_controls`; nothing where nothing is known to be read."""
    if not read:
        return {}
    return split_by_reading(alignment, read) | read_controls(alignment, read, seed, n_random)


def views(
    frames: Sequence[Tensor], variable: str, spaces: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Sequence[Tensor]]:
    """{"": the subspaces, "/natural" and "/read": what they are inside of the variable's `spans`
    (`within`)}.
    """
    found = {"": frames}
    for name, space in spaces.items():
        if variable in space:
            found[f"/{name}"] = [within(frame, space[variable]) for frame in frames]
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """A row's figures: the mean, the least, the largest, and how many."""
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
    """`principal_angle`: degrees between the subspaces that several trainings found, and between
    random ones; also of their `views`.

    Control `seeds`: the mean over dimensions and pairs of trainings; low and high are the smallest
    and the largest of these pairs' means, n counts the pairs. Control `random_subspace`: the same
    of random subspaces of these ranks in a space of this width
    (`random_angles`): the mean, the 2.5% and the 97.5% quantile over draws; n counts the draws.
    """
    each = [subspaces(alignment) for alignment in alignments]
    rows = []
    for variable in each[0]:
        facts = describe(alignments[0], pairs, (variable,)) | told
        frames = [found[variable] for found in each if variable in found]
        for suffix, seen in views(frames, variable, spaces).items():
            something = [frame for frame in seen if frame.shape[1]]
            if len(something) < 2:
                continue
            null = random_angles(len(seen[0]), [frame.shape[1] for frame in something])
            low, high = np.quantile(null, (0.025, 0.975)).tolist()
            random = spread(null.tolist()) | {"low": low, "high": high}
            figures = {"seeds": spread(pairwise_angles(something)), "random_subspace": random}
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
    """The share of changing pairs whose edited activation is farther from natural ones than 95% of
    the unedited are; see `divergence`.
    """
    weights = any(
        site.component == "attention_weight"
        for edit in alignment.edits.values()
        for site in edit.sites
    )
    if weights or "train" not in set(pairs.dataset["split"]) or not alignment.needs_source:
        return []
    assert alignment.studied is not None
    natural = EncodedPairs(pairs.split("train"), pairs.variables, alignment.studied)
    far = (divergence(alignment, encoded, natural, batch_size=batch_size) > 1).astype(float)
    rows = []
    for variables in dict.fromkeys(encoded.interchanged):
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
    """`abstraction_error/up` and `abstraction_error/down` of all variables of the alignment at once
    (see `abstraction_error`); n counts
    interventions. Nothing where it does not apply; the log says why."""
    try:
        found = abstraction_error(
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
    for direction, one in found.items():
        interval = clustered_interval(
            one.wrong.astype(float), one.base, groups=one.variable, resamples=trust.resamples
        )
        value = interval._replace(n=one.n)._asdict()
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
    """The edit of an alignment of one variable on pairs that interchange the task's other
    variables: `off_target/VARIABLE`.

    The pairs are sampled as the alignment's were, from the same split's words.
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
        (found,) = off_target(alignment, encoded, batch_size).items()
        facts = describe(alignment, pairs, pairs.variables) | told | {"variable": other}
        rows += off_target_rows(
            *found, encoded, np.ones(len(encoded), dtype=bool), facts, resamples
        )
    return rows
