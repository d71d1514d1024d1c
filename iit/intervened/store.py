"""Activations, kept: a prompt that occurs in many pairs is run once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from iit.intervened.batch import Batch
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import Columns
from iit.network.answering import IGNORED
from iit.site import ResolvedSite, Site


class ActivationStore:
    """Activations of one frozen network, keyed by prompt, site and columns; filled as prompts come.

    Reading equals `observe` on the same batch; only rows not seen before are run.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._kept: dict[tuple[Any, ...], Tensor] = {}
        self._version = _version(network)

    def __len__(self) -> int:
        return len(self._kept)

    def serves(self, network: nn.Module, batch: Batch) -> bool:
        """Whether repeating a prompt is certain to give the same numbers.

        Not so for inputs other than tokens, a network in training mode or with trainable parameters, and hooks that are not
        the engine's own.
        """
        only_tokens = set(batch.kwargs) <= {"input_ids", "attention_mask"} and batch.kwargs.get("input_ids") is not None
        frozen = not network.training and not any(p.requires_grad for p in network.parameters())
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        return network is self._network and only_tokens and frozen and not hooked

    def read(
        self,
        network: nn.Module,
        batch: Batch,
        places: dict[Site, Columns],
        *,
        grad: bool = False,
        resolved: dict[Site, ResolvedSite] | None = None,
    ) -> Activations:
        """{site: Tensor[batch, position, width]} of the batch; the same arguments as `observe`."""
        if grad or not self.serves(network, batch):
            return observe(network, batch, places, grad=grad, resolved=resolved)
        if self._version != (version := _version(network)):
            self._kept.clear()
            self._version = version
        places = {site: _explicit(place, batch) for site, place in places.items()}
        keys = {site: _keys(batch, site, place) for site, place in places.items()}
        new = [i for i in range(batch.size) if any(keys[site][i] not in self._kept for site in places)]
        if new:
            rows = torch.tensor(new, device=batch.tokens.device)
            part = Batch((), {key: value[rows] for key, value in batch.kwargs.items()})
            found = observe(network, part, {s: Columns(s, _index(p)[rows]) for s, p in places.items()}, resolved=resolved)
            for site, activation in found.items():
                for row, values in zip(new, activation, strict=True):
                    self._kept[keys[site][row]] = values[: len(keys[site][row][2])].clone()
        return Activations({site: _stacked([self._kept[k] for k in keys[site]], _index(p)) for site, p in places.items()})


def _version(network: nn.Module) -> int:
    """Grows with every in-place change of a parameter or buffer."""
    return sum(t._version for t in (*network.parameters(), *network.buffers()))


def _explicit(place: Columns, batch: Batch) -> Columns:
    """Every position, spelled out; columns of tokens come first and absent ones last in any case."""
    if isinstance(place.index, Tensor):
        return place
    steps = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return Columns(place.site, steps.expand(batch.size, -1))


def _index(place: Columns) -> Tensor:
    assert isinstance(place.index, Tensor)
    return place.index


def _keys(batch: Batch, site: Site, place: Columns) -> list[tuple[Any, ...]]:
    ids, mask = batch.tokens.tolist(), batch.kwargs.get("attention_mask")
    lengths = [len(row) for row in ids] if mask is None else mask.sum(1).tolist()
    columns = [tuple(c for c in row if c != IGNORED) for row in _index(place).tolist()]
    return [(site, tuple(row[:n]), chosen) for row, n, chosen in zip(ids, lengths, columns, strict=True)]


def _stacked(rows: list[Tensor], index: Tensor) -> Tensor:
    """Tensor[batch, position, width], zeros where an example has fewer positions."""
    stacked = pad_sequence(rows, batch_first=True)
    missing = index.shape[1] - stacked.shape[1]
    return torch.nn.functional.pad(stacked, (0, 0, 0, missing))
