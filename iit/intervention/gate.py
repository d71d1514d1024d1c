"""Gates: how far each coordinate of an edit is let through, from 0 to 1."""

from abc import abstractmethod
from math import inf
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.intervention.part import Part


class Gate(Part):
    """Weights on coordinates: c' = c + gate·(target − c)."""

    @abstractmethod
    def forward(self) -> Float[Tensor, " n"] | None:
        """One weight a coordinate; None = all through."""


@final
class All(Gate):
    """Every coordinate is edited."""

    def forward(self) -> Tensor | None:
        """Nothing to weigh."""
        return None


@final
class Subset(Gate):
    """A fixed subset of the coordinates is edited. Raises ValueError for indices outside, or
    twice.
    """

    def __init__(self, n: int, indices: list[int]):
        if not indices or len(set(indices)) != len(indices) or not all(0 <= i < n for i in indices):
            raise ValueError(
                f"A subset of {n} coordinates needs different indices from 0 to {n - 1}; got "
                f"{indices}."
            )
        super().__init__(n=n, indices=list(indices))
        self.register_buffer(
            "weights", torch.zeros(n).index_fill(0, torch.tensor(indices), 1.0), persistent=False
        )
        self.weights: Tensor

    def forward(self) -> Tensor | None:
        """1 in the subset."""
        return self.weights


class SoftGate(Gate):
    """A learned gate, soft while training and hard (0 or 1) in evaluation.

    temperature: a buffer that schedules set and optimizers never see.
    """

    def __init__(self, temperature: float, **arguments: object):
        if not 0 < temperature < inf:
            raise ValueError(f"temperature={temperature} must be above 0, and finite.")
        super().__init__(**arguments, temperature=temperature)
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.temperature: Tensor

    @abstractmethod
    def logits(self) -> Float[Tensor, " n"]:
        """Above 0 where a coordinate is edited."""

    def forward(self) -> Tensor | None:
        """sigmoid(logits / temperature) in training, logits > 0 in evaluation."""
        logits = self.logits()
        return (
            torch.sigmoid(logits / self.temperature)
            if self.training
            else (logits > 0).to(logits.dtype)
        )

    def learned_rank(self) -> int:
        """How many coordinates are edited in evaluation."""
        return int((self.logits() > 0).sum())

    def penalty(self) -> Float[Tensor, ""]:
        """The soft number of edited coordinates as a share of all: what a boundary penalty
        weighs.
        """
        return torch.sigmoid(self.logits() / self.temperature).mean()


@final
class Boundary(SoftGate):
    """A learned boundary: coordinate i is edited when i + ½ < boundary·n (arXiv 2305.08809).

    The boundary is a share of the coordinates and starts at `start`; logits = boundary·n − (i + ½).
    Outside of 0 to 1 all coordinates are on one side of it; it is not held there, as no gradient
    could bring back one that is.

    Raises ValueError for a start outside 0 ≤ start ≤ 1.
    """

    def __init__(self, n: int, start: float = 0.5, temperature: float = 50.0):
        if not 0 <= start <= 1:
            raise ValueError(
                f"start={start} is the share of the coordinates that is let through at first: "
                "from 0 to 1."
            )
        super().__init__(temperature, n=n, start=start)
        self.boundary = nn.Parameter(torch.tensor(float(start)))
        self.register_buffer("steps", torch.arange(n) + 0.5, persistent=False)
        self.steps: Tensor

    def logits(self) -> Tensor:
        """Distance to the boundary, in coordinates."""
        return self.boundary * len(self.steps) - self.steps


@final
class SigmoidMask(SoftGate):
    """One learned logit a coordinate, all 0.01 at the start so that evaluation starts with every
    coordinate edited.
    """

    def __init__(self, n: int, temperature: float = 0.1):
        super().__init__(temperature, n=n)
        self.mask = nn.Parameter(torch.full((n,), 0.01))

    def logits(self) -> Tensor:
        """The mask's logits."""
        return self.mask
