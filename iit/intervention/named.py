"""The interventions by their usual names: each is a choice of basis, gate and operation.

They are functions that make an `Intervention`. They are written like classes, because configs, rows
and saved files name them as types.

In the formulas h is the base's activation, s the source's, and h' the new one. c and c_s are the
coordinates of h and s, and Q has orthonormal columns.
"""

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from iit.intervention.basis import Autoencoder, Frame, Identity, PrincipalComponents
from iit.intervention.gate import Boundary, SigmoidMask, Subset
from iit.intervention.intervention import Intervention
from iit.intervention.operation import (
    Add,
    Function,
    Keep,
    LearnedTarget,
    LowRankUpdate,
    Mean,
    Noise,
    Vector,
    Zero,
)
from iit.intervention.reversible import Reversible


def VanillaIntervention(
    width: int | None = None, units: list[int] | str | None = None
) -> Intervention:
    """h' = s: the whole vector is interchanged, or only some of its units.

    Arguments:
        width: of the activation; needed with `units`.
        units: a list of numbers, or "first:stop".

    Raises ValueError for units without a width, or outside of it.
    """
    if units is not None and width is None:
        raise ValueError("VanillaIntervention with units needs the width, too.")
    gate = None if units is None or width is None else Subset(width, units_of(units))
    return Intervention("VanillaIntervention", Identity(width), gate)


def units_of(units: Sequence[int] | str) -> list[int]:
    """The numbers of units, where "first:stop" is short for a range.

    Raises ValueError for another text.
    """
    if not isinstance(units, str):
        return list(units)
    first, _, stop = units.partition(":")
    if not (first.isdecimal() and stop.isdecimal()):
        raise ValueError(
            f"units={units!r}: units are a list of numbers, or 'first:stop' such as '0:16'."
        )
    return list(range(int(first), int(stop)))


def ZeroIntervention(width: int | None = None) -> Intervention:
    """h' = 0."""
    return Intervention("ZeroIntervention", Identity(width), operation=Zero())


def MeanIntervention(vector: Vector | None = None, width: int | None = None) -> Intervention:
    """h' = vector; without a vector, the mean of the source's positions."""
    return Intervention("MeanIntervention", _identity(vector, width), operation=Mean(vector))


def AdditionIntervention(
    vector: Vector | None = None, width: int | None = None, scale: float = 1.0
) -> Intervention:
    """h' = h + scale·vector; without a vector, h + scale·s."""
    return Intervention(
        "AdditionIntervention", _identity(vector, width), operation=Add(vector, scale=scale)
    )


def SubtractionIntervention(
    vector: Vector | None = None, width: int | None = None, scale: float = 1.0
) -> Intervention:
    """h' = h − scale·vector; without a vector, h − scale·s."""
    intervention = AdditionIntervention(vector, width, -scale)
    intervention.name = "SubtractionIntervention"
    return intervention


def NoiseIntervention(scale: float, seed: int = 0, width: int | None = None) -> Intervention:
    """h' = h + scale·ε with ε ~ N(0, 1), which the seed fixes for every example and every run."""
    return Intervention("NoiseIntervention", Identity(width), operation=Noise(scale, seed))


def CollectIntervention(width: int | None = None) -> Intervention:
    """h' = h: the activation is only read; see `IntervenedModel.run`."""
    return Intervention("CollectIntervention", Identity(width), operation=Keep(), kind="collect")


def SkipIntervention(width: int | None = None) -> Intervention:
    """At a block_output, h' = the block's own input, as if the block were not there."""
    return Intervention("SkipIntervention", Identity(width), kind="skip")


def LambdaIntervention(
    function: Callable[..., Tensor], needs_source: bool = False, width: int | None = None
) -> Intervention:
    """h' = function(h), or function(h, s) with `needs_source`. It cannot be saved."""
    return Intervention(
        "LambdaIntervention", Identity(width), operation=Function(function, needs_source)
    )


def RotatedSpaceIntervention(width: int, blocks: Mapping[str, int] | None = None) -> Intervention:
    """h' = h + Q(Qᵀs − Qᵀh) with a trained rotation Q.

    Without blocks the whole space is swapped, which equals vanilla patching.

    Arguments:
        blocks: {variable: rank}. Each variable has its own disjoint columns of Q and its own
            source. Only these columns are made.

    Raises ValueError for blocks that need more dimensions than there are.

    References: arXiv 2303.02536.
    """
    if blocks is not None and sum(blocks.values()) > width:
        raise ValueError(
            f"Blocks {dict(blocks)} need {sum(blocks.values())} dimensions; the space has {width}."
        )
    # Columns that no block uses are not made.
    frame = Frame(width, width if blocks is None else sum(blocks.values()))
    return Intervention("RotatedSpaceIntervention", frame, blocks=blocks)


def LowRankRotatedSpaceIntervention(width: int, rank: int) -> Intervention:
    """h' = h + Q(Qᵀs − Qᵀh) with a trained frame Q of `rank` orthonormal columns.

    References: arXiv 2303.02536.
    """
    return Intervention("LowRankRotatedSpaceIntervention", Frame(width, rank))


