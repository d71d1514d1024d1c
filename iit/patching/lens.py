"""The logit lens: what the network would answer if a layer's residual stream were its last."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from iit.data import EncodedPairs, Pairs
from iit.intervened import Activations, ActivationStore, Edit, IntervenedModel
from iit.intervened.batch import Inputs, prepare
from iit.intervened.positions import columns
from iit.intervention import VanillaIntervention
from iit.network import LanguageModel, Network
from iit.network.answering import IGNORED
from iit.network.components import blocks_of
from iit.patching.contrast import Contrast, activations
from iit.patching.effects import Cell, Effects
from iit.patching.metric import Metric, metrics_of
from iit.patching.patch import Position, of, sites_of
from iit.patching.running import Run, run_cells
from iit.site import Site, resolve


def logit_lens(
    network: Network | nn.Module, batch: Inputs, *, layers: Sequence[int] | None = None, position: Position = "last"
) -> Float[Tensor, "layer batch position vocab"]:
    """logits_ℓ = head(norm(block_output_ℓ)), by the network's own code behind its last block (nostalgebraist, 2020; arXiv 2303.08112).

    One forward for all layers. At the last layer these are the network's own logits. Entries of absent positions are zero.

    layers: all blocks by default. position: a role, token indices, or None for every token.

    Raises ValueError for layers and positions that there are not, and for a network without an output head.
    """
    module = network.model if isinstance(network, Network) else network
    n_blocks = len(blocks_of(module)[1])
    layers = list(range(n_blocks)) if layers is None else list(layers)
    prepared = prepare(module, batch)
    *_, last = sites = [Site("block_output", layer=layer, position=position) for layer in sorted({*layers, n_blocks - 1})]
    place, seen = columns(last, prepared), {}

    def reader(site: Site) -> Callable[[Tensor], Tensor | None]:
        def read(activation: Tensor) -> Tensor | None:
            seen[site.layer] = place.read(activation)
            if site != last:
                return None
            # What comes behind the last block acts on each column by itself: all layers pass through it, in rows as long as the prompts.
            every = torch.stack([seen[layer] for layer in layers]).flatten(0, 2)
            short = -len(every) % activation.shape[1]
            return pad(every, (0, 0, 0, short)).unflatten(0, (-1, activation.shape[1]))

        return read

    with torch.no_grad(), ExitStack() as stack:
        for site in sites:
            stack.callback(resolve(module, site).attach(reader(site)).remove)
        output = prepared.through(module)
    if getattr(output, "logits", None) is None:
        raise ValueError(f"{type(module).__name__} has no output head to read a layer by.")
    shape = len(layers), *next(iter(seen.values())).shape[:2], output.logits.shape[-1]
    logits = output.logits.flatten(0, 1)[: shape[0] * shape[1] * shape[2]].view(shape)
    if not isinstance(place.index, Tensor):
        return logits
    return logits.masked_fill((place.index == IGNORED)[..., None], 0)


def lens_map(
    network: Network | nn.Module,
    pairs: Pairs | EncodedPairs | Contrast,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[Position] | None = ("last",),
    metric: str | Metric | Sequence[str] | Mapping[str, Metric] = ("probability", "logit_difference"),
    split: str = "validation",
    variable: str | None = None,
    sites: Sequence[Site] | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """The metrics of the logit lens at each layer × position of the bases, as a map whose cells are `block_output`s.

    The lens at (ℓ, p) is a run whose last block's output at the answer is replaced by the base's own block_output_ℓ at p; so the label
    is that of the pair, and in a map of the last position it is what the answer becomes, layer by layer. Each position is one token.

    The arguments: as `patch` takes them. Raises ValueError as `patch` does, and for answers of several tokens.
    """
    contrast = of(network, pairs, split, variable)
    if contrast.label.shape[1] > 1:
        raise ValueError("The lens reads one token; these answers have several.")
    found = list(sites) if sites is not None else sites_of(contrast, "block_output", layers, None, positions)
    last = Site(
        "block_output", layer=len(blocks_of(network.model if isinstance(network, Network) else network)[1]) - 1, position="last"
    )
    seen = activations(contrast.network, contrast.base, found)

    def runner(site: Site, cells: Sequence[Cell]) -> tuple[IntervenedModel, Run]:
        wide = [cell for cell in cells if seen[cell.site].shape[1] > 1]
        if wide:
            raise ValueError(f"The lens reads one token at a time; {wide[0]} names several.")
        model = IntervenedModel(network, {"cell": Edit(last, VanillaIntervention(), source_sites=site)})
        each = torch.stack([seen[cell.site] for cell in cells])
        return model, lambda which, rows, base: model.answer_logits(base, Activations({site: each[which, rows]}))

    return run_cells(
        contrast,
        [Cell(site) for site in found],
        runner,
        metrics_of(metric),
        method="LogitLens",
        store=store,
        batch_size=batch_size,
        progress=progress,
    )


def top_tokens(
    network: LanguageModel, batch: Inputs, *, layers: Sequence[int] | None = None, position: Position = None, n: int = 1
) -> list[dict[str, Any]]:
    """The n likeliest tokens of the logit lens: a line for each layer, prompt, position and rank.

    Columns: layer, row (the prompt's number), position (which of the positions that are named), token (the prompt's own there), rank
    (from 1), top (the likeliest token's text), probability.
    """
    logits = logit_lens(network, batch, layers=layers, position=position)
    found = logits.softmax(-1).topk(n, -1)
    module, tokenizer = network.model, network.tokenizer
    prepared = prepare(module, batch)
    index = columns(Site("block_output", layer=0, position=position), prepared).index
    index = torch.arange(prepared.tokens.shape[1]).expand(prepared.size, -1) if index is None else torch.as_tensor(index)
    numbers = list(range(len(logits))) if layers is None else list(layers)
    return [
        {
            "layer": layer,
            "row": row,
            "position": place,
            "token": tokenizer.decode([int(prepared.tokens[row, column])]),
            "rank": rank + 1,
            "top": tokenizer.decode([int(found.indices[at, row, place, rank])]),
            "probability": float(found.values[at, row, place, rank]),
        }
        for at, layer in enumerate(numbers)
        for row in range(prepared.size)
        for place, column in enumerate(index[row].tolist())
        if column != IGNORED
        for rank in range(n)
    ]
