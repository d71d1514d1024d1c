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
from iit.intervened.edited_run import EditedRun
from iit.intervened.positions import counts, prepare_at
from iit.intervened.sources import Variable, variables_of

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


class _Here(NamedTuple):
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
    for edit in alignment.edits.values():
        if any(site.component == "attention_weight" for site in edit.sites):
            raise NotApplicableError(
                "Attention weights are as wide as their prompt is long: there is no distance "
                "between prompts."
            )
    ratios = np.full(len(pairs), -np.inf)
    with evaluating(alignment):
        near = natural_activations(alignment, natural, batch_size)
        # {place: float[2, n pairs]}: distances of the unedited and of the edited activations.
        distances = {place: np.zeros((2, len(pairs))) for place in near}
        # {place: bool[n pairs]}: does the edit touch the pair?
        touched = {place: np.zeros(len(pairs), dtype=bool) for place in near}
        for batch in pairs.batches(batch_size):
            rows = batch["row"].numpy()
            for place, at_site in _seen(alignment, batch).items():
                if place not in near:
                    raise ValueError(
                        f"None of the natural pairs interchanges {place[0]!s}: there is nothing "
                        "to compare with."
                    )
                for number, points in enumerate((at_site.base, at_site.edited)):
                    # [batch·position] → [batch, position]
                    nearest = _nearest(points.flatten(0, 1), near[place]).view(
                        at_site.present.shape
                    )
                    distances[place][number, rows] = (
                        nearest.masked_fill(~at_site.present, 0).amax(1).cpu().numpy()
                    )
                touched[place][rows] = at_site.active.cpu().numpy()
    for place, (unedited, edited) in distances.items():
        chosen = touched[place]
        if chosen.any():
            # Natural activations may all be 0, so the floor has a floor of its own.
            floor = max(
                FLOOR * float(near[place].norm(dim=1).mean()), float(np.finfo(np.float32).tiny)
            )
            ratio = edited[chosen] / max(float(np.quantile(unedited[chosen], USUAL)), floor)
            ratios[chosen] = np.maximum(ratios[chosen], ratio)
    # Still −inf: no edit touches the pair.
    return np.where(np.isinf(ratios), 1.0, ratios)


def natural_activations(
    alignment: Alignment, natural: EncodedPairs, batch_size: int
) -> dict[Place, Float[Tensor, "n width"]]:
    """The first natural activations of each site, {place: Tensor[n, width]}.

    They come pair by pair: the base's positions, then the sources'.
    """
    by_place: dict[Place, list[Tensor]] = {
        (key, n): [] for key, edit in alignment.edits.items() for n in range(len(edit.sites))
    }
    for rows in torch.arange(len(natural)).split(batch_size):
        for place, at_site in _seen(alignment, natural.batch(rows.tolist())).items():
            read_there = [(at_site.base, at_site.active), *at_site.sources]
            # [batch, read, position, width], and which of them are real: [batch, read, position]
            points = torch.stack([activation for activation, _ in read_there], 1)
            is_real = torch.stack(
                [at_site.present & has_them.unsqueeze(1) for _, has_them in read_there], 1
            )
            by_place[place].append(points[is_real])
        if all(sum(map(len, at_site)) >= N_NATURAL for at_site in by_place.values()):
            break
    return {place: torch.cat(at_site)[:N_NATURAL] for place, at_site in by_place.items() if at_site}


def _seen(alignment: Alignment, batch: dict[str, Any]) -> dict[Place, _Here]:
    """What a batch has at each site of the edits that touch some of its examples."""
    sites = [site for edit in alignment.edits.values() for site in edit.sites]
    prepared = prepare_at(alignment.network, batch["base"], sites)
    run = alignment.edited_run(prepared, *inputs_of(alignment, batch))
    by_place = {}
    for key, edit in alignment.edits.items():
        variables = variables_of(key, edit)
        active = torch.stack([_active(run, variable, prepared.size) for variable in variables]).any(
            0
        )
        if not bool(active.any()):
            continue
        activations = alignment.read(
            prepared, {site_edit.columns.site: site_edit.columns for site_edit in run.sites[key]}
        )
        for number, site_edit in enumerate(run.sites[key]):
            site = site_edit.columns.site
            base, edited = activations[site], site_edit.apply(activations[site])
            length = counts(site_edit.columns, prepared)
            steps = torch.arange(base.shape[1], device=base.device).expand(base.shape[:2])
            present = (
                torch.ones_like(steps, dtype=torch.bool)
                if length is None
                else steps < length.to(base.device).unsqueeze(1)
            )
            # A source that is read at another site is not natural at this one.
            sources = [
                (source, _active(run, variable, prepared.size).to(base.device))
                for variable, source in site_edit.sources.items()
                if edit.source_sites[number] == site
            ]
            # [batch, position, width] → [batch, 1, position·width]
            if edit.joint:
                present = present.any(1, keepdim=True)
                base, edited = (activation.flatten(1).unsqueeze(1) for activation in (base, edited))
                sources = [
                    (activation.flatten(1).unsqueeze(1), has_source)
                    for activation, has_source in sources
                ]
            read_there = [(activation.float(), has_source) for activation, has_source in sources]
            by_place[key, number] = _Here(
                base.float(), edited.float(), read_there, present, active.to(base.device)
            )
    return by_place


def _active(run: EditedRun, variable: Any, size: int) -> Bool[Tensor, " batch"]:
    flag = run.flags[variable]
    return torch.ones(size, dtype=torch.bool) if flag is None else flag.cpu()


def _nearest(
    points: Float[Tensor, "n width"], natural: Float[Tensor, "m width"]
) -> Float[Tensor, " n"]:
    """The distance of each point to its nearest natural activation."""
    # Matrix products are faster, but their rounding would set equal points apart.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat(
        [torch.cdist(chunk, natural, compute_mode=exact).amin(1) for chunk in points.split(CHUNK)]
    )
