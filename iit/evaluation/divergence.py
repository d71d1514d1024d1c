"""How far edited activations are from natural ones."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.evaluation.outcomes import evaluating, inputs_of
from iit.evaluation.trust import NotApplicableError
from iit.intervened.edit import Variable, sites_of, variables_of
from iit.intervened.positions import counts, prepare_at

N_NATURAL = 4096
"""The natural activations of a site that edited ones are compared with: the first ones."""
CHUNK = 256
"""Activations whose distances to all natural ones are held at a time."""
Place = tuple[Variable, int]
"""One site of an edit: the edit's key, and the number of the site."""
USUAL = 0.95
"""The share of unedited activations that stay within the distance of reference."""
FLOOR = 1e-6
"""The least distance of reference, as a share of the natural activations' mean norm."""


class _SiteValues(NamedTuple):
    """One batch at one site of an edit.

    base, edited: Tensor[batch, position, width].
    sources: [(Tensor[batch, position, width], BoolTensor[batch])], the sources that are read at
        this site, and which examples have them.
    present: BoolTensor[batch, position], which positions each example has.
    active: BoolTensor[batch], which examples the edit touches.
    """

    base: Float[Tensor, "batch position width"]
    edited: Float[Tensor, "batch position width"]
    sources: list[tuple[Tensor, Tensor]]
    present: Bool[Tensor, "batch position"]
    active: Bool[Tensor, " batch"]


def divergence(
    alignment: Alignment, pairs: EncodedPairs, natural: EncodedPairs, *, batch_size: int = 64
) -> np.ndarray:
    """How far each pair's edited activation is from natural ones, relative to unedited activations.

    d(h) = min ‖h − a‖ over natural activations a

    figure = max over sites of d(h') / q, where q is the 95% quantile of d(h) over pairs

    h is the base's activation, and h' is what the edit by itself makes of it (with learned gates
    hard). Of several positions, d is that of the farthest. One unedited activation in twenty is
    above 1. A pair that no edit touches has 1. A joint edit's positions are one vector.

    Where nearly all of the unedited activations are themselves among the natural ones, the quantile
    is 0. At least 1e-6 of the natural activations' mean norm is taken for q. Then 0 still means
    natural, and any other figure is a distance in units of that.

    Arguments:
        natural: the pairs (of the training split) whose activations are natural. These are
            activations of the bases that the edit touches and, where sources are read at the same
            site, of the sources: the first 4096 of each site, in the order of the pairs.

    Returns:
        float[n pairs].

    Raises:
        ValueError: for an edit that touches some of the pairs and none of the natural ones.
        NotApplicableError: a ValueError, for attention weights, whose width is the prompt's length.

    References:
        arXiv 2511.04638.
    """
    for site in sites_of(alignment.edits.values()):
        if site.component == "attention_weight":
            raise NotApplicableError(
                "Attention weights are as wide as their prompt is long: there is no distance "
                "between prompts."
            )
    ratios = np.full(len(pairs), -np.inf)
    with evaluating(alignment):
        near = natural_activations(alignment, natural, batch_size)
        # {place: float[2, n pairs]}: distances of the unedited and of the edited activations. They
        # are NaN where the edit does not touch the pair.
        distances = {place: np.full((2, len(pairs)), np.nan) for place in near}
        for batch in pairs.batches(batch_size):
            for place, values in _site_values(alignment, batch).items():
                if place not in near:
                    raise ValueError(
                        f"None of the natural pairs interchanges {place[0]!s}: there is nothing "
                        "to compare with."
                    )
                rows = batch["row"][values.active.cpu()].numpy()
                for number, points in enumerate((values.base, values.edited)):
                    # [batch·position] → [batch, position]
                    nearest = _nearest(points.flatten(0, 1), near[place]).view(values.present.shape)
                    farthest = nearest.masked_fill(~values.present, 0).amax(1)
                    distances[place][number, rows] = farthest[values.active].cpu().numpy()
    for place, (unedited, edited) in distances.items():
        touched = ~np.isnan(unedited)
        if touched.any():
            # Natural activations may all be 0, so the floor has a floor of its own.
            floor = FLOOR * float(near[place].norm(dim=1).mean())
            usual = float(np.quantile(unedited[touched], USUAL))
            scale = max(usual, floor, float(np.finfo(np.float32).tiny))
            ratios[touched] = np.maximum(ratios[touched], edited[touched] / scale)
    # Still −inf: no edit touches the pair.
    return np.where(np.isinf(ratios), 1.0, ratios)


