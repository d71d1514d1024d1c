"""The value map of an alignment: from coordinates to the value that they stand for."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from iit.alignment import Alignment
from iit.intervened import Activations
from iit.intervened.edit import variables_of

RIDGE = 1e-3
"""The share of the whole variance that is added to the variance within values.

Natural coordinates may be discrete; then there may be none within values.
"""


@final
class ValueMap:
    """Coordinates → the value whose mean over natural inputs is nearest.

    Distances are in units of the spread within values:

    d²(c, x) = (c − mₓ)ᵀ (W + ρ·v·1)⁻¹ (c − mₓ)

    mₓ is the mean of the coordinates of inputs that have the value x. W is the covariance within
    values, v the mean variance of a coordinate, ρ = 1e-3. All coordinates have a value. Rotated
    coordinates have the same value. So, but for ρ, have all linear coordinates of one subspace.

    coordinates: Tensor[n, k], of natural inputs.
    values: the values that the causal model gives these inputs.
    """

    def __init__(self, coordinates: Float[Tensor, "n k"], values: Sequence[Any]):
        self.values = sorted(set(values), key=str)
        index = torch.tensor(list(map(self.values.index, values)))
        points = coordinates.double()
        means = [points[index == number].mean(0) for number in range(len(self.values))]
        self._means = torch.stack(means)
        spread = points - self._means[index]
        ridge = RIDGE * float((points - points.mean(0)).square().mean())
        floor = max(ridge, float(np.finfo(np.float32).tiny))
        within = spread.T @ spread / len(points)
        within += floor * torch.eye(len(within), dtype=torch.float64)
        # W + ρ·v·1 = LLᵀ: distances between L⁻¹c are those of the class docstring.
        self._factor = torch.linalg.cholesky(within)

    def __call__(self, coordinates: Float[Tensor, "n k"]) -> list[Any]:
        """The value of each row."""
        points, means = (
            torch.linalg.solve_triangular(self._factor, c.T, upper=False).T
            for c in (coordinates.double(), self._means)
        )
        nearest = torch.cdist(points, means).argmin(1)
        return [self.values[number] for number in nearest.tolist()]


def coordinates(
    alignment: Alignment, activations: Activations, *, source: bool = False
) -> dict[str, Float[Tensor, "n k"]]:
    """The coordinates that each variable's edit swaps, {variable: Tensor[n, k]}.

    Those of all sites and positions of an edit stand one after the other. Learned gates are as they
    are in evaluation.

    Arguments:
        activations: of one run at the edits' sites, or, with `source`, at their source sites.
    """
    by_variable: dict[str, Tensor] = {}
    for key, edit in alignment.edits.items():
        intervention, names = edit.intervention, variables_of(key, edit)
        encode, weights = intervention.basis.coordinates().encode, intervention.gate()
        encoded = []
        for site in edit.source_sites if source else edit.sites:
            # [n, position, width]; a joint edit takes all positions as one vector.
            activation = activations[site].float().to(intervention.device)
            if edit.joint:
                activation = activation.flatten(1).unsqueeze(1)
            encoded.append(encode(activation).cpu())
        is_open = torch.ones(encoded[0].shape[-1], dtype=torch.bool)
        if weights is not None:
            is_open = weights.cpu() > 0
        # Each block is a variable's; an edit without blocks is one variable's.
        sizes = intervention.block_sizes or {names[0]: len(is_open)}
        parts = torch.arange(len(is_open)).split(list(sizes.values()))
        for name, part in zip(names, parts, strict=True):
            chosen = part[is_open[part]]
            # [n, position, part] → [n, position·part], site after site.
            swapped = [tensor[..., chosen].flatten(1) for tensor in encoded]
            by_variable[str(name)] = torch.cat(swapped, 1)
    return by_variable
