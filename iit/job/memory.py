"""How much memory a job will need, counted on a network that need not have weights."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.cache_utils import DynamicCache

from iit.intervened import IntervenedModel
from iit.network import Network
from iit.network.answering import head_at, logits_of
from iit.network.components import blocks_of
from iit.site import Site, resolve


def demand(
    network: Network,
    edited: Sequence[IntervenedModel],
    inputs: Mapping[str, Tensor],
    n_tokens: int,
    trains_network: bool,
) -> dict[str, int]:
    """The bytes that a job will need, by what needs them: weights, store, training.

    Arguments:
        network: the network, with or without weights.
        edited: what the job edits.
        inputs: a training batch, by the network's inputs; {} where there is none. Only shapes are
            read.
        n_tokens: of all distinct prompts together.
        trains_network: whether the job trains the network's weights, with Adam.
    """
    model = network.model
    layers = {one.first_block for one in edited} - {None, 0}
    first = None if trains_network else min(filter(None, layers), default=None)
    saved, keys_values = traced(model, inputs, first) if inputs else (0, 0)

    store = 0
    if first is not None:
        # What is kept of each prompt at all its tokens, and the keys and values from `first` on.
        kept = {Site("block_output", layer=layer - 1) for layer in filter(None, layers)}
        for one in edited:
            for edit in one.edits.values():
                kept |= {replace(site, position=None) for site in edit.source_sites}
        width = sum(resolve(model, site).width or 0 for site in kept)
        n_blocks = len(blocks_of(model).blocks)
        cached = keys_values * (n_blocks - first) / n_blocks / inputs["input_ids"].numel()
        store = int(n_tokens * (width * network.dtype.itemsize + cached))

    trained = [p for one in edited for p in one.parameters() if p.requires_grad]
    if trains_network:
        trained += model.parameters()
    training = 0
    if trained:
        # Cells that resume at one block are trained side by side.
        side_by_side = max(Counter(one.first_block for one in edited).values())
        # The gradient, Adam's two moments, and the copy of the best epoch.
        training = saved * side_by_side + 4 * n_bytes(trained)
    weights = n_bytes([*model.parameters(), *model.buffers()])
    return {"weights": weights, "store": store, "training": training}


def n_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors; those that share memory count once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def traced(network: nn.Module, inputs: Mapping[str, Tensor], first: int | None) -> tuple[int, int]:
    """Run a batch, and count what is kept for the backward pass, and the keys and values.

    On the meta device nothing is computed.

    Arguments:
        first: the block at which the backward pass ends. None is for the whole network, whose
            weights require gradients then.

    Returns (bytes of what is kept, without the weights; bytes of the keys and values).
    """
    network.requires_grad_(first is None)
    weights = [*network.parameters(), *network.buffers()]
    blank: Any = {name: torch.zeros_like(t, device=weights[0].device) for name, t in inputs.items()}
    cache, kept = DynamicCache(), []
    with ExitStack() as stack:
        if first is not None:
            # Behind the last block there is what the head reads, which is no more than one block.
            site = Site("block_input", layer=min(first, len(blocks_of(network).blocks) - 1))
            start = resolve(network, site).attach(lambda hidden: hidden.detach().requires_grad_())
            stack.callback(start.remove)
            stack.enter_context(head_at(network, blank["input_ids"][:, :1]))
            blank |= {"past_key_values": cache, "use_cache": True}
        # The hook returns the tensor that it has noted.
        stack.enter_context(saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t))
        logits: Any = logits_of(network(**blank))
        # As the loss does.
        logits.float().log_softmax(-1)
    keys_values = []
    blocks: Any = cache.layers
    for block in blocks:
        keys_values += [block.keys, block.values]
    return n_bytes([*weights, *kept]) - n_bytes(weights), n_bytes(keys_values)
