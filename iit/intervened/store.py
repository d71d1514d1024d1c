"""Activations, kept: a prompt that occurs in many pairs is run once."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from iit.intervened.batch import Batch
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import Columns
from iit.intervened.resume import Prefix
from iit.intervened.spill import Spill
from iit.network.answering import IGNORED, head_at
from iit.network.components import blocks_of
from iit.site import ResolvedSite, Site

log = logging.getLogger(__name__)

Prompt = tuple[int, ...]


@dataclass
class _Kept:
    """Values of one prompt at one site, at the columns that were asked for."""

    columns: dict[int, int]
    values: Tensor

    def at(self, columns: tuple[int, ...]) -> Tensor:
        if columns == tuple(self.columns):
            return self.values
        return self.values[[self.columns[c] for c in columns]]


class ActivationStore:
    """Activations of one frozen network, keyed by prompt, site and columns; filled as prompts come.

    Reading equals `observe` on the same batch; only prompts not seen before are run.

    budget: bytes that are kept in memory; what comes beyond goes to memory-mapped files in `folder` (the system's for temporary
        files by default), which vanish with the store.
    """

    def __init__(self, network: nn.Module, *, budget: int = 4 * 2**30, folder: str | Path | None = None):
        self._network = network
        self._spill = Spill(budget, folder)
        self._kept: dict[tuple[Site, Prompt], _Kept] = {}
        self._caches: dict[tuple[int, Prompt], Tensor] = {}
        self._version = _version(network)
        self._told: set[str] = set()
        self._trusted: set[tuple[int, bool]] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def refuses(self, network: nn.Module, batch: Batch) -> str | None:
        """Why repeating a prompt might not give the same numbers; None where it is certain to."""
        if network is not self._network:
            return "the activation store was made for another network"
        if not set(batch.kwargs) <= {"input_ids", "attention_mask"} or batch.kwargs.get("input_ids") is None:
            return f"the inputs are not tokens alone ({', '.join(batch.kwargs)})"
        if network.training or any(p.requires_grad for p in network.parameters()):
            return "the network is not frozen in eval mode"
        if any(m._forward_hooks or m._forward_pre_hooks for m in network.modules()):
            return "hooks that are not the engine's are on the network"
        return None

    def tell(self, message: str) -> None:
        """Log which way runs go; each once."""
        if message not in self._told:
            self._told.add(message)
            log.info("%s", message)

    def is_trusted(self, layer: int, flags: Mapping[Any, Tensor | None]) -> bool:
        """Whether resuming at this block was compared with a whole run, with (some) edits active as now."""
        return (layer, _edits(flags)) in self._trusted

    def trusts(self, layer: int, flags: Mapping[Any, Tensor | None], resumed: Tensor, whole: Tensor) -> bool:
        """Compare a resumed run's logits with the whole run's; warns when they differ by more than rounding."""
        scale = float(whole.float().abs().max())
        error = float((resumed.float() - whole.float()).abs().max()) / max(scale, 1e-30)
        tolerance = 1e-4 if whole.dtype == torch.float32 else 5e-2
        if error <= tolerance:
            self._trusted.add((layer, _edits(flags)))
            return True
        warnings.warn(
            f"Resuming at block {layer} changes the logits by {error:.1e} of the largest: the whole network is run instead. "
            f"Please report this with the network's class ({type(self._network).__name__}).",
            stacklevel=3,
        )
        return False

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
        # Attention weights are as wide as the batch is long; a module may have other positions than the tokens.
        whole = any(site.component in (None, "attention_weight") for site in places)
        if grad or whole or self.refuses(network, batch) is not None:
            return observe(network, batch, places, grad=grad, resolved=resolved)
        self._check_version()
        prompts = _prompts(batch)
        places = {site: _explicit(place, batch) for site, place in places.items()}
        wanted = {site: _columns(place) for site, place in places.items()}
        new = [i for i in range(batch.size) if not all(self._has(site, prompts[i], wanted[site][i]) for site in places)]
        if new:
            part, parts = _rows(batch, new), {s: Columns(s, _index(p)[new]) for s, p in places.items()}
            found = observe(network, part, parts, resolved=resolved)
            for site, activation in found.items():
                self._keep(site, prompts, wanted[site], new, activation)
        return Activations({site: self._stacked(site, prompts, wanted[site], _index(places[site]).shape[1]) for site in places})

    def prefix(
        self, network: nn.Module, batch: Batch, layer: int, first: Tensor, stop: Tensor, resolved: dict[Site, ResolvedSite]
    ) -> Prefix:
        """What a run from block `layer` and position `first` up to `stop` finds already done; `refuses` must be None.

        first, stop: Tensor[batch], columns of the batch.
        """
        self._check_version()
        prompts, starts = _prompts(batch), first.tolist()
        site = Site("block_output", layer=layer - 1) if layer else None
        spans = zip(starts, stop.tolist(), prompts, strict=True)
        wanted = [tuple(range(start, min(end, len(prompt)))) for start, end, prompt in spans]
        # Where no block runs, nothing before matters.
        begins = starts if layer < len(blocks_of(network)[1]) else [0] * batch.size
        new = [
            i
            for i, (prompt, begin) in enumerate(zip(prompts, begins, strict=True))
            if begin > self._n_cached(layer, prompt) or (site is not None and not self._has(site, prompt, wanted[i]))
        ]
        if new:
            self._run_prefix(network, batch, layer, site, prompts, begins, new, resolved)
        hidden = None if site is None else self._stacked(site, prompts, wanted, int((stop - first).max()))
        longest = max(begins)
        if not longest:
            return Prefix(hidden, None)
        like = next(self._caches[layer, p] for p, begin in zip(prompts, begins, strict=True) if begin)
        cache = like.new_zeros(*like.shape[:2], len(prompts), like.shape[2], longest, like.shape[-1])
        for i, (prompt, begin) in enumerate(zip(prompts, begins, strict=True)):
            if begin:
                cache[:, :, i, :, longest - begin :] = self._caches[layer, prompt][..., :begin, :]
        return Prefix(hidden, cache)

    def _run_prefix(
        self,
        network: nn.Module,
        batch: Batch,
        layer: int,
        site: Site | None,
        prompts: list[Prompt],
        begins: list[int],
        new: list[int],
        resolved: dict[Site, ResolvedSite],
    ) -> None:
        """Run the prompts `new` whole, once.

        Kept are the residual stream before the block at every column, which also serves those who read a source there, and
        the keys and values before each prompt's `begins` in the blocks from it on: Tensor[block, 2, head, seq, width].
        """
        part, cache = _rows(batch, new), DynamicCache()
        part.kwargs.update(past_key_values=cache, use_cache=True)
        steps = torch.arange(part.tokens.shape[1], device=part.tokens.device).expand(part.size, -1)
        places = {} if site is None else {site: Columns(site, steps)}
        with head_at(network, steps[:, :1]):
            found = observe(network, part, places, resolved=resolved, stop_early=False)
        if site is not None:
            self._keep(site, prompts, [tuple(range(len(prompt))) for prompt in prompts], new, found[site])
        if max(begins):
            both = torch.stack([torch.stack((one.keys, one.values)) for one in _layers(cache)[layer:]])
            for n, i in enumerate(new):
                if begins[i]:
                    self._caches[layer, prompts[i]] = self._spill.keep(both[:, :, n, :, : begins[i]])

    def _n_cached(self, layer: int, prompt: Prompt) -> int:
        """Before how many of a prompt's columns keys and values are kept."""
        kept = self._caches.get((layer, prompt))
        return 0 if kept is None else kept.shape[-2]

    def _check_version(self) -> None:
        """Forget everything when a parameter or buffer has changed."""
        if self._version != (version := _version(self._network)):
            self._kept.clear()
            self._caches.clear()
            self._spill.clear()
            self._version = version

    def _has(self, site: Site, prompt: Prompt, columns: tuple[int, ...]) -> bool:
        kept = self._kept.get((_place(site), prompt))
        return kept is not None and all(c in kept.columns for c in columns)

    def _keep(self, site: Site, prompts: list[Prompt], wanted: list[tuple[int, ...]], rows: list[int], found: Any) -> None:
        for row, values in zip(rows, found, strict=True):
            columns, values = wanted[row], values[: len(wanted[row])]
            before = self._kept.get((_place(site), prompts[row]))
            if before is not None:
                more = [n for n, c in enumerate(columns) if c not in before.columns]
                columns = (*before.columns, *(columns[n] for n in more))
                values = torch.cat([before.values, values[more]])
            self._kept[_place(site), prompts[row]] = _Kept({c: n for n, c in enumerate(columns)}, self._spill.keep(values))

    def _stacked(self, site: Site, prompts: list[Prompt], wanted: list[tuple[int, ...]], n_columns: int) -> Tensor:
        """Tensor[batch, position, width], zeros where an example has fewer positions."""
        rows = [self._kept[_place(site), prompt].at(columns) for prompt, columns in zip(prompts, wanted, strict=True)]
        stacked = pad_sequence(rows, batch_first=True)
        return torch.nn.functional.pad(stacked, (0, 0, 0, n_columns - stacked.shape[1]))


