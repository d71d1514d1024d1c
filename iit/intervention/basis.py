"""Bases: the coordinates that an edit acts on. What a basis does not span is left untouched.

In the formulas h is the base's activation, s the source's, and h' the new one. c are the
coordinates of h, and c' the new coordinates.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite, nan
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from iit.intervention.part import Part, checked_rank
from iit.intervention.precision import widened

Vectors = Float[Tensor, "width rank"]
"""Vectors as columns."""
Square = Float[Tensor, "rank rank"]
WORST_CONDITION = 1e5
"""The largest ratio of singular values that a frame's parameter may have."""
BENT_CONDITION = 1e3
"""From this ratio on, training makes the parameter orthonormal again."""


class Coordinates(NamedTuple):
    """The two functions of a basis: from an activation to its coordinates, and back.

    Arguments:
        encode: h → c, from [..., width] to [..., n].
        write: (h, c, c') → h'.
    """

    encode: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor, Tensor], Tensor]


class Basis(Part):
    """A way to describe an activation by coordinates.

    Attributes:
        width: the width of the activation; None for any.
        rank: the number of coordinates; None for as many as the activation has.
    """

    width: int | None = None
    rank: int | None = None
    _cached: list[Coordinates] | None = None

    @abstractmethod
    def coordinates(self) -> Coordinates:
        """The two functions, with everything computed that depends on the weights alone."""

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Within the context, `ready` calls `coordinates` at most once.

        All sites and positions of a run share the result, such as an orthonormal frame.
        """
        # A context inside of another shares the result.
        if self._cached is not None:
            yield
            return
        self._cached = []
        try:
            yield
        finally:
            self._cached = None

    def ready(self) -> Coordinates:
        """What `coordinates` returns; within `caching`, what it returned first."""
        if self._cached is None:
            return self.coordinates()
        if not self._cached:
            self._cached.append(self.coordinates())
        return self._cached[0]


@final
class Identity(Basis):
    """The activation's own units. New coordinates are written as they are, bit by bit."""

    def __init__(self, width: int | None = None):
        super().__init__(width=width)
        self.width = width

    def coordinates(self) -> Coordinates:
        """c = h, and h' = c'."""
        return Coordinates(lambda h: h, lambda h, old, new: new)


@final
class Frame(Basis):
    """c = Qᵀh, h' = h + Q(c' − c) with a trainable orthonormal frame Q of `rank` vectors.

    Q is the orthonormal factor of A = QR, where R is upper triangular with a positive diagonal. The
    parameter A is [width, rank]. It starts orthonormal and uniformly random (QR of a Gaussian).
    Only the span of A matters for a swap.

    Q is computed by two Cholesky passes (CholeskyQR2), O(width·rank²) each. The first brings A near
    an orthonormal basis of its span. The second makes that basis orthonormal. They run in double
    precision; a device that has none gets a third, shifted pass.

    Raises ValueError for a rank that does not fit the width, and when A is nearly rank-deficient
    (see `WORST_CONDITION`).

    References: CholeskyQR2, arXiv 1401.2480; the shifted pass, arXiv 1809.11085.
    """

    def __init__(self, width: int, rank: int):
        super().__init__(width=width, rank=checked_rank(rank, width))
        self.width, self.rank = width, rank
        frame, _ = torch.linalg.qr(torch.randn(width, rank))
        self.weight = nn.Parameter(frame)

    def vectors(self) -> Vectors:
        """Q, with columns that are orthonormal to 1e-6, in single precision at least."""
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = widened(self.weight)
            with torch.no_grad():
                triangle = self._triangle(weight)
            # An upper triangular factor on the right leaves Q as it is, so no gradient has to go
            # through it.
            near = _solved(weight, triangle)
            vectors = _solved(near, _upper_factor(near.T @ near)[0])

            return vectors if self.weight.dtype == torch.float64 else vectors.float()

    def _triangle(self, weight: Vectors) -> Square:
        """R such that A·R⁻¹ is close to orthonormal.

        Raises ValueError when A is nearly rank-deficient.
        """
        gram = weight.T @ weight
        if weight.dtype == torch.float64:
            triangle, failed = _upper_factor(gram)
        else:
            # Single precision cannot factor the Gram matrix of an ill-conditioned A, unless it is
            # shifted. What is left has a condition number of some hundreds, which one more pass
            # removes.
            shift = 8 * torch.finfo(gram.dtype).eps * gram.diagonal().sum()
            first, failed = _upper_factor(gram + shift * torch.eye(len(gram), device=gram.device))
            near = _solved(weight, first)
            second, failed_again = _upper_factor(near.T @ near)
            triangle, failed = second @ first, failed or failed_again

        if failed or not _condition(triangle) <= WORST_CONDITION:
            raise ValueError(
                f"The frame has lost its rank: its {self.rank} vectors are nearly dependent (a "
                f"condition number above {WORST_CONDITION:.0e}) or not finite. A lower learning "
                "rate, or a lower rank, keeps them apart."
            )
        return triangle

    def straighten(self) -> None:
        """Make A orthonormal again, with the same span, where training has bent it far.

        Otherwise weights of a high rank may drift until their rank is lost.
        """
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            if _condition(self._triangle(widened(self.weight))) > BENT_CONDITION:
                self.weight.copy_(self.vectors())

    def start(self, directions: Float[Tensor, "width n"]) -> None:
        """Begin at these directions.

        For every k ≤ n the first k vectors span the first k directions. The other vectors are
        random.

        Raises ValueError for directions of another width, more of them than the rank, linearly
        dependent ones, and values that are not finite.
        """
        width, n = directions.shape
        if width != self.width or n > self.weight.shape[1]:
            raise ValueError(
                f"A frame of rank {self.rank} and width {self.width} cannot begin at {n} "
                f"directions of width {width}."
            )
        # Only the directions matter: long and short ones count alike in the test below.
        scaled = directions.float() / directions.float().norm(dim=0)
        if not torch.isfinite(scaled).all() or (
            n and float(torch.linalg.svdvals(scaled)[-1]) < 1e-5
        ):
            raise ValueError(
                "The directions that a frame begins at must be finite and linearly independent."
            )
        # Drawn on the CPU, so that the numbers are the same on every device.
        rest = torch.randn(width, self.weight.shape[1] - n).to(scaled)
        with torch.no_grad():
            frame, _ = torch.linalg.qr(torch.cat([scaled, rest], 1))
            self.weight.copy_(frame)

    def coordinates(self) -> Coordinates:
        """The orthogonal projection on the frame."""
        return _linear(self.vectors())


