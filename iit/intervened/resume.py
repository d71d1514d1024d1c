"""Resuming a run at the first edited block and position.

What comes before is the same for every edit, and is not run again.
"""

import inspect
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import DynamicCache, DynamicLayer

from iit.batch import IGNORED, Batch
from iit.intervened.edit import Edit, sites_of
from iit.intervened.positions import SiteColumns
from iit.network.components import blocks_of, transformer_in
from iit.network.dimensions import device_of
from iit.network.hooks import at_input
from iit.network.structure import evaluating, few_tokens
from iit.network.survey import Survey


class Prefix(NamedTuple):
    """What earlier runs have left of a batch, before its suffixes.

    Arguments:
        hidden: Tensor[batch, seq, width], the residual stream before the first block that runs, at
            the suffixes' tokens; None when that is the first block of all.
        cache: Tensor[block, 2, batch, head, seq, width], keys and values of the tokens before the
            suffixes in the blocks that run, right-aligned; None when no token comes before.
    """

    hidden: Tensor | None
    cache: Tensor | None


@dataclass(frozen=True)
class Suffix:
    """What is left to run of a batch.

    Arguments:
        layer: the first block that runs.
        batch: the tokens of each example from its first edited position on. Its keyword inputs hold
            the cache of the tokens before.
        first: Tensor[batch], that position.
        hidden: Tensor[batch, seq, width], the residual stream before block `layer` at these tokens;
            None when `layer` is 0.
    """

    layer: int
    batch: Batch
    first: Tensor
    hidden: Tensor | None

    def renumbered_site(self, site_columns: SiteColumns, rows: slice) -> SiteColumns:
        """The site's columns, counted from the suffix's start."""
        if site_columns.index is None:
            return site_columns
        return SiteColumns(site_columns.site, self.renumbered(site_columns.index, rows))

    def renumbered(self, index: Tensor, rows: slice = slice(None)) -> Tensor:
        """Columns of (some rows of) the batch, counted from the suffix's start; −100 stays."""
        return torch.where(index == IGNORED, index, index - self.first[rows].unsqueeze(1))


def first_block(network: nn.Module, edits: Collection[Edit]) -> int | None:
    """The first block that an edit touches, or the number of blocks where it touches none of them.

    Only components of causal families say which block they are in.

    Returns None where only a whole run will do.
    """
    components = {site.component for site in sites_of(edits)}
    if not components or None in components:
        return None
    known = blocks_of(network)
    config = transformer_in(network).config
    is_causal = known.is_causal and not getattr(config, "use_bidirectional_attention", False)
    # A wrapper of one's own may not pass a cache on.
    parameters = inspect.signature(network.forward).parameters
    if not is_causal or not parameters.keys() & {"past_key_values", "kwargs"}:
        return None
    # Of a family that no table lists it is tried on a few tokens, once.
    if not known.is_listed:
        kept = _resumable.get(network)
        if kept is None or kept[0] is not known:
            kept = _resumable[network] = known, _resumes(network, known)
        if not kept[1]:
            return None

    layers = []
    for edit in edits:
        for site in edit.sites:
            if site.component == "embedding_output":
                layers.append(0)
            elif site.component == "final_norm_output":
                # The final norm comes after all blocks.
                layers.append(len(known.blocks))
            else:
                assert site.layer is not None
                # The output of a block is written behind it, so the next block is the first to run.
                # A skipped block gives back its own input, so it has to run.
                is_behind = site.component == "block_output" and not edit.intervention.skips
                layers.append(site.layer + is_behind)
    return min(layers)


_resumable: WeakKeyDictionary[nn.Module, tuple[Survey, bool]] = WeakKeyDictionary()


def _resumes(network: nn.Module, known: Survey) -> bool:
    """Whether a run of a few tokens, resumed half-way, gives the whole run's logits."""
    transformer = transformer_in(network)
    inputs = few_tokens(transformer)
    inputs.pop("use_cache", None)
    layer, cache, streams = len(known.blocks) // 2, DynamicCache(), []
    start, n_tokens = 3, inputs["input_ids"].shape[1]
    first = torch.tensor([start], device=inputs["input_ids"].device)
    try:
        with evaluating(transformer):
            attached = at_input(known.blocks[layer], streams.append)
            try:
                whole = network(**inputs, past_key_values=cache, use_cache=True).logits
            finally:
                attached.remove()
            keys_values = stacked_cache(cache, layer, first.device)
            before = Prefix(streams[0][:, start:] if layer else None, keys_values[..., :start, :])
            batch, stop = Batch((), inputs), torch.full_like(first, n_tokens)
            suffix = suffix_from(network, batch, layer, first, stop, before)
            with resumed(network, suffix):
                part = suffix.batch.through(network).logits
    except Exception:  # whatever a network raises: then the whole of it runs
        return False
    error = float((part - whole[:, start:]).abs().max())
    tolerance = 1e-4 if whole.dtype == torch.float32 else 5e-2
    return error <= tolerance * float(whole.abs().max())


