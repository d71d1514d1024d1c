"""Operations: what a coordinate becomes, its target."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.intervention.part import Part, checked_rank

Vector = Float[Tensor, " width"]
"""One vector of an activation's width."""


class Operation(Part):
    """(coordinates, the source's coordinates, the base activation) → target coordinates.

    Coordinates are Tensor[batch, position, n].

    Attributes:
        needs_source: whether `forward` reads the source.
    """

    needs_source: bool = False

    @abstractmethod
    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """The target coordinates.

        Arguments:
            base: the base's coordinates.
            source: the source's coordinates; None where there is no source.
            activation: the base's whole activation, Tensor[batch, position, width].
        """


@final
class Swap(Operation):
    """target = c_source: the interchange."""

    needs_source = True

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """The source's coordinates."""
        assert source is not None
        return source


class _WithVector(Operation):
    """An operation with a vector of its own, or with the source where it has none.

    Raises ValueError for a vector that has not one dimension, is not finite, or is of another
    width.
    """

    def __init__(self, vector: Tensor | None = None, width: int | None = None, **arguments: Any):
        if vector is not None:
            vector = torch.as_tensor(vector, dtype=torch.float32).clone()
            if vector.ndim != 1:
                raise ValueError(
                    f"A vector has one dimension, its width; got shape {tuple(vector.shape)}."
                )
            if not torch.isfinite(vector).all():
                raise ValueError("The vector has values that are not finite (NaN or infinity).")
            if width is not None and width != len(vector):
                raise ValueError(f"The vector has width {len(vector)}, the space {width}.")
            width = len(vector)
        super().__init__(width=width, **arguments)
        self.needs_source = width is None
        if vector is None and width is not None:
            vector = torch.zeros(width)
        self.register_buffer("vector", vector)
        self.vector: Tensor | None

    def _value(self, source: Tensor | None) -> Tensor:
        if self.vector is not None:
            return self.vector
        assert source is not None
        return source


@final
class Add(_WithVector):
    """target = c + scale·v, where v is the vector or the source."""

    def __init__(self, vector: Tensor | None = None, width: int | None = None, scale: float = 1.0):
        super().__init__(vector, width, scale=scale)
        self.scale = scale

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """The base's coordinates, shifted."""
        return base + self.scale * self._value(source)


@final
class Mean(_WithVector):
    """target = the vector; without one, the mean of the source's positions."""

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """The same value at every position."""
        if self.vector is not None:
            return self.vector.expand_as(base)
        assert source is not None
        return source.mean(1, keepdim=True).expand_as(base)


@final
class Zero(Operation):
    """target = 0."""

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(base)


@final
class Keep(Operation):
    """target = c: nothing changes."""

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """The base's coordinates."""
        return base


@final
class Noise(Operation):
    """target = c + scale·ε, where ε ~ N(0, 1) is fixed by the seed.

    There is one draw for each position and coordinate, so every example gets the same noise.

    Raises ValueError for a negative scale.
    """

    def __init__(self, scale: float, seed: int = 0):
        if scale < 0:
            raise ValueError(f"scale={scale}: the standard deviation of noise is at least 0.")
        super().__init__(scale=scale, seed=seed)
        self.scale, self.seed = scale, seed

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """The base's coordinates with noise."""
        # A new generator in each run, so that every run has the same noise.
        generator = torch.Generator().manual_seed(self.seed)
        # One column after another, so that a longer span begins with the noise of a shorter one.
        noise = torch.stack(
            [torch.randn(base.shape[2], generator=generator) for _ in range(base.shape[1])]
        )
        return base + self.scale * noise.to(base)


@final
class LearnedTarget(Operation):
    """target = W h + b: the target of LoReFT, in a frame's coordinates.

    References: arXiv 2404.03592.
    """

    def __init__(self, width: int, rank: int):
        super().__init__(width=width, rank=rank)
        self.linear = nn.Linear(width, rank)

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """A linear map of the activation."""
        return self.linear(activation)


@final
class LowRankUpdate(Operation):
    """target = c + scale·B A c: LoRA, on the activation.

    B starts at zero, so the edit starts as nothing.

    References: arXiv 2106.09685.
    """

    def __init__(self, width: int, rank: int, scale: float = 1.0):
        super().__init__(width=width, rank=checked_rank(rank, width), scale=scale)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = scale

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """The base's coordinates with the update."""
        return base + self.scale * self.up(self.down(base))


@final
class Function(Operation):
    """Any function of base and source activations. It is code, and cannot be saved."""

    def __init__(self, function: Callable[..., Tensor], needs_source: bool):
        super().__init__()
        self.function, self.needs_source = function, needs_source

    def config(self) -> dict[str, Any]:
        """Raises ValueError: a function is code."""
        raise ValueError(
            "LambdaIntervention holds a function, which is code: it cannot be saved. Use an "
            "intervention of the list."
        )

    def forward(self, base: Tensor, source: Tensor | None, activation: Tensor) -> Tensor:
        """function(base, source), or function(base) where it needs no source."""
        # `LambdaIntervention` has the identity as its basis, so these are activations. They are
        # copied, because a function may write to its arguments.
        activations = (base, source) if self.needs_source else (base,)
        return self.function(*(tensor.clone() for tensor in activations if tensor is not None))