@final
class PrincipalComponents(Basis):
    """c = Qᵀh, h' = h + Q(c' − c) with the leading principal components Q of activations.

    Q is an orthonormal frame as in `Frame`, but fixed. In an interchange, h' = h + Q(Qᵀs − Qᵀh),
    the mean of the activations cancels.

    fitted: whether it holds components yet.
    """

    def __init__(self, width: int, rank: int):
        super().__init__(width=width, rank=checked_rank(rank, width))
        self.width, self.rank = width, rank
        self.frame = nn.Buffer(torch.eye(width, rank))
        self.fitted = nn.Buffer(torch.tensor(False))

    def coordinates(self) -> Coordinates:
        """The orthogonal projection on the components.

        Raises ValueError before there are any.
        """
        if not self.fitted:
            raise ValueError(
                "These principal components were never fitted: give activations to `fit`, or call "
                "iit.alignment.initialise, which takes those of the training bases."
            )
        return _linear(self.frame)

    def fit(self, activations: Float[Tensor, "n width"]) -> None:
        """Take the directions of greatest variance of activations, centred but not standardised.

        Raises ValueError for another width, for values that are not finite, and, unless the rank is
        the whole width, for fewer than rank + 1 activations.
        """
        if activations.shape[1] != self.width:
            raise ValueError(
                f"These components are of width {self.width}; the activations have width "
                f"{activations.shape[1]}."
            )
        self.frame = leading(activations, self.frame.shape[1]).to(self.frame.device)
        self.fitted.fill_(True)