def suffix_from(
    network: nn.Module, batch: Batch, layer: int, first: Tensor, stop: Tensor, before: Prefix
) -> Suffix:
    """The run of the columns `first` to `stop` (Tensor[batch]) from block `layer` on.

    All suffixes of the batch start in one column. What is cached stands before it, right-aligned.
    """
    ids = batch.kwargs["input_ids"]
    longest = int((stop - first).max())
    # [batch, longest suffix]
    columns = first.unsqueeze(1) + torch.arange(longest, device=ids.device)
    # 0 behind an example's last token that has to run.
    mask = (columns < torch.minimum(stop, _lengths(batch)).unsqueeze(1)).long()
    # A short suffix ends in padding, which still needs a token and a position that exist.
    columns = columns.clamp(max=ids.shape[1] - 1)
    kwargs = {"input_ids": ids.gather(1, columns), "attention_mask": mask}
    if before.cache is not None:
        length = before.cache.shape[-2]
        # Example i has first[i] cached tokens, at the right of its cache.
        cached = torch.arange(length, device=ids.device) >= length - first.unsqueeze(1)
        kwargs["attention_mask"] = torch.cat([cached.long(), mask], 1)
        filled = _filled(before.cache, blocks_of(network).blocks[layer:], layer)
        kwargs |= {"past_key_values": filled, "use_cache": True}
        # The positions in the prompt. By default they would count the padding of the cache, too.
        if "position_ids" in inspect.signature(transformer_in(network).forward).parameters:
            kwargs["position_ids"] = columns
    return Suffix(layer, Batch((), kwargs), first, before.hidden)


def stacked_cache(cache: DynamicCache, layer: int, device: torch.device) -> Tensor:
    """Keys and values from block `layer` on: Tensor[block, 2, batch, head, column, width]."""
    layers: list[Any] = cache.layers[layer:]
    return torch.stack([torch.stack((kept.keys, kept.values)).to(device) for kept in layers])


def _lengths(batch: Batch) -> Tensor:
    mask = batch.kwargs.get("attention_mask")
    return torch.ones_like(batch.tokens).sum(1) if mask is None else mask.sum(1)


def _filled(cache: Tensor, blocks: Iterable[nn.Module], layer: int) -> DynamicCache:
    """A cache with these keys and values from block `layer` on, each where its block runs.

    The blocks before `layer` get zeros that take no memory. transformers makes masks for the length
    of the cache, and it may ask any block for it.
    """
    zeros = torch.zeros_like(cache[0, 0, :, :1, :1, :1])
    keys = [zeros.expand_as(cache[0, 0])] * layer
    filled = DynamicCache()
    later = [pair.to(device_of(block)) for pair, block in zip(cache, blocks, strict=True)]
    for key, value in [*zip(keys, keys, strict=True), *later]:
        # lazy_initialization sets dtype and device; the tensors come after it.
        cache_layer = DynamicLayer()
        cache_layer.lazy_initialization(key, value)
        cache_layer.keys, cache_layer.values = key, value
        filled.layers.append(cache_layer)
    return filled


@contextmanager
def resumed(network: nn.Module, suffix: Suffix) -> Iterator[None]:
    """Within the context the network runs from block `suffix.layer` on.

    The blocks before it are passed over, and the last of them returns `suffix.hidden`. Masks,
    rotary tables and layer indices are the network's own, and hooks on the blocks fire.
    """
    known = blocks_of(network)
    # On the CPU the backward of torch's fused attention is slow in half precision. A suffix has few
    # queries, so plain matrix products are enough.
    plain = suffix.first.device.type == "cpu" and next(network.parameters()).dtype in (
        torch.bfloat16,
        torch.float16,
    )

    def passing(last: bool) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = suffix.hidden if last else hidden_states
            # Blocks of some families return a tuple.
            return (out, *[None] * (known.n_results - 1)) if known.n_results else out

        return forward

    with ExitStack() as stack:
        for number in range(suffix.layer):
            block = known.blocks[number]
            stack.callback(_put_back, block, vars(block).get("forward"))
            # An attribute of the instance hides the forward of the class.
            block.forward = passing(number == suffix.layer - 1)
        if plain:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _put_back(block: nn.Module, forward: Any) -> None:
    """Restore the block's own forward, which is None where its class has it."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward
