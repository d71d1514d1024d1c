"""The subspace that a linear intervention swaps."""

import torch
from jaxtyping import Float
from torch import Tensor

from iit.alignment import Alignment
from iit.intervention import (
    All,
    Frame,
    Identity,
    Intervention,
    PrincipalComponents,
    SoftGate,
    Subset,
)
from iit.intervention.operation import Swap

Subspace = Float[Tensor, "width rank"]


def subspaces(alignment: Alignment) -> dict[str, Tensor]:
    """The linear subspaces that edits swap, {variable: orthonormal columns, Tensor[width, rank]}.

    Learned gates are hard. Variables whose edits swap no linear subspace are left out.
    """
    by_variable = {}
    for key, edit in alignment.edits.items():
        vectors = swapped_subspace(edit.intervention)
        if vectors is None:
            continue
        # Blocks are neighbouring columns of one frame; each is a variable's.
        sizes = edit.intervention.block_sizes or {str(key): vectors.shape[1]}
        by_variable |= zip(sizes, vectors.split(list(sizes.values()), 1), strict=True)
    return by_variable


def swapped_subspace(intervention: Intervention) -> Subspace | None:
    """Orthonormal columns of the subspace that an intervention swaps, Tensor[width, rank].

    Returns:
        None where there is none: no swap, a curved map, nothing or the whole space.
    """
    basis, gate = intervention.basis, intervention.gate
    if not isinstance(intervention.operation, Swap) or intervention.kind != "edit":
        return None
    chosen: Tensor | None = None
    if isinstance(gate, SoftGate):
        # A learned gate is open where its logit is above 0.
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
            # The coordinates are the activation's own units.
            vectors = torch.eye(len(chosen))
        else:
            return None
        vectors = vectors if chosen is None else vectors[:, chosen.to(vectors.device)]
    width, rank = vectors.shape
    return vectors.detach().float().cpu() if 0 < rank < width else None