def _layers(cache: DynamicCache) -> list[Any]:
    return cache.layers


def _place(site: Site) -> Site:
    """The site without its position: columns say that."""
    return replace(site, position=None)


def _version(network: nn.Module) -> int:
    """Grows with every in-place change of a parameter or buffer."""
    return sum(t._version for t in (*network.parameters(), *network.buffers()))


def _edits(flags: Mapping[Any, Tensor | None]) -> bool:
    return any(flag is None or bool(flag.any()) for flag in flags.values())


def _rows(batch: Batch, rows: list[int]) -> Batch:
    return Batch((), {key: value[rows] for key, value in batch.kwargs.items()})


def _explicit(place: Columns, batch: Batch) -> Columns:
    """Every position, spelled out; columns of tokens come first and absent ones last in any case."""
    if isinstance(place.index, Tensor):
        return place
    steps = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return Columns(place.site, steps.expand(batch.size, -1))


def _index(place: Columns) -> Tensor:
    assert isinstance(place.index, Tensor)
    return place.index


def _columns(place: Columns) -> list[tuple[int, ...]]:
    return [tuple(c for c in row if c != IGNORED) for row in _index(place).tolist()]


def _prompts(batch: Batch) -> list[Prompt]:
    """The real tokens of each example."""
    ids, mask = batch.tokens.tolist(), batch.kwargs.get("attention_mask")
    lengths = [len(row) for row in ids] if mask is None else mask.sum(1).tolist()
    return [tuple(row[:n]) for row, n in zip(ids, lengths, strict=True)]
