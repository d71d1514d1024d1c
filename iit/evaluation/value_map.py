"""The value map of an alignment: which value of a variable the coordinates that its edit swaps
stand for.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from iit.alignment import Alignment
from iit.intervened import Activations
from iit.intervened.sources import Variable, variables_of

RIDGE = 1e-3
"""What is added to the variance within values, as a share of the whole variance: natural
coordinates may be discrete.
"""


@final
class ValueMap:
    """Coordinates → value: the value whose mean over natural inputs is nearest, in units of the
    spread within values.

    d²(c, x) = (c − mₓ)ᵀ (W + ρ·v·1)⁻¹ (c − mₓ), where mₓ is the mean of the coordinates of inputs
    that have the value x, W the covariance within values, v the mean variance of a coordinate, ρ =
    1e-3. Every coordinates have a value. Rotated coordinates have the same, and so, but for ρ, have
    all linear coordinates of one subspace.

    coordinates: of natural inputs. values: what the causal model gives these inputs.
    """

    def __init__(self, coordinates: Float[Tensor, "n k"], values: Sequence[Any]):
        self.values = sorted(set(values), key=str)
        index = torch.tensor([self.values.index(value) for value in values])
        points = coordinates.double()
        self._means = torch.stack(
            [points[index == number].mean(0) for number in range(len(self.values))]
        )
        spread = points - self._means[index]
        floor = max(
            RIDGE * float((points - points.mean(0)).square().mean()),
            float(np.finfo(np.float32).tiny),
        )
        within = spread.T @ spread / len(points) + floor * torch.eye(
            points.shape[1], dtype=torch.float64
        )
        self._factor = torch.linalg.cholesky(within)

    def __call__(self, coordinates: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
        """Of each row the number of its value among `values`."""
        points, means = (
            torch.linalg.solve_triangular(self._factor, c.T, upper=False).T
            for c in (coordinates.double(), self._means)
        )
        return torch.cdist(points, means).argmin(1)


def coordinates(
    alignment: Alignment, seen: Activations, *, source: bool = False
) -> dict[Variable, Float[Tensor, "n k"]]:
    """{variable: the coordinates that its edit swaps}, those of all its sites and positions one
    after the other; learned gates as they are in evaluation.

    seen: activations of one run at the edits' sites, or, with `source`, at their source sites.
    """
    found: dict[Variable, Tensor] = {}
    for key, edit in alignment.edits.items():
        intervention, names = edit.intervention, variables_of(key, edit)
        encode, weights = intervention.basis.coordinates().encode, intervention.gate()
        read = []
        for site in edit.source_sites if source else edit.sites:
            activation = seen[site].float()
            read.append(
                encode(activation.flatten(1).unsqueeze(1) if edit.joint else activation).cpu()
            )
        through = (
            torch.ones(read[0].shape[-1], dtype=torch.bool)
            if weights is None
            else weights.cpu() > 0
        )
        sizes = list((intervention.block_sizes or {str(names[0]): len(through)}).values())
        for name, part in zip(names, torch.arange(len(through)).split(sizes), strict=True):
            found[name] = torch.cat([here[..., part[through[part]]].flatten(1) for here in read], 1)
    return found
