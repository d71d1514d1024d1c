"""Resuming a run at the first edited block and position: everything before is the same for every
edit, and is not run again.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import DynamicCache, DynamicLayer

from iit.intervened.batch import Batch
from iit.intervened.edit import Edit
from iit.intervened.positions import Columns
from iit.network.answering import IGNORED
from iit.network.components import UNLAYERED, blocks_of, transformer_in


@dataclass(frozen=True)
class Prefix:
    """What earlier runs have left of a batch, before its suffixes.

    hidden: Tensor[batch, seq, width], the residual stream before the first block that runs, at the
        suffixes' tokens; None when that is the first block of all.
    cache: Tensor[block, 2, batch, head, seq, width], keys and values of the tokens before the
        suffixes in the blocks that run, right-aligned; None when no token comes before.
    """

    hidden: Tensor | None
    cache: Tensor | None


@dataclass(frozen=True)
class Suffix:
    """What is left to run of a batch.

    layer: the first block that runs.
    batch: the tokens from each example's first edited position on; its keyword inputs name the
        cached ones before.
    first: Tensor[batch], that position.
    hidden: Tensor[batch, seq, width], the residual stream before block `layer` at these tokens;
        None when `layer` is 0.
    """

    layer: int
    batch: Batch
    first: Tensor
    hidden: Tensor | None

    def shifted(self, place: Columns, rows: slice) -> Columns:
        """Columns of (some rows of) the whole batch as columns of the suffix."""
        return (
            Columns(place.site, self.of(place.index, rows))
            if isinstance(place.index, Tensor)
            else place
        )

    def of(self, index: Tensor, rows: slice = slice(None)) -> Tensor:
        """Indices into (some rows of) the suffix; −100 stays."""
        return torch.where(index == IGNORED, index, index - self.first[rows].unsqueeze(1))


def first_block(network: nn.Module, edits: Iterable[Edit]) -> int | None:
    """The first block that an edit touches; as many as there are blocks where none is. None: only a
    whole run will do.

    Only components of causal families say which block they are in.
    """
    sites = [(site, edit.intervention.skips) for edit in edits for site in edit.sites]
    if not sites or any(site.component is None for site, _ in sites):
        return None
    family, blocks = blocks_of(network)
    config = transformer_in(network).config
    # A wrapper of one's own may not pass a cache on.
    passes_cache = inspect.signature(network.forward).parameters.keys() & {
        "past_key_values",
        "kwargs",
    }
    if not (family.causal and passes_cache) or getattr(
        config, "use_bidirectional_attention", False
    ):
        return None
    first = []
    for site, skips in sites:
        if site.component in UNLAYERED:
            first.append(0 if site.component == "embedding_output" else len(blocks))
        else:
            assert site.layer is not None
            inside = site.component != "block_output" or skips
            first.append(site.layer if inside else site.layer + 1)
    return min(first)


def suffix(
    network: nn.Module, batch: Batch, layer: int, first: Tensor, stop: Tensor, before: Prefix
) -> Suffix:
    """The run of the columns `first` to `stop` (Tensor[batch]) from block `layer` on.

    Prompts are laid out so that their suffixes start in one column: what is cached stands
    right-aligned before it.
    """
    ids = batch.kwargs["input_ids"]
    columns = first.unsqueeze(1) + torch.arange(int((stop - first).max()), device=ids.device)
    mask = (columns < torch.minimum(stop, _lengths(batch)).unsqueeze(1)).long()
    columns = columns.clamp(
        max=ids.shape[1] - 1
    )  # a short suffix ends in padding, which needs a token and a position that there are
    kwargs: dict[str, Any] = {"input_ids": ids.gather(1, columns), "attention_mask": mask}
    if before.cache is not None:
        length = before.cache.shape[-2]
        cached = torch.arange(length, device=ids.device) >= length - first.unsqueeze(1)
        kwargs["attention_mask"] = torch.cat([cached.long(), mask], 1)
        kwargs |= {"past_key_values": _filled(before.cache, layer), "use_cache": True}
        if "position_ids" in inspect.signature(transformer_in(network).forward).parameters:
            kwargs["position_ids"] = columns
    return Suffix(layer, Batch((), kwargs), first, before.hidden)


def _lengths(batch: Batch) -> Tensor:
    mask = batch.kwargs.get("attention_mask")
    return (
        batch.tokens.new_full((batch.size,), batch.tokens.shape[1]) if mask is None else mask.sum(1)
    )


def _filled(cache: Tensor, layer: int) -> DynamicCache:
    """A cache with these keys and values from block `layer` on.

    The blocks before it get zeros that take no memory: masks are made for the length of whichever
    block is asked.
    """
    keys = [torch.zeros_like(cache[0, 0, :, :1, :1, :1]).expand_as(cache[0, 0])] * layer
    filled = DynamicCache()
    for key, value in [*zip(keys, keys, strict=True), *cache]:
        one = DynamicLayer()
        one.lazy_initialization(key, value)
        one.keys, one.values = key, value
        filled.layers.append(one)
    return filled


@contextmanager
def resumed(network: nn.Module, rest: Suffix) -> Iterator[None]:
    """Within the context the blocks before `rest.layer` are passed over, and the last of them
    returns `rest.hidden`.

    Masks, rotary tables and layer indices are the network's own; hooks on the blocks fire.
    """
    family, blocks = blocks_of(network)
    # On CPU the backward of torch's fused attention is slow in half precision; a suffix has few
    # queries, so plain products do.
    plain = rest.first.device.type == "cpu" and next(network.parameters()).dtype in (
        torch.bfloat16,
        torch.float16,
    )

    def passing(last: bool) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = rest.hidden if last else hidden_states
            return (out, None) if family.tuple_blocks else out

        return forward

    with ExitStack() as stack:
        for number in range(rest.layer):
            block = blocks[number]
            stack.callback(_put_back, block, vars(block).get("forward"))
            block.forward = passing(number == rest.layer - 1)
        if plain:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _put_back(block: nn.Module, forward: Any) -> None:
    """The forward that the block had itself, or None where its class has it."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward
