"""Angles between subspaces, and what a subspace is inside of a space."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from iit.evaluation.subspace import Subspace
from iit.intervention.precision import widened

Space = Float[Tensor, "width dimension"]
ROUNDING = 1e-5
"""Singular values below this share of the largest count as 0."""
MOSTLY = 0.5 + ROUNDING
"""The squared cosine from which on a direction counts as inside a space: more than half lies there.
"""
DRAWS = 50
"""Random subspaces that a null distribution is drawn from."""


def principal_angles(one: Subspace, other: Space) -> Float[Tensor, " angles"]:
    """The principal angles between two subspaces, in degrees, ascending.

    There are as many as the smaller subspace has dimensions. cos θᵢ are the singular values of
    QᵀQ'. Below 45° sin θᵢ, the singular values of (1 − QQᵀ)Q', are the more precise.
    """
    small, large = sorted((widened(one), widened(other)), key=lambda q: q.shape[1])
    cosines = torch.linalg.svdvals(large.T @ small).clamp(max=1)
    outside = small - large @ (large.T @ small)
    # Singular values descend; flipped, the sines ascend with the angles.
    sines = torch.linalg.svdvals(outside).clamp(max=1).flip(0)
    radians = torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())
    return torch.rad2deg(radians).float()


def distances(found: Subspace, truth: Space) -> dict[str, float]:
    """How far a subspace Q of r dimensions is from a true one T of k, {metric: figure}.

    - principal_angle: degrees to Q from the direction of T that is farthest from Q. It is 0 where Q
      contains T, and 90 where r < k.
    - found_in_truth: degrees to T from the direction of Q that is farthest from T. It is 0 where T
      contains Q, and 90 where r > k.
    - projection_distance: ‖P_Q − P_T‖_F / √(r + k) = √((2 Σ sin² θᵢ + |r − k|) / (r + k)). It is 0
      where they are equal and 1 where they are orthogonal. For r = k it is the root mean square of
      the sines of the principal angles θᵢ. Else it is at least √(|r − k| / (r + k)), which it is
      where one contains the other.
    """
    angles = principal_angles(found, truth)
    largest = max(angles.tolist(), default=0.0)
    more = found.shape[1] - truth.shape[1]
    squared_sines = torch.deg2rad(angles).sin().square()
    squares = 2 * squared_sines.sum() + abs(more)
    n_dimensions = found.shape[1] + truth.shape[1]
    return {
        "principal_angle": 90.0 if more < 0 else largest,
        "found_in_truth": 90.0 if more > 0 else largest,
        "projection_distance": float((squares / max(1, n_dimensions)).sqrt()),
    }


def within(subspace: Subspace, space: Space) -> Float[Tensor, "dimension part"]:
    """What a subspace is inside of a space: orthonormal columns, in coordinates of the space.

    The columns of the space are A, those of the subspace Q, and UΣVᵀ = AᵀQ. Then the columns are uᵢ
    for every σᵢ² = cos² θᵢ > 1/2. A direction of which less lies in the space has a short
    projection. Stretched to length 1, it would be a piece of the space, whatever the subspace.
    """
    products = widened(space).T @ widened(subspace)
    left, cosines, _ = torch.linalg.svd(products, full_matrices=False)
    return left[:, cosines**2 > MOSTLY]


def span_of_rows(rows: Float[Tensor, "n width"], energy: float = 1.0) -> Subspace:
    """The leading right singular vectors that carry `energy` of the squared norm, as columns.

    They are in double precision.
    """
    _, strength, across = torch.linalg.svd(rows.double(), full_matrices=False)
    squares = strength**2
    # The energy that the vectors before each one carry together.
    before = squares.cumsum(0) - squares
    is_needed = before < energy * squares.sum()
    is_nonzero = strength > ROUNDING * strength.max()
    return across[is_needed & is_nonzero].T


def pairwise_angles(frames: Sequence[Tensor]) -> list[float]:
    """The mean principal angle of each pair of subspaces, in degrees."""
    return [float(principal_angles(one, other).mean()) for one, other in combinations(frames, 2)]


def random_angles(width: int, ranks: Sequence[int], draws: int = DRAWS) -> np.ndarray:
    """The mean of `pairwise_angles` of random subspaces of these ranks, float[draws].

    The generator has a fixed seed; the global one is left as it was.
    """
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(draws):
        frames = [
            torch.linalg.qr(torch.randn(width, rank, generator=generator))[0] for rank in ranks
        ]
        means.append(np.mean(pairwise_angles(frames)))
    return np.array(means)
