"""The subspace that a linear intervention swaps, and angles between such subspaces."""

import torch
from jaxtyping import Float
from torch import Tensor

from iit.alignment import Alignment
from iit.intervention import All, Frame, Identity, Intervention, PrincipalComponents, SoftGate, Subset
from iit.intervention.operation import Swap
from iit.intervention.precision import widened

Subspace = Float[Tensor, "width rank"]


def subspaces(alignment: Alignment) -> dict[str, Tensor]:
    """{variable: orthonormal columns, Tensor[width, rank]} of the variables whose edits swap a linear subspace; learned gates are hard."""
    found = {}
    for key, edit in alignment.edits.items():
        vectors = swapped(edit.intervention)
        sizes = edit.intervention.block_sizes
        if vectors is None:
            continue
        parts = vectors.split(list(sizes.values()), 1) if sizes else [vectors]
        found |= dict(zip(sizes or (str(key),), parts, strict=True))
    return found


def swapped(intervention: Intervention) -> Subspace | None:
    """Orthonormal columns of the subspace that is swapped; None where there is none (no swap, a curved map, the whole space)."""
    basis, gate = intervention.basis, intervention.gate
    if not isinstance(intervention.operation, Swap) or intervention.kind != "edit":
        return None
    chosen: Tensor | None = None
    if isinstance(gate, SoftGate):
        chosen = gate.logits() > 0
    elif isinstance(gate, Subset):
        chosen = gate.weights > 0
    elif not isinstance(gate, All):
        return None
    with torch.no_grad():
        if isinstance(basis, Frame):
            vectors = basis.vectors()
        elif isinstance(basis, PrincipalComponents):
            vectors = basis.frame
        elif isinstance(basis, Identity) and chosen is not None:
            vectors = torch.eye(len(chosen))
        else:
            return None
        vectors = vectors if chosen is None else vectors[:, chosen.to(vectors.device)]
    return vectors.detach().float().cpu() if 0 < vectors.shape[1] < vectors.shape[0] else None


def principal_angles(one: Subspace, other: Subspace) -> Float[Tensor, " rank"]:
    """Degrees between two subspaces, ascending; as many as the smaller one has dimensions.

    cos θᵢ are the singular values of QᵀQ'; below 45° sin θᵢ, those of (1 − QQᵀ)Q', is the more precise.
    """
    small, large = sorted((widened(one), widened(other)), key=lambda q: q.shape[1])
    cosines = torch.linalg.svdvals(large.T @ small).clamp(max=1)
    sines = torch.linalg.svdvals(small - large @ (large.T @ small)).clamp(max=1).flip(0)
    return torch.rad2deg(torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())).float()
