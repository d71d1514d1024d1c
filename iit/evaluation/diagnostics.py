"""Rows of what is asked of a finished alignment: its parts, its distance from natural activations, other seeds, other variables."""

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.abstraction_error import NotApplicableError, abstraction_error
from iit.evaluation.divergence import divergence
from iit.evaluation.illusion import split_by_reading
from iit.evaluation.off_target import off_target, off_target_rows
from iit.evaluation.rows import describe
from iit.evaluation.subspace import principal_angles, subspaces
from iit.evaluation.trust import Trust
from iit.result import Row, clustered_interval

log = logging.getLogger(__name__)


def parts(alignment: Alignment, pairs: EncodedPairs, batch_size: int) -> dict[str, Alignment]:
    """`split_by_reading`; nothing where the intervention has no linear subspace to split."""
    joint = any(edit.joint for edit in alignment.edits.values())
    if joint or len(subspaces(alignment)) < len(alignment.variables):
        log.info("The subspace is not split into what is read and what is not: %s swap none", alignment.interventions)
        return {}
    return split_by_reading(alignment, pairs, batch_size=batch_size)


def angle_rows(alignments: Sequence[Alignment], pairs: Pairs, told: dict[str, Any]) -> list[Row]:
    """Principal angles, in degrees, between the subspaces that several trainings found: the mean over dimensions and pairs of
    trainings; low and high are the smallest and the largest of these pairs' means. n counts the pairs of trainings."""
    found = [subspaces(alignment) for alignment in alignments]
    rows = []
    for variable in found[0]:
        means = [float(principal_angles(a[variable], b[variable]).mean()) for a, b in combinations(found, 2) if variable in b]
        if means:
            facts = describe(alignments[0], pairs, (variable,)) | told
            value = {"value": float(np.mean(means)), "low": min(means), "high": max(means), "n": len(means)}
            rows.append(Row(**facts, subset="all", control="seeds", metric="principal_angle", **value))
    return rows


def divergence_rows(
    alignment: Alignment, pairs: Pairs, encoded: EncodedPairs, told: dict[str, Any], resamples: int, batch_size: int
) -> list[Row]:
    """The share of changing pairs whose edited activation is farther from natural ones than 95% of the unedited are; see `divergence`."""
    weights = any(site.component == "attention_weight" for edit in alignment.edits.values() for site in edit.sites)
    if weights or "train" not in set(pairs.dataset["split"]) or not alignment.needs_source:
        return []
    assert alignment.studied is not None
    natural = EncodedPairs(pairs.split("train"), pairs.variables, alignment.studied)
    far = (divergence(alignment, encoded, natural, batch_size=batch_size) > 1).astype(float)
    clusters = np.unique(encoded.bases, return_inverse=True)[1]
    rows = []
    for variables in dict.fromkeys(encoded.interchanged):
        chosen = np.array([names == variables for names in encoded.interchanged]) & encoded.changing.numpy()
        if chosen.any():
            interval = clustered_interval(far[chosen], clusters[chosen], resamples=resamples)
            facts = describe(alignment, pairs, variables) | told
            rows.append(Row(**facts, subset="changing", control=None, metric="divergence", **interval._asdict()))
    return rows


def abstraction_rows(
    alignment: Alignment, pairs: Pairs, split: str, told: dict[str, Any], trust: Trust, batch_size: int
) -> list[Row]:
    """`abstraction_error/up` and `abstraction_error/down` of all variables of the alignment at once (see `abstraction_error`); n counts
    interventions. Nothing where it does not apply; the log says why."""
    try:
        found = abstraction_error(alignment, pairs, split=split, n=trust.interventions, seed=told["seed"], batch_size=batch_size)
    except NotApplicableError as error:
        log.info("The abstraction error was not computed: %s", error)
        return []
    facts = describe(alignment, pairs, [str(v) for v in alignment.variables]) | told
    rows = []
    for direction, one in found.items():
        interval = clustered_interval(one.wrong.astype(float), one.base, groups=one.variable, resamples=trust.resamples)
        value = interval._replace(n=one.n)._asdict()
        rows.append(Row(**facts, subset="all", control=None, metric=f"abstraction_error/{direction}", **value))
    return rows


def other_variables(
    alignment: Alignment, pairs: Pairs, split: str, told: dict[str, Any], resamples: int, batch_size: int
) -> list[Row]:
    """The edit of an alignment of one variable on pairs that interchange the task's other variables: `off_target/VARIABLE`.

    The pairs are sampled as the alignment's were, from the same split's words.
    """
    others = [v for v in pairs.task.variables if v not in pairs.variables] if pairs.task is not None else []
    if len(alignment.variables) != 1 or pairs.sampled is None:
        return []
    rows = []
    for other in others:
        n = min(len(pairs.split(split)), 200)
        sizes = {"n": None, "n_train": 2, "n_val": 2, "n_test": n}
        try:
            sampled = pairs.sampled(**sizes, variable=other, separate=(), together=False, fresh=False, natural=False)
        except ValueError as error:  # a variable that cannot be interchanged by itself in this way
            log.info("off_target: no pairs for %s: %s", other, error)
            continue
        assert alignment.studied is not None
        encoded = EncodedPairs(sampled.split("test"), other, alignment.studied)
        (found,) = off_target(alignment, encoded, batch_size).items()
        facts = describe(alignment, pairs, pairs.variables) | told | {"variable": other}
        rows += off_target_rows(*found, encoded, np.ones(len(encoded), dtype=bool), facts, resamples)
    return rows