def BoundlessRotatedSpaceIntervention(
    width: int, start: float = 0.5, temperature: float = 50.0
) -> Intervention:
    """h' = h + Q·g⊙(Qᵀs − Qᵀh) with a trained rotation Q and a learned boundary.

    g = sigmoid((boundary·width − i − ½)/temperature) for coordinate i in training, and 0 or 1 in
    evaluation.

    References: arXiv 2305.08809.
    """
    gate = Boundary(width, start, temperature)
    return Intervention("BoundlessRotatedSpaceIntervention", Frame(width, width), gate)


def SigmoidMaskIntervention(
    width: int, temperature: float = 0.1, basis: str = "units", rank: int | None = None
) -> Intervention:
    """c' = c + g⊙(c_s − c) with a learned mask over coordinates (differential binary masking).

    g = sigmoid(mask/temperature) in training, and 0 or 1 in evaluation.

    Arguments:
        basis: "units"; "rotated" (a trained frame); or "pca" (principal components).
        rank: how many vectors a frame or the components have; by default the whole width.

    Raises ValueError for another basis, and for a rank of units.

    References: arXiv 2402.17700.
    """
    bases = {"units": Identity, "rotated": Frame, "pca": PrincipalComponents}
    if basis not in bases:
        raise ValueError(f"basis={basis!r} is none of {', '.join(bases)}.")
    if basis == "units" and rank is not None:
        raise ValueError(
            f"rank={rank}: a mask over units has all of them; rank belongs to basis=rotated "
            "and basis=pca."
        )
    n = rank or width
    coordinates = Identity(width) if basis == "units" else bases[basis](width, n)
    return Intervention("SigmoidMaskIntervention", coordinates, SigmoidMask(n, temperature))


def PCARotatedSpaceIntervention(
    width: int, rank: int, activations: Float[Tensor, "n width"] | None = None
) -> Intervention:
    """Swap the `rank` leading principal components of `activations`; nothing is trained."""
    basis = PrincipalComponents(width, rank)
    if activations is not None:
        basis.fit(activations)
    return Intervention("PCARotatedSpaceIntervention", basis)


def AutoencoderIntervention(
    width: int,
    n_features: int,
    features: list[int] | None = None,
    activation: str = "relu",
    k: int | None = None,
    centred: bool = False,
    mask: bool = False,
    temperature: float = 0.1,
    **weights: Tensor,
) -> Intervention:
    """h' = h + D(c' − c): features of a sparse autoencoder are swapped.

    The reconstruction error of the base is kept.

    Arguments:
        features: the features that are swapped; by default all.
        activation, k, centred: as `basis.Autoencoder` takes them.
        mask: whether a mask over the features is learned instead, as in `SigmoidMaskIntervention`.
        temperature: of the mask.
        weights: as `basis.Autoencoder.load` takes them.

    Raises ValueError for features beside a mask.
    """
    if mask and features is not None:
        raise ValueError(
            "Either `features` says which are swapped, or a learned `mask` does; both were given."
        )
    basis = Autoencoder(width, n_features, activation, k, centred)
    basis.load(**weights)
    gate = None
    if mask:
        gate = SigmoidMask(n_features, temperature)
    elif features is not None:
        gate = Subset(n_features, list(features))
    return Intervention("AutoencoderIntervention", basis, gate)


def JumpReLUAutoencoderIntervention(
    width: int,
    n_features: int,
    features: list[int] | None = None,
    centred: bool = False,
    mask: bool = False,
    temperature: float = 0.1,
    **weights: Tensor,
) -> Intervention:
    """`AutoencoderIntervention` with JumpReLU features: x where x > θ, else 0.

    References: arXiv 2407.14435.
    """
    intervention = AutoencoderIntervention(
        width, n_features, features, "jump_relu", None, centred, mask, temperature, **weights
    )
    intervention.name = "JumpReLUAutoencoderIntervention"
    return intervention


def RevNetIntervention(width: int, rank: int, depth: int = 1, hidden: int = 64) -> Intervention:
    """h' = f⁻¹(f(h) + Q(Qᵀf(s) − Qᵀf(h))) with a trained reversible map f.

    `rank` coordinates of f are swapped.

    Arguments:
        depth: the number of coupling blocks of f; with 0 it is the low-rank rotation.
        hidden: the number of hidden units in each block.

    References: arXiv 2507.08802.
    """
    return Intervention("RevNetIntervention", Reversible(width, rank, depth, hidden))


def LoReFTIntervention(width: int, rank: int) -> Intervention:
    """h' = h + Q(W h + b − Qᵀh), trained, without a source.

    References: arXiv 2404.03592.
    """
    return Intervention(
        "LoReFTIntervention", Frame(width, rank), operation=LearnedTarget(width, rank)
    )


def LoRAIntervention(width: int, rank: int, scale: float = 1.0) -> Intervention:
    """h' = h + scale·B A h on the activation, trained, without a source."""
    return Intervention(
        "LoRAIntervention", Identity(width), operation=LowRankUpdate(width, rank, scale)
    )


def _identity(vector: Tensor | None, width: int | None) -> Identity:
    if vector is not None and width is not None and vector.shape[-1] != width:
        raise ValueError(f"The vector has width {vector.shape[-1]}, the site {width}.")
    return Identity(width if vector is None else vector.shape[-1])
