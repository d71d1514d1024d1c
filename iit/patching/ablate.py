"""Ablation: what is lost without a component, which is set to zero, to its mean, or to what another prompt has there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iit.data import EncodedPairs, Pairs
from iit.intervened import Activations, ActivationStore, IntervenedModel
from iit.intervened.batch import Batch, prepare
from iit.intervened.positions import columns, counts
from iit.network import Network
from iit.patching.contrast import Contrast, activations, taken
from iit.patching.effects import Cell, Effects
from iit.patching.metric import Metric, metrics_of
from iit.patching.patch import Position, from_source, of, one_unit, sites_of
from iit.patching.running import Give, Given, measured
from iit.site import Site

KINDS = ("zero", "mean", "resample")


def ablate(
    network: Network | nn.Module,
    pairs: Pairs | EncodedPairs | Contrast,
    *,
    kind: str = "mean",
    reference: Mapping[str, Any] | None = None,
    draws: int = 4,
    seed: int = 0,
    components: str | Sequence[str] = ("attention_output", "mlp_output"),
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    positions: Sequence[Position] | None = None,
    units: Sequence[int] | None = None,
    sites: Sequence[Site] | None = None,
    metric: str | Metric | Sequence[str] | Mapping[str, Metric] = "logit_difference",
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """Ablation of every component × layer × head × position × unit of the bases, one at a time (arXiv 2211.00593, 2304.14997).

    kind: h' = 0 ("zero"); the mean over the prompts of the reference, token by token of the position ("mean"); the activation of
        another of its prompts at the same position, the metric averaged over draws ("resample").
    reference: a batch as `encode` gives it, with the roles that are ablated; by default the pairs' sources.
    draws, seed: of "resample": how many other prompts each base is given in turn, and what draws them. A prompt is drawn only where it
        has as many tokens at each position as the base.
    The others: as `patch` takes them.

    Raises ValueError for another kind, a reference of "zero", bases with more tokens at a position than the reference has ("mean") or
    without another prompt of the same shape ("resample"), and what `patch` refuses.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}.")
    if kind == "zero" and reference is not None:
        raise ValueError("kind='zero' reads no reference; leave it out.")
    if draws < 1:
        raise ValueError(f"draws={draws}: at least one other prompt has to be drawn.")
    contrast = of(network, pairs, split, variable)
    found = sites if sites is not None else sites_of(contrast, components, layers, heads, positions)
    cells = [Cell(site, unit) for site in found for unit in (units if units is not None else (None,))]
    here = list(dict.fromkeys(cell.site for cell in cells))
    reference = contrast.source if reference is None else reference
    if kind == "resample":
        others = _others(contrast, here, reference)
        generator = np.random.default_rng(seed)
        picks = [torch.tensor([int(generator.choice(rows)) for rows in others]) for _ in range(draws)]
        gives = [from_source(contrast, taken(reference, pick)) for pick in picks]
    else:
        gives = [_always(contrast, _constants(contrast, here, contrast.base if kind == "zero" else reference, kind))]
    run = partial(
        measured,
        contrast,
        cells,
        metrics=metrics_of(metric),
        method=f"Ablation, {kind}",
        store=store,
        batch_size=batch_size,
        progress=progress,
    )
    parts = [run(give) for give in gives]
    means = {name: np.mean([part.values[name] for part in parts], 0) for name in parts[0].values}
    return replace(parts[0], values=means)


def _constants(contrast: Contrast, sites: Sequence[Site], batch: Mapping[str, Any], kind: str) -> dict[Site, Tensor]:
    """{site: Tensor[position, width]}: zeros, or the mean over the batch's prompts that have that position."""
    seen, own = activations(contrast.network, batch, sites), _prepared(contrast, contrast.base)
    found, most = {}, {site.position: counts(columns(site, own), own) for site in sites}
    for site in sites:
        each, n_each, n_own = seen[site], seen.counts[site], most[site.position]
        if kind == "zero":
            found[site] = torch.zeros_like(each[0])
            continue
        has = torch.ones(each.shape[:2]) if n_each is None else torch.arange(each.shape[1]) < n_each.cpu().unsqueeze(1)
        found[site] = each.sum(0) / has.sum(0).to(each).unsqueeze(1)
        if n_own is not None and int(n_own.max()) > len(found[site]):
            raise ValueError(
                f"{site}: a base has {int(n_own.max())} tokens there, the reference at most {len(found[site])}; give a reference that "
                "has as many."
            )
    return found


def _always(contrast: Contrast, constants: Mapping[Site, Tensor]) -> Give:
    """Every pair's cell gets the same activation."""

    def give(model: IntervenedModel, site: Site, cells: Sequence[Cell]) -> Given:
        if cells[0].unit is not None:
            own = activations(contrast.network, contrast.base, list({cell.site for cell in cells}))
            return one_unit(contrast, site, cells, Activations({s: constants[s].expand(each.shape) for s, each in own.items()}))
        widest = max(len(constants[cell.site]) for cell in cells)
        rows = [torch.nn.functional.pad(constants[cell.site], (0, 0, 0, widest - len(constants[cell.site]))) for cell in cells]
        stacked = torch.stack(rows)

        def same(which: Tensor, pairs: Tensor, base: Mapping[str, Any]) -> Activations:
            batch = _prepared(contrast, base)
            n = counts(columns(site, batch), batch)
            return Activations({site: stacked[which.to(stacked.device), : None if n is None else int(n.max())]})

        return same

    return give


def _others(contrast: Contrast, sites: Sequence[Site], reference: Mapping[str, Any]) -> list[np.ndarray]:
    """Of each base the reference's prompts that are not it and have as many tokens at each site."""
    (own, shapes), (among, theirs) = (_told(_prepared(contrast, batch), sites) for batch in (contrast.base, reference))
    found = []
    for row, (prompt, shape) in enumerate(zip(own, shapes, strict=True)):
        fits = [i for i, other in enumerate(among) if other != prompt and theirs[i] == shape]
        if not fits:
            raise ValueError(
                f"Base {row} has no other prompt in the reference with as many tokens at {sites[0]} and the other sites; take positions "
                "of one token each, or a larger reference."
            )
        found.append(np.array(fits))
    return found


def _told(batch: Batch, sites: Sequence[Site]) -> tuple[list[bytes], list[tuple[int, ...]]]:
    """What tells prompts apart, whatever their padding; and how many tokens each has at the positions of the sites."""
    inputs = [value.cpu() for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, Tensor)]
    ends = [None] * batch.size if batch.lengths is None else batch.lengths.tolist()
    prompts = [b"".join(value[row][:end].numpy().tobytes() for value in inputs) for row, end in enumerate(ends)]
    each = [counts(columns(site, batch), batch) for site in {site.position: site for site in sites}.values()]
    known = [n.tolist() for n in each if n is not None]
    return prompts, list(zip(*known, strict=True)) if known else [()] * batch.size


def _prepared(contrast: Contrast, batch: Mapping[str, Any]) -> Batch:
    network = contrast.network.model if isinstance(contrast.network, Network) else contrast.network
    return prepare(network, {key: value for key, value in batch.items() if key != "answer"})
