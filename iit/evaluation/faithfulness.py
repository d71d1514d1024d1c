"""Whether parts that are declared inert are: the accuracy while they come from a third input."""

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.evaluation.outcomes import Outcomes, evaluating, outcomes
from iit.evaluation.scoring import Scoring
from iit.evaluation.trust import NotApplicableError
from iit.result import Arm


def inert_resampled(scoring: Scoring) -> dict[Arm, Outcomes]:
    """Is the label still the answer when all inert parts come from a third input?

    The interchange itself is done as always. The third input of a pair is another pair's base,
    other than its own base (see `third_inputs`). Only figures that also perturb what is declared
    unaligned tell valid hypotheses from invalid ones (arXiv 2607.00267).

    Raises:
        NotApplicableError: a ValueError, for an alignment that declares nothing inert, and for
            pairs of one base.
    """
    alignment, pairs = scoring.alignment, scoring.encoded
    if not alignment.inert:
        raise NotApplicableError("The alignment declares nothing inert (`inert`).")
    pairs = pairs.with_sources(list(alignment.inert), third_inputs(pairs, scoring.seed))
    # It shares its interventions with the alignment, which get back their modes.
    with evaluating(alignment):
        perturbed = Alignment(scoring.network, {**alignment.edits, **alignment.inert}).eval()
        outcome = outcomes(perturbed, pairs, batch_size=scoring.batch_size, score=scoring.score)
    unknown = np.full(len(pairs), np.nan)
    return {Arm("inert_resampled"): outcome._replace(difference=unknown, forced=unknown)}


def third_inputs(pairs: EncodedPairs, seed: int) -> np.ndarray:
    """The number of another pair for each pair, int[n]; the other pair has another base.

    The pairs are put in a random cycle. A pair gets the nearest one before it in the cycle that has
    another base.

    Raises:
        NotApplicableError: a ValueError, where all pairs have the same base.
    """
    bases = np.unique(pairs.bases, return_inverse=True)[1]
    if bases.max() == 0:
        raise NotApplicableError("All pairs have the same base: there is no third input.")
    n = len(pairs)
    order = np.random.default_rng(seed).permutation(n)
    # `place` is where a pair stands in the cycle, `step` how far back its third input is.
    place, step = np.argsort(order), np.ones(n, dtype=int)
    third = order[place - step]
    # It ends, as there are two bases at least.
    while (same := bases[third] == bases).any():
        step[same] += 1
        third = order[(place - step) % n]
    return third
