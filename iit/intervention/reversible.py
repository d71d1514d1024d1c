"""A basis beyond linear maps: coordinates of a trained reversible map."""

from typing import final

import torch
from torch import Tensor, nn

from iit.intervention.basis import Basis, Coordinates, Frame


@final
class Reversible(Basis):
    """c = Qᵀf(h), h' = h + (f⁻¹(f(h) + Q(c' − c)) − f⁻¹(f(h))): a reversible map f, then a frame Q.

    f is `depth` additive coupling blocks. Each block turns the activation by a fixed random
    rotation, acts on its two halves, and turns it back: y₁ = x₁ + F(x₂), y₂ = x₂ + G(y₁). F and G
    have one layer of `hidden` ReLUs and start at zero, so f starts as the identity and the basis as
    `Frame`. With depth 0 it is a `Frame`.

    Arguments:
        rank: the number of vectors of Q.

    Raises ValueError for a rank that does not fit the width, a width below 2, a negative depth, and
    no hidden units.

    References: arXiv 2507.08802; RevNet, arXiv 1707.04585.
    """

    def __init__(self, width: int, rank: int, depth: int = 1, hidden: int = 64):
        if width < 2 or depth < 0 or hidden < 1:
            raise ValueError(
                "A reversible map needs a width of at least 2, depth of at least 0 and hidden "
                f"units; got width={width}, depth={depth}, hidden={hidden}."
            )
        super().__init__(width=width, rank=rank, depth=depth, hidden=hidden)
        self.frame = Frame(width, rank)
        self.width, self.rank = width, rank
        self.blocks = nn.ModuleList(Coupling(width, hidden) for _ in range(depth))

    def coordinates(self) -> Coordinates:
        """Projection on the frame of what the map makes of the activation."""
        inner = self.frame.coordinates()

        def encode(h: Tensor) -> Tensor:
            return inner.encode(self._map(h))

        def write(h: Tensor, old: Tensor, new: Tensor) -> Tensor:
            mapped = self._map(h)
            # The difference of two ways back. Where nothing changes, the activation stays as it is,
            # however the way back rounds.
            edited = self._back(inner.write(mapped, old, new))
            return h + (edited - self._back(mapped))

        return Coordinates(encode, write)

    def _map(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h)
        return h

    def _back(self, h: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            assert isinstance(block, Coupling)
            h = block.back(h)
        return h


@final
class Coupling(nn.Module):
    """One additive coupling block; see `Reversible`."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.n_first = width // 2
        self.rotation = nn.Buffer(torch.linalg.qr(torch.randn(width, width))[0])
        self.first = _shift(width - self.n_first, hidden, self.n_first)
        self.second = _shift(self.n_first, hidden, width - self.n_first)

    def forward(self, h: Tensor) -> Tensor:
        """Tensor[…, width] → Tensor[…, width]."""
        left, right = (h @ self.rotation).tensor_split([self.n_first], -1)
        left = left + self.first(right)
        return torch.cat([left, right + self.second(left)], -1) @ self.rotation.T

    def back(self, h: Tensor) -> Tensor:
        """The inverse of `forward`."""
        left, right = (h @ self.rotation).tensor_split([self.n_first], -1)
        # The steps of `forward`, undone in reverse order.
        right = right - self.second(left)
        return torch.cat([left - self.first(right), right], -1) @ self.rotation.T


def _shift(n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    last = nn.Linear(hidden, n_out)
    # The shift starts at zero, so the block starts as the identity.
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_in, hidden), nn.ReLU(), last)
