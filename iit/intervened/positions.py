"""Where a site's positions lie in a batch, and reading and writing activations there."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from iit.intervened.batch import Batch
from iit.network.answering import IGNORED
from iit.site import Site


@dataclass(frozen=True)
class Columns:
    """The columns of an activation's position axis that a site selects.

    index: Tensor[batch, n], −100 where an example has fewer; None = every position; a tuple of ints where only the run can
        tell how many positions there are (networks without tokens).
    """

    site: Site
    index: Tensor | tuple[int, ...] | None

    def counts(self) -> Int[Tensor, "batch"] | None:
        """How many positions each example has; None where only the run can tell."""
        return (self.index != IGNORED).sum(1) if isinstance(self.index, Tensor) else None

    def _index(self, activation: Tensor) -> Tensor | None:
        if not isinstance(self.index, tuple):
            return self.index
        n_positions = activation.shape[1]
        wrong = [i for i in self.index if not -n_positions <= i < n_positions]
        if wrong:
            raise ValueError(f"Site {self.site}: position {wrong[0]} is outside the activation's {n_positions} positions.")
        row = torch.tensor([i % n_positions for i in self.index], device=activation.device)
        return row.expand(activation.shape[0], -1)

    def read(self, activation: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch position width"]:
        """The activation at these columns; zeros where an example has fewer."""
        index = self._index(activation)
        if index is None:
            return activation
        picked = activation.gather(1, index.clamp(min=0).unsqueeze(-1).expand(-1, -1, activation.shape[-1]))
        return torch.where((index == IGNORED).unsqueeze(-1), torch.zeros_like(picked), picked)

    def write(
        self, activation: Float[Tensor, "batch seq width"], new: Float[Tensor, "batch position width"]
    ) -> Float[Tensor, "batch seq width"]:
        """A copy of the activation with `new` at these columns."""
        index = self._index(activation)
        if index is None:
            return new
        absent = index == IGNORED
        if not bool(absent.any()):
            return activation.scatter(1, index.unsqueeze(-1).expand_as(new), new)
        # Absent entries land in a column that is cut off again.
        longer = torch.cat([activation, torch.zeros_like(activation[:, :1])], 1)
        index = torch.where(absent, activation.shape[1], index)
        return longer.scatter(1, index.unsqueeze(-1).expand_as(new), new)[:, :-1]


def columns(site: Site, batch: Batch, active: Bool[Tensor, "batch"] | None = None) -> Columns:
    """Resolve the site's position in a batch.

    Raises ValueError for a role the batch lacks, a role that is absent in an (active) example, and positions outside an
    example's real tokens.
    """
    position = site.position
    if batch.lengths is None:
        if position is None:
            return Columns(site, None)
        if isinstance(position, str):
            if position not in batch.positions:
                raise ValueError(_no_role(site, batch))
            return Columns(site, batch.positions[position])
        return Columns(site, (position,) if isinstance(position, int) else tuple(position))
    lengths = batch.lengths
    if position is None:
        if batch.full:
            return Columns(site, None)
        steps = torch.arange(int(lengths.max()), device=lengths.device).expand(len(lengths), -1)
        return Columns(site, torch.where(steps < lengths.unsqueeze(1), steps, IGNORED))
    if isinstance(position, str):
        if active is not None and not bool(active.any()):
            return Columns(site, torch.full_like(lengths, IGNORED).unsqueeze(1))  # nobody asks where that would be
        if position == "last" and position not in batch.positions:
            return Columns(site, (lengths - 1).unsqueeze(1))
        if position not in batch.positions:
            raise ValueError(_no_role(site, batch))
        index = _packed(batch.positions[position])
        missing = (index == IGNORED).all(1) & (True if active is None else active)
        if bool(missing.any()):
            row = int(missing.nonzero()[0])
            raise ValueError(f"Site {site}: role {position!r} is absent in example {row} of the batch.")
    else:
        wanted = torch.tensor([position] if isinstance(position, int) else list(position), device=lengths.device)
        index = torch.where(wanted < 0, wanted + lengths.unsqueeze(1), wanted.expand(len(lengths), -1))
        wrong = (index < 0) | (index >= lengths.unsqueeze(1))
        if bool(wrong.any()):
            row, col = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"Site {site}: position {int(wanted[col])} is outside example {row} of the batch, which has {int(lengths[row])} tokens."
            )
    ordered = index.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != IGNORED)
    if bool(twice.any()):
        row = int(twice.any(1).nonzero()[0])
        raise ValueError(f"Site {site}: a position occurs twice in example {row}: {index[row].tolist()}.")
    return Columns(site, index)


def _packed(index: Int[Tensor, "batch n"]) -> Int[Tensor, "batch n"]:
    """The same columns, present ones first, so that equal counts mean equal places."""
    order = (index == IGNORED).int().argsort(dim=1, stable=True)
    return index.gather(1, order)


def _no_role(site: Site, batch: Batch) -> str:
    known = ", ".join(map(repr, batch.positions)) or "none"
    return f"Site {site}: the batch has no role {site.position!r}; its `positions` are: {known}."
