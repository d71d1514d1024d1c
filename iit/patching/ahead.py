"""Reading ahead: the activations of one batch at the sites of many groups of cells, in few runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iit.intervened import Activations
from iit.network import Network
from iit.patching.contrast import activations
from iit.site import Site, resolve


class Ahead:
    """What a batch has at the sites that were asked for, group by group, in the order in which they are used.

    The first group that is used is read together with as many of the next ones as `budget` bytes hold: a map over all layers runs its
    sources once, and not once a layer. What lies behind is let go.
    """

    def __init__(self, network: Network | nn.Module, batch: Mapping[str, Any], *, budget: int = 2**29):
        self._network, self._batch, self._budget = network, batch, budget
        self._groups: list[tuple[Site, ...]] = []
        self._read: Activations = Activations({})
        self._stacked: tuple[int, Tensor, Tensor | None] | None = None

    def ask(self, sites: Sequence[Site]) -> int:
        """The sites of a group of cells, each cell's own; returns the group's number."""
        self._groups.append(tuple(sites))
        return len(self._groups) - 1

    def rows(self, group: int, as_site: Site, which: Tensor, pairs: Tensor) -> Activations:
        """{as_site: Tensor[row, position, width]}: row r is of the group's cell `which[r]` and of the batch's example `pairs[r]`."""
        if self._stacked is None or self._stacked[0] != group:
            self._stacked = (group, *self._stack(group))
        _, values, counts = self._stacked
        which, pairs = which.to(values.device), pairs.to(values.device)
        if counts is None:
            return Activations({as_site: values[which, pairs]})
        n = counts[which, pairs]
        return Activations({as_site: values[which, pairs, : int(n.max())]}, {as_site: n})

    def _stack(self, group: int) -> tuple[Tensor, Tensor | None]:
        """Tensor[cell, example, position, width], and how many positions there are: Tensor[cell, example]."""
        sites = self._groups[group]
        if not all(site in self._read for site in sites):
            self._read = Activations({})
            chosen, size = list(dict.fromkeys(sites)), sum(map(self._bytes, dict.fromkeys(sites)))
            for later in self._groups[group + 1 :]:
                new = [site for site in dict.fromkeys(later) if site not in chosen]
                size += sum(map(self._bytes, new))
                if size > self._budget:
                    break
                chosen += new
            self._read = activations(self._network, self._batch, chosen)
        widest = max(self._read[site].shape[1] for site in sites)
        padded = [torch.nn.functional.pad(v := self._read[site], (0, 0, 0, widest - v.shape[1])) for site in sites]
        counts = [count for site in sites if (count := self._read.counts[site]) is not None]
        return torch.stack(padded), torch.stack(counts) if len(counts) == len(sites) else None

    def _bytes(self, site: Site) -> int:
        """What the activations of all examples take, in bytes; where only a run can tell, as much as there is room for."""
        network = self._network.model if isinstance(self._network, Network) else self._network
        width = resolve(network, site).width
        tokens = self._batch.get("input_ids")
        if width is None or tokens is None:
            return self._budget
        roles, position = self._batch.get("positions") or {}, site.position
        names = position if isinstance(position, tuple) else (position,)
        n = sum(tokens.shape[1] if p is None else roles[p].shape[1] if p in roles else 1 for p in names)
        return len(tokens) * n * width * 4
