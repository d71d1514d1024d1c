"""Activations, kept: a prompt that occurs in many pairs is run once."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from iit.intervened.batch import Batch, Inputs, prepare
from iit.intervened.kept import Kept, Prompt
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import Columns
from iit.intervened.resume import Prefix
from iit.intervened.watched import Watched
from iit.network.answering import IGNORED, head_at
from iit.network.components import blocks_of
from iit.site import ResolvedSite, Site, resolve

log = logging.getLogger(__name__)

N_CHANGES = 16
"""How often a network may change before its runs are no longer kept."""


class ActivationStore:
    """Activations of one frozen network, keyed by prompt, site and columns; filled as prompts come,
    or up front by `fill`.

    Reading equals `observe` on the same batch; only prompts not seen before are run. Everything is
    forgotten when the network has changed: with every batch most changes are noticed, by `check`
    all of the weights'. What neither notices says `Watched`: methods replaced on a class, insides
    of objects that modules hold, settings of libraries.

    budget: bytes that are kept where the network is; what comes beyond goes to memory-mapped files
        in `folder` (the system's for temporary files by default), which vanish with the store.
    shelf: a folder in which everything that was run is kept, for the other jobs of a sweep and for
        later processes. Values are those of the batch in which a prompt was first run: figures may
        differ in the last bits from a run without a shelf.
    layers: the blocks at which runs will resume, in a sweep over them: a prompt is then run once
        for all.
    under: the context in which prompts are run, where all runs share edits of the embedding
        (`IntervenedModel`'s `stored`). What `read` gives is of runs without it, and not kept.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        budget: int = 4 * 2**30,
        folder: str | Path | None = None,
        shelf: str | Path | None = None,
        layers: Iterable[int] = (),
        under: Callable[[Batch], AbstractContextManager[Any]] | None = None,
    ):
        self._network = network
        self._under = under
        self.layers = frozenset(layers)
        self._kept = Kept(budget, folder, shelf)
        self._resolved: dict[Site, ResolvedSite] = {}
        self._told: set[str] = set()
        self._trusted: set[tuple[int, bool]] = set()
        self._refusal: str | None = None
        self._n_changes = 0
        self._begin()

    def __len__(self) -> int:
        return len(self._kept)

    def refuses(self, network: nn.Module, batch: Batch) -> str | None:
        """Why repeating a prompt might not give the same numbers; None where it is certain to."""
        if network is not self._network:
            return "the activation store was made for another network"
        if (
            not set(batch.kwargs) <= {"input_ids", "attention_mask"}
            or batch.kwargs.get("input_ids") is None
        ):
            return f"the inputs are not tokens alone ({', '.join(batch.kwargs)})"
        if self._refusal is None:
            self._renew(self._watched.change())
        return self._refusal or self._watched.refusal()

    def check(self) -> None:
        """Read every byte of the network's weights, and forget everything where one has changed.

        What else is noticed, with every batch and without asking, says `Watched`. Fits, evaluations
        and patching check when they begin.
        """
        self._renew("its weights" if self._watched.content_changed() else None)

    def tell(self, message: str) -> None:
        """Log which way runs go; each once."""
        if message not in self._told:
            self._told.add(message)
            log.info("%s", message)

    def is_trusted(self, layer: int, flags: Mapping[Any, Tensor | None]) -> bool:
        """Whether resuming at this block was compared with a whole run, with (some) edits active as
        now.
        """
        return (layer, _edits(flags)) in self._trusted

    def trusts(
        self, layer: int, flags: Mapping[Any, Tensor | None], resumed: Tensor, whole: Tensor
    ) -> bool:
        """Compare a resumed run's logits with the whole run's; warns when they differ by more than
        rounding, and refuses from then on.
        """
        scale = float(whole.float().abs().max())
        error = float((resumed.float() - whole.float()).abs().max()) / max(scale, 1e-30)
        tolerance = 1e-4 if whole.dtype == torch.float32 else 5e-2
        if error <= tolerance:
            self._trusted.add((layer, _edits(flags)))
            return True
        warnings.warn(
            f"Resuming at block {layer} changes the logits by {error:.1e} of the largest: the "
            "whole network is run instead. "
            f"Please report this with the network's class ({type(self._network).__name__}).",
            stacklevel=3,
        )
        self._refusal = f"resuming at block {layer} had changed the logits"
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
        # Attention weights are as wide as the batch is long; a module may have other positions than
        # the tokens.
        whole = any(site.component in (None, "attention_weight") for site in places)
        if grad or whole or self._under is not None or self.refuses(network, batch) is not None:
            return observe(network, batch, places, grad=grad, resolved=resolved)
        prompts = _prompts(batch)
        places = {site: _explicit(place, batch) for site, place in places.items()}
        wanted = {site: _columns(place) for site, place in places.items()}
        for site in places:
            layer = next(
                (layer for layer in self.layers if _before(layer) == replace(site, position=None)),
                None,
            )
            # a prompt that is a source here will be a base elsewhere in the sweep
            if layer is not None:
                self._run_new(network, batch, layer, prompts, [0] * batch.size, wanted[site])
        new = {
            (prompts[i], *(wanted[site][i] for site in places)): i
            for i in range(batch.size)
            if not all(self._kept.has(site, prompts[i], wanted[site][i]) for site in places)
        }
        if new:
            rows = list(new.values())
            part, parts = (
                _rows(batch, rows),
                {s: Columns(s, _index(p)[rows]) for s, p in places.items()},
            )
            found = observe(network, part, parts, resolved=resolved)
            for site, activation in found.items():
                for i, values in zip(rows, activation, strict=True):
                    self._kept.add(site, prompts[i], wanted[site][i], values)
            self._kept.shelve()
        return Activations(
            {
                site: self._stacked(site, prompts, wanted[site], _index(place))
                for site, place in places.items()
            }
        )

    def prefix(
        self, network: nn.Module, batch: Batch, layer: int, first: Tensor, stop: Tensor
    ) -> Prefix:
        """What a run from block `layer` and position `first` up to `stop` finds already done;
        `refuses` must be None.

        first, stop: Tensor[batch], columns of the batch.
        """
        prompts, starts = _prompts(batch), first.tolist()
        spans = zip(starts, stop.tolist(), prompts, strict=True)
        wanted = [tuple(range(start, min(end, len(prompt)))) for start, end, prompt in spans]
        # Where no block runs, nothing before matters.
        begins = starts if layer < len(blocks_of(network)[1]) else [0] * batch.size
        self._run_new(network, batch, layer, prompts, begins, wanted)
        site, index = _before(layer), first.unsqueeze(1).expand(-1, int((stop - first).max()))
        hidden = None if site is None else self._stacked(site, prompts, wanted, index)
        return Prefix(hidden, self._kept.stacked_caches(layer, prompts, begins, first.device))

    def fill(self, batches: Iterable[Inputs], *, told: str = "Running prompts") -> None:
        """Run every prompt of the batches that is not kept, once for all `layers`; a progress bar
        tells how far it is.

        Raises ValueError without `layers`, and where runs cannot resume.
        """
        if not self.layers:
            raise ValueError(
                "Nothing says what to keep: make the store with `layers`, the blocks at which "
                "runs will resume."
            )
        for inputs in track(list(batches), told, transient=True):
            batch = prepare(self._network, inputs)
            why = self.refuses(self._network, batch)
            if why is not None:
                raise ValueError(f"Prompts cannot be run up front: {why}.")
            prompts = _prompts(batch)
            for layer in sorted(self.layers):
                columns = [tuple(range(len(prompt))) for prompt in prompts]
                self._run_new(
                    self._network,
                    batch,
                    layer,
                    prompts,
                    [len(prompt) - 1 for prompt in prompts],
                    columns,
                )

    def _run_new(
        self,
        network: nn.Module,
        batch: Batch,
        layer: int,
        prompts: list[Prompt],
        begins: list[int],
        wanted: list[tuple[int, ...]],
    ) -> None:
        """Run the prompts whole, once each, of which is not kept what a run from `layer` on needs.

        That is the keys and values before `begins`, and the residual stream before the block at the
        columns `wanted`. Kept is the latter at every column, which also serves those who read a
        source there; and what `self.layers` will need.
        """
        site = _before(layer)
        new: dict[Prompt, int] = {}
        for i, (prompt, begin) in enumerate(zip(prompts, begins, strict=True)):
            if not self._kept.has_cache(layer, prompt, begin) or (
                site and not self._kept.has(site, prompt, wanted[i])
            ):
                new[prompt] = i
        if not new:
            return
        rows = list(new.values())
        part, cache = _rows(batch, rows), DynamicCache()
        part.kwargs.update(past_key_values=cache, use_cache=True)
        steps = torch.arange(part.tokens.shape[1], device=part.tokens.device).expand(part.size, -1)
        sites = [site for site in map(_before, sorted({layer, *self.layers})) if site is not None]
        for site in sites:
            self._resolved.setdefault(site, resolve(network, site))
        with self._under(part) if self._under else nullcontext(), head_at(network, steps[:, :1]):
            places = {site: Columns(site, steps) for site in sites}
            found = observe(network, part, places, resolved=self._resolved, stop_early=False)
        for site in sites:
            for prompt, values in zip(new, found[site], strict=True):
                self._kept.add(site, prompt, tuple(range(len(prompt))), values)
        # What is kept of a prompt only grows: edits that take turns do not run it again and again.
        start, before = min({layer, *self.layers}), dict.fromkeys(new, 0)
        for prompt, begin in zip(prompts, begins, strict=True):
            if prompt in before:
                before[prompt] = len(prompt) - 1 if self.layers else max(begin, before[prompt])
        for prompt, known in (
            (prompt, self._kept.caches[prompt]) for prompt in new if prompt in self._kept.caches
        ):
            start, before[prompt] = min(start, known.first), max(before[prompt], known.n_columns)
        if any(before.values()) and start < len(_layers(cache)):
            both = torch.stack(
                [torch.stack((one.keys, one.values)) for one in _layers(cache)[start:]]
            )
            for n, (prompt, begin) in enumerate(before.items()):
                if begin:
                    self._kept.add_cache(start, prompt, both[:, :, n, :, :begin])
        self._kept.shelve()

    def _renew(self, change: str | None) -> None:
        """Forget everything when something has changed."""
        if change is not None:
            log.info(
                "The network has changed (%s): what was kept of its runs is forgotten.", change
            )
            self._n_changes += 1
            if self._n_changes == N_CHANGES:
                self._refusal = f"the network has changed {N_CHANGES} times (at last {change})"
            self._begin()

    def _begin(self) -> None:
        self._watched = Watched(self._network)
        self._kept.begin(self._watched)
        self._resolved.clear()
        self._trusted.clear()

    def _stacked(
        self, site: Site, prompts: list[Prompt], wanted: list[tuple[int, ...]], index: Tensor
    ) -> Tensor:
        """Tensor[batch, position, width], as many positions as the index has; zeros where an
        example has fewer.
        """
        found = self._kept.stacked(site, prompts, wanted, index.device)
        return torch.nn.functional.pad(found, (0, 0, 0, index.shape[1] - found.shape[1]))


def _before(layer: int) -> Site | None:
    """Where the residual stream before a block is read; None for the first one."""
    return Site("block_output", layer=layer - 1) if layer else None


def _layers(cache: DynamicCache) -> list[Any]:
    return cache.layers


def _edits(flags: Mapping[Any, Tensor | None]) -> bool:
    return any(flag is None or bool(flag.any()) for flag in flags.values())


def _rows(batch: Batch, rows: list[int]) -> Batch:
    return Batch((), {key: value[rows] for key, value in batch.kwargs.items()})


def _explicit(place: Columns, batch: Batch) -> Columns:
    """Every position, spelled out; columns of tokens come first and absent ones last in any
    case.
    """
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
