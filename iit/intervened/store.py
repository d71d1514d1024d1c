"""A store of activations: a prompt that occurs in many pairs is run once."""

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
from iit.intervened.contents import PromptTokens, StoreContents
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import SiteColumns
from iit.intervened.resume import Prefix
from iit.intervened.snapshot import NetworkSnapshot
from iit.network.answering import IGNORED, head_at
from iit.network.components import blocks_of
from iit.site import ResolvedSite, Site, resolve

log = logging.getLogger(__name__)

N_CHANGES = 16
"""After so many changes of the network its runs are no longer kept."""


class ActivationStore:
    """Activations of one frozen network, keyed by prompt, site and columns.

    It is filled as prompts come, or up front by `fill`. Reading equals `observe` on the same batch;
    only prompts that are not kept are run. Everything is forgotten when the network has changed.
    Most changes are noticed with every batch, and any change of the weights by `check`.
    `NetworkSnapshot` says what neither notices: methods that were replaced on a class, insides of
    objects that modules hold, settings of libraries.

    Arguments:
        budget: how many bytes are kept where the network is. What comes beyond goes to
            memory-mapped files, which vanish with the store.
        folder: where these files lie; by default the system's folder for temporary files.
        shelf: a folder in which everything that was run is kept, for the other jobs of a sweep and
            for later processes. Values are those of the batch in which a prompt was first run.
            Figures may differ in the last bits from a run without a shelf.
        layers: the blocks at which the runs of a sweep will resume. A prompt is then run once for
            all of them.
        under: the context in which prompts are run, where all runs share edits of the embedding
            (`stored` of an `IntervenedModel`). What `read` returns is of runs without this context,
            and is not kept.
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
        self._contents = StoreContents(budget, folder, shelf)
        self._resolved: dict[Site, ResolvedSite] = {}
        self._messages: set[str] = set()
        self._trusted: set[tuple[int, bool]] = set()
        self._refusal: str | None = None
        self._n_changes = 0
        self._begin()

    def __len__(self) -> int:
        return len(self._contents)

    def refuses(self, network: nn.Module, batch: Batch) -> str | None:
        """Why repeating a prompt might not give the same numbers; None where it surely does."""
        if network is not self._network:
            return "the activation store was made for another network"
        if (
            not set(batch.kwargs) <= {"input_ids", "attention_mask"}
            or batch.kwargs.get("input_ids") is None
        ):
            return f"the inputs are not tokens alone ({', '.join(batch.kwargs)})"
        # A refusal is for good: the network need not be looked at any more.
        if self._refusal is None:
            self._renew(self._snapshot.change())
        return self._refusal or self._snapshot.refusal()

    def check(self) -> None:
        """Read every byte of the network's weights, and forget everything where one has changed.

        Fits, evaluations and patching check when they begin. `NetworkSnapshot` says which other
        changes are noticed with every batch.
        """
        self._renew("its weights" if self._snapshot.content_changed() else None)

    def tell(self, message: str) -> None:
        """Log which way runs go; each message once."""
        if message not in self._messages:
            self._messages.add(message)
            log.info("%s", message)

    def is_trusted(self, layer: int, flags: Mapping[Any, Tensor | None]) -> bool:
        """Whether resuming at this block was compared with a whole run.

        What counts is a comparison with edits active (or with none active), as they are now.
        """
        return (layer, _edits(flags)) in self._trusted

    def trusts(
        self, layer: int, flags: Mapping[Any, Tensor | None], resumed: Tensor, whole: Tensor
    ) -> bool:
        """Compare the logits of a resumed run with those of the whole run.

        Where they differ by more than rounding, this warns, and the store refuses from then on.
        """
        # The error is relative to the largest logit.
        scale = float(whole.float().abs().max())
        error = float((resumed.float() - whole.float()).abs().max()) / max(scale, 1e-30)
        # Half precision rounds far more.
        tolerance = 1e-4 if whole.dtype == torch.float32 else 5e-2
        if error <= tolerance:
            self._trusted.add((layer, _edits(flags)))
            return True
        warnings.warn(
            f"Resuming at block {layer} changes the logits by {error:.1e} of the largest: the "
            "whole network is run instead. Please report this with the network's class "
            f"({type(self._network).__name__}).",
            stacklevel=3,
        )
        self._refusal = f"resuming at block {layer} had changed the logits"
        return False

    def read(
        self,
        network: nn.Module,
        batch: Batch,
        places: dict[Site, SiteColumns],
        *,
        grad: bool = False,
        resolved: dict[Site, ResolvedSite] | None = None,
    ) -> Activations:
        """{site: Tensor[batch, position, width]} of the batch, with the arguments of `observe`."""
        # These are not kept by token: attention weights are as wide as their batch is long, and an
        # arbitrary module may have positions of its own.
        whole = any(site.component in (None, "attention_weight") for site in places)
        if grad or whole or self._under is not None or self.refuses(network, batch) is not None:
            return observe(network, batch, places, grad=grad, resolved=resolved)
        prompts = _prompts(batch)

        # Columns are counted from the start, so they mean the same in every batch.
        places = {site: _explicit(site_columns, batch) for site, site_columns in places.items()}
        wanted = {site: _columns(site_columns) for site, site_columns in places.items()}
        for site in places:
            layer = next(
                (layer for layer in self.layers if _before(layer) == replace(site, position=None)),
                None,
            )
            # A prompt that is a source in this run is a base in others of the sweep: it is run
            # whole now, once for both.
            if layer is not None:
                self._run_new(network, batch, layer, prompts, [0] * batch.size, wanted[site])

        # One row for each prompt and choice of columns that is not kept, however often it occurs.
        new = {
            (prompts[i], *(wanted[site][i] for site in places)): i
            for i in range(batch.size)
            if not all(self._contents.has(site, prompts[i], wanted[site][i]) for site in places)
        }
        if new:
            rows = list(new.values())
            part = _rows(batch, rows)
            part_places = {s: SiteColumns(s, _index(p)[rows]) for s, p in places.items()}
            activations = observe(network, part, part_places, resolved=resolved)
            for site, activation in activations.items():
                for i, values in zip(rows, activation, strict=True):
                    self._contents.add(site, prompts[i], wanted[site][i], values)
            self._contents.shelve()

        return Activations(
            {
                site: self._stacked(site, prompts, wanted[site], _index(site_columns))
                for site, site_columns in places.items()
            }
        )

    def prefix(
        self, network: nn.Module, batch: Batch, layer: int, first: Tensor, stop: Tensor
    ) -> Prefix:
        """What a run from block `layer` on, over the columns `first` to `stop`, finds already done.

        Only to be called where `refuses` is None.

        Arguments:
            first, stop: Tensor[batch], columns of the batch.
        """
        prompts, starts = _prompts(batch), first.tolist()
        spans = zip(starts, stop.tolist(), prompts, strict=True)
        # A span may end behind its prompt, where another in the batch is longer.
        wanted = [tuple(range(start, min(end, len(prompt)))) for start, end, prompt in spans]
        # Where no block runs, nothing attends to earlier tokens.
        begins = starts if layer < len(blocks_of(network)[1]) else [0] * batch.size
        self._run_new(network, batch, layer, prompts, begins, wanted)
        site = _before(layer)
        index = first.unsqueeze(1).expand(-1, int((stop - first).max()))
        # Before the first block there is no stream to put in: it embeds the tokens itself.
        hidden = None if site is None else self._stacked(site, prompts, wanted, index)
        return Prefix(hidden, self._contents.stacked_caches(layer, prompts, begins, first.device))

    def fill(self, batches: Iterable[Inputs], *, told: str = "Running prompts") -> None:
        """Run every prompt of the batches that is not kept, once for all `layers`.

        Arguments:
            told: what the progress bar says.

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
                    # Later runs may begin at any column up to the last token.
                    [len(prompt) - 1 for prompt in prompts],
                    columns,
                )

    def _run_new(
        self,
        network: nn.Module,
        batch: Batch,
        layer: int,
        prompts: list[PromptTokens],
        begins: list[int],
        wanted: list[tuple[int, ...]],
    ) -> None:
        """Run whole, and once, each prompt that lacks what a run from block `layer` on needs.

        It needs the keys and values before `begins`, and the residual stream before the block at
        the columns `wanted`. The residual stream is kept at every column, because others may read a
        source there. What `self.layers` will need is kept, too.
        """
        site = _before(layer)
        new: dict[PromptTokens, int] = {}
        for i, (prompt, begin) in enumerate(zip(prompts, begins, strict=True)):
            if not self._contents.has_cache(layer, prompt, begin) or (
                site and not self._contents.has(site, prompt, wanted[i])
            ):
                # A prompt that occurs in several rows is run once.
                new[prompt] = i

        if not new:
            return
        rows = list(new.values())
        part, cache = _rows(batch, rows), DynamicCache()

        # transformers fills the cache with keys and values as the blocks run.
        part.kwargs.update(past_key_values=cache, use_cache=True)
        steps = torch.arange(part.tokens.shape[1], device=part.tokens.device).expand(part.size, -1)
        sites = [site for site in map(_before, sorted({layer, *self.layers})) if site is not None]
        for site in sites:
            self._resolved.setdefault(site, resolve(network, site))

        # Nothing reads the logits: the head runs at one column only.
        with self._under(part) if self._under else nullcontext(), head_at(network, steps[:, :1]):
            places = {site: SiteColumns(site, steps) for site in sites}
            activations = observe(network, part, places, resolved=self._resolved, stop_early=False)

        for site in sites:
            for prompt, values in zip(new, activations[site], strict=True):
                self._contents.add(site, prompt, tuple(range(len(prompt))), values)

        # What is kept of a prompt only grows. Otherwise edits that take turns would run it again
        # and again. `start` is the first block whose keys and values are kept; `before` says of
        # how many columns.
        start = min({layer, *self.layers})
        before = dict.fromkeys(new, 0)
        for prompt, begin in zip(prompts, begins, strict=True):
            if prompt in before:
                before[prompt] = len(prompt) - 1 if self.layers else max(begin, before[prompt])

        for prompt in new:
            stored = self._contents.caches.get(prompt)
            if stored is not None:
                start = min(start, stored.first)
                before[prompt] = max(before[prompt], stored.n_columns)

        if any(before.values()) and start < len(_layers(cache)):
            # Tensor[block, 2, prompt, head, seq, width]
            keys_values = torch.stack(
                [
                    torch.stack((cache_layer.keys, cache_layer.values))
                    for cache_layer in _layers(cache)[start:]
                ]
            )
            for n, (prompt, begin) in enumerate(before.items()):
                if begin:
                    self._contents.add_cache(start, prompt, keys_values[:, :, n, :, :begin])
        self._contents.shelve()

    def _renew(self, change: str | None) -> None:
        """Forget everything where something has changed."""
        if change is not None:
            log.info(
                "The network has changed (%s): what was kept of its runs is forgotten.", change
            )
            self._n_changes += 1
            if self._n_changes == N_CHANGES:
                self._refusal = f"the network has changed {N_CHANGES} times (at last {change})"
            # What was kept is of the network before its change.
            self._begin()

    def _begin(self) -> None:
        self._snapshot = NetworkSnapshot(self._network)
        self._contents.begin(self._snapshot)
        # Modules may have been replaced, and comparisons were made before the change.
        self._resolved.clear()
        self._trusted.clear()

    def _stacked(
        self, site: Site, prompts: list[PromptTokens], wanted: list[tuple[int, ...]], index: Tensor
    ) -> Tensor:
        """Tensor[batch, position, width], with as many positions as the index has.

        An example that has fewer gets zeros.
        """
        stacked = self._contents.stacked(site, prompts, wanted, index.device)
        return torch.nn.functional.pad(stacked, (0, 0, 0, index.shape[1] - stacked.shape[1]))


