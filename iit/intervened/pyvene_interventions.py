"""pyvene's interventions as ours; what would not give the same numbers is refused."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from iit.intervention import (
    AdditionIntervention,
    CollectIntervention,
    Frame,
    Intervention,
    LowRankRotatedSpaceIntervention,
    MeanIntervention,
    RotatedSpaceIntervention,
    SubtractionIntervention,
    VanillaIntervention,
    ZeroIntervention,
)
from iit.intervention.basis import Vectors

Subspaces = Mapping[str, list[int]] | None
"""{variable: columns of the rotation}; None without a partition."""
# Interventions that rotate.
DISTRIBUTED = ("RotatedSpaceIntervention", "LowRankRotatedSpaceIntervention")
HOLDS_TENSORS = {
    "VanillaIntervention": MeanIntervention,
    "AdditionIntervention": AdditionIntervention,
    "SubtractionIntervention": SubtractionIntervention,
}
"""What may have a constant vector as its source, and what it is called here then."""
SOURCELESS = {"ZeroIntervention": ZeroIntervention, "CollectIntervention": CollectIntervention}
# Why each of these would not give the same numbers.
REFUSED = {
    "BoundlessRotatedSpaceIntervention": (
        "its mask stays soft in evaluation, and its first coordinate is never swapped by "
        "more than half"
    ),
    "SigmoidMaskIntervention": "its mask stays soft in evaluation; here it is 0 or 1",
    "SigmoidMaskRotatedSpaceIntervention": "its mask stays soft in evaluation; here it is 0 or 1",
    "PCARotatedSpaceIntervention": "pyvene does not save its components",
    "SkipIntervention": (
        "it swaps in the block's input on the source; here a skipped block passes on the base's own"
    ),
    "NoiseIntervention": "its noise is for four positions of one seed of numpy's",
    "AutoencoderIntervention": "it drops the reconstruction error, which is kept here",
    "JumpReLUAutoencoderIntervention": "it drops the reconstruction error, which is kept here",
}


def intervention_of(
    kind: str,
    state: Mapping[str, Any],
    dimension: Any,
    width: int | None,
    subspaces: Subspaces,
) -> Intervention:
    """The intervention that pyvene's class `kind` stands for.

    Arguments:
        state: its saved tensors.
        dimension: its interchange dimension, which is the number of first coordinates that are
            edited; None for all.
        width: of one unit; None where only a run can tell.
        subspaces: {variable: columns of the rotation}.

    Raises ValueError for what is not carried over exactly, saying why.
    """
    names = (*DISTRIBUTED, *HOLDS_TENSORS, *SOURCELESS)
    if kind not in names:
        why = REFUSED.get(kind, "it is not known here")
        raise ValueError(f"{kind} is not carried over: {why}. Those that are: {', '.join(names)}.")
    saved_dimension = state.get("interchange_dim", dimension or 0)
    if not isinstance(dimension, int | None) or int(saved_dimension) != (dimension or 0):
        raise ValueError(
            f"its interchange dimension is {dimension} in config.json, "
            f"{state.get('interchange_dim')} in the weights."
        )

    # Fresh weights are drawn and then replaced: the user's own draws stay the same.
    with torch.random.fork_rng(devices=[]):
        if kind in DISTRIBUTED:
            frame = _rotation(state)
            # Low rank and subspaces say which columns are swapped. Else the interchange dimension
            # does: the first ones.
            if subspaces is None and not kind.startswith("LowRank"):
                frame = frame[:, :dimension]
            return _rotated(frame, subspaces)
        if subspaces is not None:
            raise ValueError(
                f"a subspace partition is carried over for {' and '.join(DISTRIBUTED)} "
                f"only, not for {kind}."
            )

        units = None
        # An interchange dimension of the whole width edits everything.
        if dimension is not None and (width is None or dimension < width):
            units = list(range(dimension))
        vector = state.get("source_representation")
        if kind == "VanillaIntervention" and vector is None:
            if units is not None and width is None:
                raise ValueError(
                    f"it edits the first {dimension} units of a module whose width only "
                    "a run can tell."
                )
            return VanillaIntervention(None if units is None else width, units)
        if units is not None:
            raise ValueError(
                f"{kind} of only the first {dimension} units (of {width}) is not carried over."
            )
        if vector is None:
            return (SOURCELESS | HOLDS_TENSORS)[kind]()
        if vector.numel() != vector.shape[-1] or not torch.isfinite(vector).all():
            raise ValueError(
                f"its constant source has shape {tuple(vector.shape)}; a finite vector "
                "is carried over."
            )
        return HOLDS_TENSORS[kind](vector.flatten())


def _rotated(frame: Vectors, subspaces: Subspaces) -> Intervention:
    width, rank = frame.shape
    if subspaces is not None:
        chosen = list(chain.from_iterable(subspaces.values()))
        overlap = len(set(chosen)) != len(chosen)
        if overlap or not set(chosen) <= set(range(rank)):
            raise ValueError(
                f"its subspaces {list(subspaces.values())} are not disjoint columns of its {rank}."
            )
        intervention = RotatedSpaceIntervention(
            width, blocks={name: len(columns) for name, columns in subspaces.items()}
        )
        # Here the columns of the blocks stand one block after another.
        frame = frame[:, chosen]
    elif rank == width:
        intervention = RotatedSpaceIntervention(width)
    else:
        intervention = LowRankRotatedSpaceIntervention(width, rank)

    assert isinstance(intervention.basis, Frame)
    intervention.basis.weight.data.copy_(frame)
    return intervention


def _rotation(state: Mapping[str, Any]) -> Vectors:
    """R of x ↦ xR, from what torch's `orthogonal` keeps of it: Tensor[width, rank].

    Raises ValueError for weights that are damaged, or whose columns are not orthonormal.
    """
    weights = {}
    for name, tensor in state.items():
        if name.startswith("rotate_layer."):
            weights[name.removeprefix("rotate_layer.")] = tensor.float()

    # torch's own parametrization makes R of its saved tensors.
    layer = nn.Module()
    try:
        layer.weight = nn.Parameter(torch.eye(*weights["parametrizations.weight.original"].shape))
        orthogonal(layer).load_state_dict(weights)
        weight = layer.weight
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"its weights are not as torch's orthogonal parametrization keeps them: {error}"
        ) from error

    assert isinstance(weight, Tensor)
    frame = weight.detach()
    dead = int((frame.abs().amax(0) == 0).sum())
    if dead:
        raise ValueError(
            f"{dead} of the {frame.shape[1]} columns of its rotation are zero, in "
            "pyvene, too. torch's Householder parametrization rounds the signs on its diagonal "
            "towards zero, and training (weight decay) has moved them."
        )

    products = frame.T @ frame
    off = (products - torch.eye(frame.shape[1])).abs().max()
    # NaN is not below, either.
    if not off < 1e-4:
        raise ValueError(
            f"the columns of its rotation are not orthonormal (off by {float(off):.1e}), "
            "or not finite."
        )
    return frame
