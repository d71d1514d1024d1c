"""The logit lens: what the network would answer if a layer's residual stream were its last."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from iit.batch import IGNORED, Inputs
from iit.intervened import ActivationStore, capture
from iit.network import LanguageModel
from iit.network.inputs import prepare
from iit.patching.cell_runs import effects_of
from iit.patching.contrast import AnyNetwork, Contrasted, column_index, contrast_of, module_of
from iit.patching.effects import Effects, TableLines
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

    Norm and head are the network's own code behind its last block. Two forwards serve all layers.
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
    if layers is None:
        layers = range(n_blocks(module))
    sites = [Site("block_output", layer=layer, position=position) for layer in layers]
    captured = capture(module, batch, sites)
    # [layer, batch, position, width]
    streams = torch.stack([captured[site] for site in sites])

    def all_layers(activation: Tensor) -> Tensor:
        # What comes behind the last block acts on each column by itself. So all layers pass through
        # it at once: [layer, batch, position, width] becomes rows as long as the prompts.
        rows = streams.flatten(0, 2)
        # Columns that fill up the last row; they are cut off below.
        n_columns = activation.shape[1]
        missing = -len(rows) % n_columns
        return pad(rows, (0, 0, 0, missing)).unflatten(0, (-1, n_columns))

    last = resolve(module, Site("block_output", layer=n_blocks(module) - 1))
    attached = last.attach(all_layers)
    try:
        with torch.no_grad():
            output = prepare(module, batch).through(module)
    finally:
        attached.remove()
    if getattr(output, "logits", None) is None:
        raise ValueError(f"{type(module).__name__} has no output head to read a layer by.")

    shape = streams.shape[:3]
    of_rows = output.logits.flatten(0, 1)[: shape.numel()]
    # [layer, batch, position, vocab]
    logits = of_rows.unflatten(0, shape)
    n = captured.counts[sites[0]]
    if n is not None:
        absent = torch.arange(shape[2], device=n.device) >= n.unsqueeze(1)
        logits = logits.masked_fill(absent.unsqueeze(-1), 0)
    return logits


def lens_map(
    network: AnyNetwork,
    pairs: Contrasted,
    *,
    metric: MetricChoice = ("probability", "logit_difference"),
    store: ActivationStore | None = None,
    batch_size: int = 64,
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
        metric, store, batch_size: as `patch` takes them.

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
    return effects_of(contrast, cells, replacement.edit_of, "LogitLens", metric, store, batch_size)


def top_tokens(
    network: LanguageModel,
    batch: Inputs,
    *,
    layers: Sequence[int] | None = None,
    position: Position = None,
    n: int = 1,
) -> TableLines:
    """The n likeliest tokens of the logit lens: a line for each layer, prompt, position and rank.

    Columns: layer, row (the prompt's number), position (which of the positions that are named),
        token (the prompt's own token there), rank (from 1), top (the likely token's text),
        probability.
    """
    probabilities = logit_lens(network, batch, layers=layers, position=position).softmax(-1)
    values, tokens = probabilities.topk(n, -1)
    prompts = prepare(network.model, batch)
    index = column_index(Site("block_output", layer=0, position=position), prompts)
    if layers is None:
        layers = range(len(values))
    tokenizer = network.tokenizer

    lines = []
    for entry in product(*map(range, values.shape)):
        layer, row, place, rank = entry
        column = index[row, place]
        if column == IGNORED:
            continue
        lines.append(
            {
                "layer": layers[layer],
                "row": row,
                "position": place,
                "token": tokenizer.decode([int(prompts.tokens[row, column])]),
                "rank": rank + 1,
                "top": tokenizer.decode([int(tokens[entry])]),
                "probability": float(values[entry]),
            }
        )
    return lines
