"""Ablation: what is lost without a component.

The component is set to zero, to its mean, or to what another prompt has there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.intervened import Activations, ActivationStore
from iit.intervened.positions import columns, counts
from iit.network.inputs import prepare
from iit.patching.activations import activations
from iit.patching.cell_runs import effects_of
from iit.patching.contrast import (
    AnyNetwork,
    Contrast,
    Contrasted,
    EncodedBatch,
    batch_rows,
    contrast_of,
    prompts_of,
)
from iit.patching.effects import Effects
from iit.patching.grid import grid
from iit.patching.metric import MetricChoice
from iit.patching.replacement import Replacement
from iit.site import Site

KINDS = ("zero", "mean", "resample")


def ablate(
    network: AnyNetwork,
    pairs: Contrasted,
    *,
    kind: str = "mean",
    reference: EncodedBatch | None = None,
    draws: int = 4,
    seed: int = 0,
    metric: MetricChoice = "logit_difference",
    store: ActivationStore | None = None,
    batch_size: int = 64,
    **where: Any,
) -> Effects:
    """Ablate every component × layer × head × position × unit of the bases, one at a time.

    Arguments:
        kind: what the activation becomes. "zero": h' = 0. "mean": the mean over the prompts of the
            reference, for each token of the position by itself. "resample": the activation of
            another of its prompts at the same position; the metric is averaged over draws.
        reference: a batch as `encode` gives it, with the roles that are ablated; by default the
            pairs' sources. "zero" takes none.
        draws, seed: of "resample": how many other prompts each base gets in turn, and the seed of
            their choice. A prompt is drawn only where it has as many tokens at each position as the
            base.
        where: as `patch` takes it; by default attention_output and mlp_output.
        metric, store, batch_size: as `patch` takes them.

    Raises:
        ValueError: for another kind, a reference of "zero", fewer than one draw, bases with more
            tokens at a position than the reference has ("mean") or without another prompt of the
            same shape ("resample"), and what `patch` refuses.

    References:
        arXiv 2211.00593, 2304.14997.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}.")
    if kind == "zero" and reference is not None:
        raise ValueError("kind='zero' reads no reference; leave it out.")
    if draws < 1:
        raise ValueError(f"draws={draws}: at least one other prompt has to be drawn.")
    contrast = contrast_of(network, pairs)
    where.setdefault("components", ("attention_output", "mlp_output"))
    cells = grid(contrast, **where)
    sites = list(dict.fromkeys(cell.site for cell in cells))
    if reference is None:
        reference = contrast.source

    # The map is run once for each source.
    sources: Sequence[Mapping[Any, Any]]
    if kind == "zero":
        zeros = activations(contrast.network, contrast.base, sites)
        for site, tensor in zeros.items():
            # Expanded from a single 0, they take no memory.
            zeros[site] = tensor.new_zeros(1).expand_as(tensor)
        sources = [zeros]
    elif kind == "mean":
        sources = [_means(contrast, sites, reference)]
    else:
        sources = _other_prompts(contrast, sites, reference, draws, seed)

    method = f"Ablation, {kind}"
    maps = []
    for source in sources:
        edit_of = Replacement(contrast, cells, source).edit_of
        maps.append(effects_of(contrast, cells, edit_of, method, metric, store, batch_size))

    values = {}
    for name in maps[0].values:
        # One map for each draw; the other kinds have a single one.
        values[name] = np.mean([effects.values[name] for effects in maps], 0)
    return replace(maps[0], values=values)


def _means(contrast: Contrast, sites: Sequence[Site], reference: EncodedBatch) -> Activations:
    """The mean at each position, {site: Tensor[pair, position, width]}, the same for every pair.

    It is over the reference's prompts that have that position.
    """
    of_reference = activations(contrast.network, reference, sites)
    base = prepare(contrast.module, contrast.base)
    means: dict[Site, Tensor] = {}
    n_base: dict[Site, Tensor | None] = {}

    for site in sites:
        tensor = of_reference[site]
        n_positions = tensor.shape[1]
        n_tokens = of_reference.counts[site]
        if n_tokens is None:
            n_tokens = torch.full((len(tensor),), n_positions)
        # How many prompts have each position, [position].
        n_prompts = (torch.arange(n_positions) < n_tokens.unsqueeze(1)).sum(0)
        # Absent positions hold zeros, so the sum is over the prompts that have them.
        mean = tensor.sum(0) / n_prompts.to(tensor).unsqueeze(1)
        # [position, width] → [pair, position, width]
        means[site] = mean.expand(len(contrast), -1, -1)

        n = n_base[site] = counts(columns(site, base), base)
        if n is not None and int(n.max()) > n_positions:
            raise ValueError(
                f"{site}: a base has {int(n.max())} tokens there, the reference at most "
                f"{n_positions}; give a reference that has as many."
            )
    return Activations(means, n_base)


def _other_prompts(
    contrast: Contrast,
    sites: Sequence[Site],
    reference: EncodedBatch,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A batch for each draw: for each base, another prompt of the reference.

    The other prompt has as many tokens at each site as the base.
    """
    prompts = _prompts(contrast, reference, sites)
    fitting = []
    for row, (base, shape) in enumerate(_prompts(contrast, contrast.base, sites)):
        fits = []
        for number, (other, other_shape) in enumerate(prompts):
            if other != base and other_shape == shape:
                fits.append(number)
        if not fits:
            raise ValueError(
                f"Base {row} has no other prompt in the reference with as many tokens at "
                f"{sites[0]} and the other sites; take positions of one token each, or a "
                "larger reference."
            )
        fitting.append(fits)
    generator = np.random.default_rng(seed)
    batches = []
    for _ in range(draws):
        rows = torch.tensor([int(generator.choice(fits)) for fits in fitting])
        batches.append(batch_rows(reference, rows))
    return batches


def _prompts(
    contrast: Contrast, batch: EncodedBatch, sites: Sequence[Site]
) -> list[tuple[bytes, list[int]]]:
    """Each prompt's inputs without padding, and how many tokens it has at each position."""
    prepared = prepare(contrast.module, prompts_of(batch))
    # One site stands for all that share its position.
    by_position = {site.position: site for site in sites}.values()
    numbers = [counts(columns(site, prepared), prepared) for site in by_position]
    prompts = []
    for row in range(prepared.size):
        n = None if prepared.lengths is None else int(prepared.lengths[row])
        text = b""
        for value in prepared.kwargs.values():
            if isinstance(value, Tensor):
                # As bytes, prompts can be compared whatever their inputs are.
                text += value[row][:n].cpu().numpy().tobytes()
        prompts.append((text, [int(number[row]) for number in numbers if number is not None]))
    return prompts
