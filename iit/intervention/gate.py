"""Gates: how far each coordinate of an edit moves to its target, from 0 (not at all) to 1."""

from abc import abstractmethod
from math import inf
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.intervention.part import Part


class Gate(Part):
    """c' = c + gate·(target − c), with one weight from 0 to 1 for each coordinate."""

    @abstractmethod
    def forward(self) -> Float[Tensor, " n"] | None:
        """One weight for each coordinate; None lets all of them through."""


@final
class All(Gate):
    """Every coordinate is edited."""

    def forward(self) -> Tensor | None:
        """None: there is nothing to weigh."""
        return None


@final
class Subset(Gate):
    """A fixed subset of the coordinates is edited.

    Raises ValueError for no indices, for indices outside of the coordinates, and for one that
    occurs twice.
    """

    def __init__(self, n: int, indices: list[int]):
        if not indices or len(set(indices)) != len(indices) or not all(0 <= i < n for i in indices):
            raise ValueError(
                f"A subset of {n} coordinates needs different indices from 0 to {n - 1}; "
                f"got {indices}."
            )
        super().__init__(n=n, indices=list(indices))
        weights = torch.zeros(n).index_fill(0, torch.tensor(indices), 1.0)
        # Not in the state dict: the arguments make it again.
        self.weights = nn.Buffer(weights, persistent=False)

    def forward(self) -> Tensor | None:
        """1 in the subset, else 0."""
        return self.weights


class SoftGate(Gate):
    """A learned gate, soft in training and hard (0 or 1) in evaluation.

    Arguments:
        temperature: a buffer, which schedules set and optimizers never see.

    Raises ValueError for a temperature that is not above 0 and finite.
    """

    def __init__(self, temperature: float, **arguments: object):
        if not 0 < temperature < inf:
            raise ValueError(f"temperature={temperature} must be above 0, and finite.")
        super().__init__(**arguments, temperature=temperature)
        self.temperature = nn.Buffer(torch.tensor(float(temperature)))

    @abstractmethod
    def logits(self) -> Float[Tensor, " n"]:
        """One logit for each coordinate, above 0 where it is edited."""

    def forward(self) -> Tensor | None:
        """sigmoid(logits / temperature) in training, logits > 0 in evaluation."""
        logits = self.logits()
        if self.training:
            return torch.sigmoid(logits / self.temperature)
        # A hard gate does not depend on the temperature.
        return (logits > 0).to(logits.dtype)

    def learned_rank(self) -> int:
        """How many coordinates are edited in evaluation."""
        return int((self.logits() > 0).sum())

    def penalty(self) -> Float[Tensor, ""]:
        """The soft number of edited coordinates as a share of all.

        A boundary penalty weighs this share.
        """
        return torch.sigmoid(self.logits() / self.temperature).mean()


@final
class Boundary(SoftGate):
    """A learned boundary: coordinate i is edited where i + ½ < boundary·n.

    logits = boundary·n − (i + ½)

    The boundary is a share of the coordinates and starts at `start`. Outside of 0 to 1 all
    coordinates are on one side of it. It is not clamped to that range: no gradient could move a
    clamped one back.

    Raises ValueError for a start outside 0 ≤ start ≤ 1.

    References: arXiv 2305.08809.
    """

    def __init__(self, n: int, start: float = 0.5, temperature: float = 50.0):
        if not 0 <= start <= 1:
            raise ValueError(
                f"start={start} is the share of the coordinates that is let through at "
                "first: from 0 to 1."
            )
        super().__init__(temperature, n=n, start=start)
        self.boundary = nn.Parameter(torch.tensor(float(start)))
        # The middles of the coordinates: a boundary of k/n lets exactly the first k through.
        self.steps = nn.Buffer(torch.arange(n) + 0.5, persistent=False)

    def logits(self) -> Tensor:
        """The distance to the boundary, in coordinates."""
        return self.boundary * len(self.steps) - self.steps


@final
class SigmoidMask(SoftGate):
    """One learned logit for each coordinate.

    All are 0.01 at the start, so evaluation starts with every coordinate edited.
    """

    def __init__(self, n: int, temperature: float = 0.1):
        super().__init__(temperature, n=n)
        self.mask = nn.Parameter(torch.full((n,), 0.01))

    def logits(self) -> Tensor:
        """The learned logits."""
        return self.mask