@final
class Autoencoder(Basis):
    """c = σ(E(h − p) + e), h' = h + D(c' − c): features of a sparse autoencoder.

    The reconstruction error is kept. The weights are loaded, not trained: encoder [width,
    n_features], decoder [n_features, width], encoder_bias, decoder_bias and threshold.

    Arguments:
        activation: "relu"; "jump_relu" (x where x > θ, else 0); or "top_k" (the k largest, after
            relu).
        centred: whether p = decoder_bias; else p = 0.

    loaded: whether it holds an encoder and a decoder yet.

    Raises ValueError for another activation, and for a k that does not belong to it.

    References: JumpReLU, arXiv 2407.14435; top-k, arXiv 2406.04093.
    """

    def __init__(
        self,
        width: int,
        n_features: int,
        activation: str = "relu",
        k: int | None = None,
        centred: bool = False,
    ):
        if activation not in ("relu", "jump_relu", "top_k"):
            raise ValueError(f"activation={activation!r} is none of relu, jump_relu, top_k.")
        if (activation == "top_k") != (k is not None) or (
            k is not None and not 1 <= k <= n_features
        ):
            raise ValueError(
                f"top_k needs k between 1 and {n_features}, other activations none; got k={k} "
                f"with {activation}."
            )
        super().__init__(
            width=width, n_features=n_features, activation=activation, k=k, centred=centred
        )
        self.width, self.rank = width, n_features
        self.activation = activation
        self.k = k
        self.centred = centred
        self.encoder = nn.Buffer(torch.zeros(width, n_features))
        self.decoder = nn.Buffer(torch.zeros(n_features, width))
        self.encoder_bias = nn.Buffer(torch.zeros(n_features))
        self.decoder_bias = nn.Buffer(torch.zeros(width))
        self.threshold = nn.Buffer(torch.zeros(n_features))
        self.loaded = nn.Buffer(torch.tensor(False))

    def load(self, **weights: Tensor) -> None:
        """Take weights by name.

        Raises ValueError for unknown names, other shapes and values that are not finite.
        """
        buffers = {name: buffer for name, buffer in self.named_buffers() if name != "loaded"}
        for name, value in weights.items():
            target = buffers.get(name)
            if target is None or target.shape != value.shape:
                shapes = {key: tuple(buffer.shape) for key, buffer in buffers.items()}
                raise ValueError(
                    f"Autoencoder weight {name!r} of shape {tuple(value.shape)} does not fit; "
                    f"expected {shapes}."
                )
            if not torch.isfinite(value).all():
                raise ValueError(f"Autoencoder weight {name!r} has values that are not finite.")
            target.copy_(value)
        # Biases alone make no autoencoder.
        self.loaded.fill_(bool(self.encoder.any()) and bool(self.decoder.any()))

    def coordinates(self) -> Coordinates:
        """The features, and the decoder's change of the activation.

        Raises ValueError before there are weights.
        """
        if not self.loaded:
            raise ValueError(
                "This autoencoder holds no weights, and would change nothing: give encoder= and "
                "decoder= (and their biases), or take one from a folder with load_autoencoder "
                "(intervention=autoencoder intervention.folder=FOLDER)."
            )

        def encode(h: Tensor) -> Tensor:
            shifted = h - self.decoder_bias if self.centred else h
            before = shifted @ self.encoder + self.encoder_bias
            if self.activation == "jump_relu":
                return torch.where(before > self.threshold, before, 0.0)
            features = F.relu(before)
            if self.k is None:
                return features
            # All features but the k largest become 0.
            top = features.topk(self.k, dim=-1)
            return torch.zeros_like(features).scatter(-1, top.indices, top.values)

        return Coordinates(encode, lambda h, old, new: h + (new - old) @ self.decoder)


def leading(activations: Float[Tensor, "n width"], rank: int) -> Vectors:
    """The directions of greatest variance of activations that are centred, but not standardised.

    At the whole width, directions in which the activations do not vary complete the basis, in no
    order.

    Returns orthonormal columns, Tensor[width, rank].

    Raises ValueError with fewer than rank + 1 activations at a lower rank, and for values that are
    not finite.
    """
    few = len(activations) <= rank
    if few and rank < activations.shape[1]:
        raise ValueError(
            f"PCA of rank {rank} needs more than {rank} activations; got {len(activations)}. Lower "
            "the rank (rank=, or intervention.rank= of a mask), or sample more training pairs "
            "(data.n_train=)."
        )
    if not torch.isfinite(activations).all():
        raise ValueError("PCA of activations that are not all finite (NaN or infinity).")
    centred = activations.float() - activations.float().mean(0)
    # Rows of the right factor, by falling variance; with few activations the full matrix completes
    # the basis.
    return torch.linalg.svd(centred, full_matrices=few)[2][:rank].T.contiguous()


def _upper_factor(gram: Square) -> tuple[Square, bool]:
    """(R with RᵀR = gram, whether there is no such R)."""
    factor, info = torch.linalg.cholesky_ex(gram)
    return factor.mT, bool(info)


def _solved(columns: Vectors, triangle: Square) -> Vectors:
    """columns · R⁻¹."""
    return torch.linalg.solve_triangular(triangle, columns, upper=True, left=False)


def _condition(triangle: Square) -> float:
    """An upper bound of R's condition number.

    Where that bound is above `WORST_CONDITION`, the condition number itself is returned.
    """
    identity = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
    inverse = torch.linalg.solve_triangular(triangle, identity, upper=True)
    bound = float(triangle.norm() * inverse.norm())
    if bound <= WORST_CONDITION:
        return bound
    # The bound is at most rank times too large. Singular values cost more, and are rarely needed.
    values = (
        torch.linalg.svdvals(triangle.cpu()) if isfinite(bound) else triangle.new_full((2,), nan)
    )
    return float(values[0] / values[-1])


def _linear(frame: Vectors) -> Coordinates:
    return Coordinates(lambda h: h @ frame, lambda h, old, new: h + (new - old) @ frame.T)
