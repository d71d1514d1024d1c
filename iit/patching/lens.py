"""The logit lens: what the network would answer if a layer's residual stream were its last."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from iit.batch import IGNORED, Inputs
from iit.intervened import ActivationStore
from iit.intervened.positions import columns
from iit.network import LanguageModel
from iit.network.inputs import prepare
from iit.patching.cell_runs import effects_of
from iit.patching.contrast import AnyNetwork, Contrasted, column_index, contrast_of, module_of
from iit.patching.effects import Effects
from iit.patching.grid import Position, grid, n_blocks, whole_sites
from iit.patching.metric import MetricChoice
from iit.patching.replacement import Replacement
from iit.site import Site, resolve


def logit_lens(
    network: AnyNetwork,
    batch: Inputs,
    *,
    layers: Sequence[int] | None = None,
    position: Position = "last",
) -> Float[Tensor, "layer batch position vocab"]:
    """The logits that each layer's residual stream gives, Tensor[layer, batch, position, vocab].

    logits_ℓ = head(norm(block_output_ℓ))

    Norm and head are the network's own code behind its last block. One forward serves all layers.
    At the last layer these are the network's own logits. Entries of absent positions are zero.

    Arguments:
        layers: all blocks by default.
        position: a role, token indices, or None for every token.

    Raises:
        ValueError: for layers and positions that do not exist, and for a network without an output
            head.

    References:
        nostalgebraist, 2020; arXiv 2303.08112.
    """
    module = module_of(network)
    top = n_blocks(module) - 1
    layers = range(top + 1) if layers is None else layers
    prepared = prepare(module, batch)
    last = Site("block_output", layer=top, position=position)
    site_columns = columns(last, prepared)
    streams: dict[int, Tensor] = {}

    def read(layer: int, activation: Tensor) -> Tensor | None:
        streams[layer] = site_columns.read(activation)
        # Layers below the last are only read, and the run goes on as it is.
        if layer < top:
            return None
        # What comes behind the last block acts on each column by itself. So all layers pass through
        # it at once: [layer, batch, position, width] becomes rows as long as the prompts.
        rows = torch.stack([streams[number] for number in layers]).flatten(0, 2)
        # Columns that fill up the last row; they are cut off below.
        missing = -len(rows) % activation.shape[1]
        return pad(rows, (0, 0, 0, missing)).unflatten(0, (-1, activation.shape[1]))

    # The stack removes the hooks, also after an error.
    with torch.no_grad(), ExitStack() as stack:
        for layer in sorted({*layers, top}):
            site = resolve(module, Site("block_output", layer=layer))
            stack.callback(site.attach(partial(read, layer)).remove)
        output = prepared.through(module)

    if getattr(output, "logits", None) is None:
        raise ValueError(f"{type(module).__name__} has no output head to read a layer by.")
    # [layer, batch, position, vocab]
    shape = (len(layers), *streams[top].shape[:2], -1)
    n_rows = len(layers) * streams[top].shape[:2].numel()
    logits = output.logits.flatten(0, 1)[:n_rows].view(shape)
    if isinstance(site_columns.index, Tensor):
        logits = logits.masked_fill((site_columns.index == IGNORED)[..., None], 0)
    return logits


def lens_map(
    network: AnyNetwork,
    pairs: Contrasted,
    *,
    metric: MetricChoice = ("probability", "logit_difference"),
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
    **where: Any,
) -> Effects:
    """A map of the logit lens: its metrics at each layer × position of the bases.

    The map's cells are `block_output`s.

    The lens at (ℓ, p) is a run whose last block's output at the answer is replaced by the base's
    own block_output_ℓ at p. So the label is that of the pair. In a map of the last position it is
    what the answer becomes, layer by layer.

    Arguments:
        where: layers and positions (the last one by default), or cells, as `patch` takes them. Each
            position is one token.
        metric, store, batch_size, progress: as `patch` takes them.

    Raises:
        ValueError: as `patch` does, for answers of several tokens, and for positions of several.
    """
    contrast = contrast_of(network, pairs)
    if contrast.label.shape[1] > 1:
        raise ValueError("The lens reads one token; these answers have several.")
    where.setdefault("positions", ("last",))
    cells = grid(contrast, components="block_output", **where)
    bases = prepare(contrast.module, contrast.base)
    for site in whole_sites(cells):
        if column_index(site, bases).shape[1] > 1:
            raise ValueError(f"The lens reads one token at a time; {site} names several.")

    last = Site("block_output", layer=n_blocks(contrast.module) - 1, position="last")
    # The base is its own source: its layer ℓ goes in place of its last block's output.
    replacement = Replacement(contrast, cells, contrast.base, at=last)
    return effects_of(
        contrast,
        cells,
        replacement.edit_of,
        metric,
        "LogitLens",
        store,
        batch_size,
        progress,
    )


def top_tokens(
    network: LanguageModel,
    batch: Inputs,
    *,
    layers: Sequence[int] | None = None,
    position: Position = None,
    n: int = 1,
) -> list[dict[str, Any]]:
    """The n likeliest tokens of the logit lens: a line for each layer, prompt, position and rank.

    Columns: layer, row (the prompt's number), position (which of the positions that are named),
        token (the prompt's own token there), rank (from 1), top (the likely token's text),
        probability.
    """
    likeliest = logit_lens(network, batch, layers=layers, position=position).softmax(-1).topk(n, -1)
    prompts = prepare(network.model, batch)
    index = column_index(Site("block_output", layer=0, position=position), prompts)
    layer_numbers = range(len(likeliest.values)) if layers is None else layers
    tokenizer: Any = network.tokenizer

    lines = []
    for layer_index, row, entry, rank in product(*map(range, likeliest.values.shape)):
        column = index[row, entry]
        if column == IGNORED:
            continue
        lines.append(
            {
                "layer": layer_numbers[layer_index],
                "row": row,
                "position": entry,
                "token": tokenizer.decode([int(prompts.tokens[row, column])]),
                "rank": rank + 1,
                "top": tokenizer.decode([int(likeliest.indices[layer_index, row, entry, rank])]),
                "probability": float(likeliest.values[layer_index, row, entry, rank]),
            }
        )
    return lines