def natural_activations(
    alignment: Alignment, natural: EncodedPairs, batch_size: int
) -> dict[Place, Float[Tensor, "n width"]]:
    """The first natural activations of each site, {place: Tensor[n, width]}.

    They come pair by pair: the base's positions, then the sources'.
    """
    by_place: dict[Place, list[Tensor]] = {}
    for key, edit in alignment.edits.items():
        for number in range(len(edit.sites)):
            by_place[key, number] = []
    for rows in torch.arange(len(natural)).split(batch_size):
        for place, values in _site_values(alignment, natural.batch(rows.tolist())).items():
            activations, flags = zip((values.base, values.active), *values.sources, strict=True)
            # [batch, read, position, width], and which of them are real: [batch, read, position]
            points = torch.stack(activations, 1)
            is_real = torch.stack(flags, 1).unsqueeze(2) & values.present.unsqueeze(1)
            by_place[place].append(points[is_real])
        if all(sum(map(len, points)) >= N_NATURAL for points in by_place.values()):
            break
    return {place: torch.cat(points)[:N_NATURAL] for place, points in by_place.items() if points}


def _site_values(alignment: Alignment, batch: dict[str, Any]) -> dict[Place, _SiteValues]:
    """What a batch has at each site of the edits that touch some of its examples."""
    sites = sites_of(alignment.edits.values())
    prepared = prepare_at(alignment.network, batch["base"], sites)
    run = alignment.edited_run(prepared, *inputs_of(alignment, batch))
    # A flag of None stands for every example.
    everywhere = torch.ones(prepared.size, dtype=torch.bool, device=prepared.device)
    flags = {v: everywhere if flag is None else flag for v, flag in run.flags.items()}
    by_place = {}
    for key, edit in alignment.edits.items():
        flags_of_edit = [flags[variable] for variable in variables_of(key, edit)]
        active = torch.stack(flags_of_edit).any(0)
        if not active.any():
            continue
        places = {site_edit.columns.site: site_edit.columns for site_edit in run.sites[key]}
        activations = alignment.read(prepared, places)
        for number, site_edit in enumerate(run.sites[key]):
            site = site_edit.columns.site
            base = activations[site]
            points = [base, site_edit.apply(base)]
            source_flags = []
            # A source that is read at another site is not natural at this one.
            if edit.source_sites[number] == site:
                points += site_edit.sources.values()
                source_flags = [flags[variable].to(base.device) for variable in site_edit.sources]
            present = torch.ones(base.shape[:2], dtype=torch.bool, device=base.device)
            length = counts(site_edit.columns, prepared)
            if length is not None:
                steps = torch.arange(base.shape[1], device=base.device)
                present = steps < length.to(base.device).unsqueeze(1)
            if edit.joint:
                # [batch, position, width] → [batch, 1, position·width]
                present = present.any(1, keepdim=True)
                points = [activation.flatten(1).unsqueeze(1) for activation in points]
            base, edited, *sources = map(Tensor.float, points)
            read_there = list(zip(sources, source_flags, strict=True))
            values = _SiteValues(base, edited, read_there, present, active.to(base.device))
            by_place[key, number] = values
    return by_place


def _nearest(
    points: Float[Tensor, "n width"], natural: Float[Tensor, "m width"]
) -> Float[Tensor, " n"]:
    """The distance of each point to its nearest natural activation."""
    # Matrix products are faster, but their rounding would set equal points apart.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat(
        [torch.cdist(chunk, natural, compute_mode=exact).amin(1) for chunk in points.split(CHUNK)]
    )