def _before(layer: int) -> Site | None:
    """Where the residual stream before a block is read; None for the first block."""
    return Site("block_output", layer=layer - 1) if layer else None


def _layers(cache: DynamicCache) -> list[Any]:
    return cache.layers


def _edits(flags: Mapping[Any, Tensor | None]) -> bool:
    """Whether any edit is active in any example."""
    return any(flag is None or bool(flag.any()) for flag in flags.values())


def _rows(batch: Batch, rows: list[int]) -> Batch:
    return Batch((), {key: value[rows] for key, value in batch.kwargs.items()})


def _explicit(site_columns: SiteColumns, batch: Batch) -> SiteColumns:
    """The same columns with every position written out as one.

    Columns of tokens come first and absent ones last in any case.
    """
    if isinstance(site_columns.index, Tensor):
        return site_columns
    steps = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return SiteColumns(site_columns.site, steps.expand(batch.size, -1))


def _index(site_columns: SiteColumns) -> Tensor:
    assert isinstance(site_columns.index, Tensor)
    return site_columns.index


def _columns(site_columns: SiteColumns) -> list[tuple[int, ...]]:
    return [tuple(c for c in row if c != IGNORED) for row in _index(site_columns).tolist()]


def _prompts(batch: Batch) -> list[PromptTokens]:
    """The real tokens of each example."""
    ids = batch.tokens.tolist()
    mask = batch.kwargs.get("attention_mask")
    lengths = [len(row) for row in ids] if mask is None else mask.sum(1).tolist()
    return [tuple(row[:n]) for row, n in zip(ids, lengths, strict=True)]
