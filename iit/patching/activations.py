"""Read the activations of one batch at the sites of a map, in few runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from iit.batch import Batch
from iit.intervened import Activations, capture
from iit.intervened.positions import columns
from iit.network.inputs import prepare
from iit.patching.contrast import AnyNetwork, batch_rows, module_of
from iit.site import Site, resolve


class ActivationReader:
    """The activations of a batch at sites that are asked for one group after the other.

    The sites of a group are read together with as many of the following ones as `budget` bytes
    hold. So a map over all layers runs its sources once, and not once for each layer. What was read
    before is dropped.

    sites: all that will be asked for, in that order.
    """

    def __init__(
        self,
        network: AnyNetwork,
        batch: Mapping[str, Any],
        sites: Sequence[Site],
        *,
        budget: int = 2**29,
    ):
        self._network = network
        self._batch = batch
        self._sites = list(dict.fromkeys(sites))
        self._budget = budget
        self._read = Activations({})

    def at(self, sites: Sequence[Site]) -> Activations:
        """{site: Tensor[row, position, width]}, of these sites at least."""
        if not set(sites) <= set(self._read):
            # Dropped before the run, so that both are never in memory together.
            self._read = Activations({})
            self._read = activations(self._network, self._batch, self._next(sites))
        return self._read

    def _next(self, sites: Sequence[Site]) -> list[Site]:
        """These sites and the following ones, as far as the budget goes."""
        prompts = prepare(module_of(self._network), self._batch)
        together = list(dict.fromkeys(sites))
        size = sum(self._bytes(site, prompts) for site in together)
        # Sites are asked for in this order, so these are the next ones.
        for site in self._sites[self._sites.index(together[0]) :]:
            if site in together:
                continue
            size += self._bytes(site, prompts)
            if size > self._budget:
                break
            together.append(site)
        return together

    def _bytes(self, site: Site, prompts: Batch) -> int:
        """The bytes that all rows take at a site; the budget where only a run can tell."""
        width = resolve(module_of(self._network), site).width
        n_positions = columns(site, prompts).n_positions
        if width is None or n_positions is None:
            return self._budget
        # Four bytes for each number, as in fp32.
        return prompts.size * n_positions * width * 4


def activations(
    network: AnyNetwork, batch: Mapping[str, Any], sites: Sequence[Site]
) -> Activations:
    """What `capture` gives, {site: Tensor[row, position, width]}, 64 rows at a time."""
    n_rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    parts = []
    for rows in torch.arange(n_rows).split(64):
        parts.append(capture(network, batch_rows(batch, rows), sites))
    values: dict[Site, Tensor] = {}
    counts: dict[Site, Tensor | None] = {}
    for site in sites:
        # Batches differ in their longest prompt, and so in positions.
        values[site] = torch.cat(padded([part[site] for part in parts]))
        site_counts = [count for part in parts if (count := part.counts[site]) is not None]
        counts[site] = torch.cat(site_counts) if site_counts else None
    return Activations(values, counts)


def padded(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, each [row, position, width], with zeros up to the longest one's positions."""
    longest = max(tensor.shape[1] for tensor in tensors)
    return [pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in tensors]
