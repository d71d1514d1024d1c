"""Source activations, kept: a prompt that is the source of many pairs is run once."""

from typing import Any

import torch
from torch import Tensor, nn

from iit.intervened.batch import Batch
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import Columns
from iit.site import ResolvedSite, Site


class SourceStore:
    """Activations of one frozen network, keyed by prompt, site and columns; filled as prompts come.

    Reading equals `observe` on the same batch; only rows not seen before are run. Nothing is kept where repeating a prompt
    need not give the same numbers: inputs other than tokens, a network in training mode, trainable parameters, or hooks that
    are not the engine's own.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._kept: dict[tuple[Any, ...], Tensor] = {}
        self._version = _version(network)

    def __len__(self) -> int:
        return len(self._kept)

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
        if grad or network is not self._network or not _repeats(network, batch):
            return observe(network, batch, places, grad=grad, resolved=resolved)
        if self._version != (version := _version(network)):
            self._kept.clear()
            self._version = version
        keys = {site: _keys(batch, site, place) for site, place in places.items()}
        new = [i for i in range(batch.size) if any(keys[site][i] not in self._kept for site in places)]
        if new:
            rows = torch.tensor(new, device=batch.tokens.device)
            part = Batch((), {key: value[rows] for key, value in batch.kwargs.items()}, lengths=_rows(batch.lengths, rows))
            found = observe(network, part, {s: _place_rows(p, rows) for s, p in places.items()}, resolved=resolved)
            for site, activation in found.items():
                for row, values in zip(new, activation, strict=True):
                    self._kept[keys[site][row]] = values.clone()
        return Activations({site: torch.stack([self._kept[key] for key in keys[site]]) for site in places})


def _repeats(network: nn.Module, batch: Batch) -> bool:
    only_tokens = set(batch.kwargs) <= {"input_ids", "attention_mask"} and batch.kwargs.get("input_ids") is not None
    frozen = not network.training and not any(p.requires_grad for p in network.parameters())
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    return only_tokens and frozen and not hooked


def _version(network: nn.Module) -> int:
    """Grows with every in-place change of a parameter or buffer."""
    return sum(t._version for t in (*network.parameters(), *network.buffers()))


def _keys(batch: Batch, site: Site, place: Columns) -> list[tuple[Any, ...]]:
    assert batch.lengths is not None
    ids, lengths = batch.tokens.tolist(), batch.lengths.tolist()
    index = place.index.tolist() if isinstance(place.index, Tensor) else [place.index] * batch.size
    # The width of the index belongs to the key: it is the number of rows that are kept.
    return [(site, tuple(row[:n]), str(columns)) for row, n, columns in zip(ids, lengths, index, strict=True)]


def _place_rows(place: Columns, rows: Tensor) -> Columns:
    return Columns(place.site, _rows(place.index, rows) if isinstance(place.index, Tensor) else place.index)


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values[rows]
