"""Read the activations of one batch at the sites of a map, in few runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iit.intervened import Activations, capture
from iit.intervened.positions import columns
from iit.network.inputs import prepare
from iit.patching.contrast import AnyNetwork, EncodedBatch, batch_rows, module_of
from iit.site import Site, resolve


class ActivationReader:
    """The activations of a batch at sites that are asked for one group after the other.

    The sites of a group are read together with as many of the following ones as `budget` bytes
    hold. So a map over all layers runs its sources once, and not once for each layer. What was read
    before is dropped.

    batch: the inputs, or the activations at all sites.
    sites: all that will be asked for, in that order.
    """

    def __init__(
        self,
        network: AnyNetwork,
        batch: Mapping[Any, Any],
        sites: Sequence[Site],
        *,
        budget: int = 2**29,
    ):
        self._network = network
        self._batch = batch
        self._sites = list(dict.fromkeys(sites))
        self._budget = budget
        self._read = batch if isinstance(batch, Activations) else Activations({})

    def at(self, sites: Sequence[Site]) -> Activations:
        """{site: Tensor[row, position, width]}, of these sites at least."""
        if not set(sites) <= set(self._read):
            # Dropped before the run, so that both are never in memory together.
            self._read = Activations({})
            self._read = activations(self._network, self._batch, self._next(sites))
        return self._read

    def _next(self, sites: Sequence[Site]) -> list[Site]:
        """These sites and the following ones, as far as the budget goes."""
        module = module_of(self._network)
        prompts = prepare(module, self._batch)
        following = self._sites[self._sites.index(sites[0]) :]
        together: list[Site] = []
        size = 0
        for site in dict.fromkeys([*sites, *following]):
            # Where only a run can tell the size, the site takes all that is left.
            width = resolve(module, site).width or self._budget
            n_positions = columns(site, prompts).n_positions or self._budget
            # Four bytes for each number, as in fp32.
            size += prompts.size * n_positions * width * 4
            if size > self._budget and site not in sites:
                break
            together.append(site)
        return together


def activations(network: AnyNetwork, batch: EncodedBatch, sites: Sequence[Site]) -> Activations:
    """What `capture` gives, {site: Tensor[row, position, width]}, 64 rows at a time."""
    n_rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    # The answer is run where a site is at one of its tokens.
    answer, parts = batch.get("answer"), []
    for rows in torch.arange(n_rows).split(64):
        parts.append(capture(network, batch_rows(batch, rows, answer), sites))
    values: dict[Site, Tensor] = {}
    counts: dict[Site, Tensor | None] = {}
    for site in sites:
        # Batches differ in their longest prompt, and so in positions.
        tensors = [row for part in parts for row in part[site]]
        values[site] = pad_sequence(tensors, batch_first=True)
        site_counts = [count for part in parts if (count := part.counts[site]) is not None]
        counts[site] = torch.cat(site_counts).cpu() if site_counts else None
    return Activations(values, counts)
