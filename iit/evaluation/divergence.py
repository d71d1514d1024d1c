"""How far edited activations are from natural ones."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.evaluation.outcomes import evaluating
from iit.intervened.batch import prepare
from iit.intervened.edited_run import EditedRun
from iit.intervened.positions import counts
from iit.intervened.sources import Variable, variables_of

N_NATURAL = 4096
"""Natural activations of a site that edited ones are compared with: the first ones."""
CHUNK = 256
"""Activations whose distances to all natural ones are held at a time."""
Place = tuple[Variable, int]
"""One site of an edit: the edit's variable, and the number of the site."""
USUAL = 0.95
"""The share of unedited activations whose distances are the measure."""
FLOOR = 1e-6
"""The least reference distance, as a share of the natural activations' mean norm."""


class _Here(NamedTuple):
    """One batch at one site of an edit.

    base, edited: Tensor[batch, position, width]. sources: the same of the sources that are read
    there, and which examples have them. present: which positions each example has. active: which
    examples the edit touches.
    """

    base: Float[Tensor, "batch position width"]
    edited: Float[Tensor, "batch position width"]
    sources: list[tuple[Tensor, Tensor]]
    present: Bool[Tensor, "batch position"]
    active: Bool[Tensor, " batch"]


def divergence(
    alignment: Alignment, pairs: EncodedPairs, natural: EncodedPairs, *, batch_size: int = 64
) -> np.ndarray:
    """float[n pairs]: the distance of each pair's edited activation to the nearest natural one, as
    a multiple of what 95% of the unedited
    ones stay within (arXiv 2511.04638).

    d(h) = min over natural activations a of ‖h − a‖; the figure is max over sites of d(h') / the
    95% quantile over pairs of d(h), where h is the base's activation, h' what the edit by itself
    makes of it (learned gates hard), and d of several positions that of the farthest. Of natural
    activations one in twenty is above 1. A pair that no edit touches has 1.

    natural: the pairs (of the training split) whose activations are natural: of the bases that the
        edit touches and, where sources are read at the same site, of these; the first 4096 of each
        site, in the order of the pairs.

    Where nearly all of the unedited activations are themselves among the natural ones the quantile
    is 0; at least 1e-6 of the natural activations' mean norm is taken: 0 then still says natural,
    and any other figure is a distance in units of that.

    A joint edit's positions are one vector. Raises ValueError for an edit that touches some of the
    pairs and none of the natural ones, and for attention weights, whose width is the prompt's
    length.
    """
    for edit in alignment.edits.values():
        if any(site.component == "attention_weight" for site in edit.sites):
            raise ValueError(
                "Attention weights are as wide as their prompt is long: there is no distance "
                "between prompts."
            )
    found = np.full(len(pairs), -np.inf)
    with evaluating(alignment):
        near = natural_activations(alignment, natural, batch_size)
        # Per site: distances of the unedited and the edited, and whether the edit touches the pair.
        distances = {place: np.zeros((2, len(pairs))) for place in near}
        touched = {place: np.zeros(len(pairs), dtype=bool) for place in near}
        for batch in pairs.batches(batch_size):
            rows = batch["row"].numpy()
            for place, here in _seen(alignment, batch).items():
                if place not in near:
                    raise ValueError(
                        f"None of the natural pairs interchanges {place[0]!s}: there is nothing "
                        "to compare with."
                    )
                for number, points in enumerate((here.base, here.edited)):
                    nearest = _nearest(points.flatten(0, 1), near[place]).view(here.present.shape)
                    distances[place][number, rows] = (
                        nearest.masked_fill(~here.present, 0).amax(1).cpu().numpy()
                    )
                touched[place][rows] = here.active.cpu().numpy()
    for place, (unedited, edited) in distances.items():
        chosen = touched[place]
        if chosen.any():
            floor = max(
                FLOOR * float(near[place].norm(dim=1).mean()), float(np.finfo(np.float32).tiny)
            )
            ratio = edited[chosen] / max(float(np.quantile(unedited[chosen], USUAL)), floor)
            found[chosen] = np.maximum(found[chosen], ratio)
    return np.where(np.isinf(found), 1.0, found)


def natural_activations(
    alignment: Alignment, natural: EncodedPairs, batch_size: int
) -> dict[Place, Float[Tensor, "n width"]]:
    """Of each site, its first natural activations: pair by pair the base's positions, then the
    sources'.
    """
    found: dict[Place, list[Tensor]] = {
        (key, n): [] for key, edit in alignment.edits.items() for n in range(len(edit.sites))
    }
    for rows in torch.arange(len(natural)).split(batch_size):
        for place, here in _seen(alignment, natural.batch(rows.tolist())).items():
            read = [(here.base, here.active), *here.sources]
            points = torch.stack([activation for activation, _ in read], 1)
            kept = torch.stack([here.present & there.unsqueeze(1) for _, there in read], 1)
            found[place].append(points[kept])
        if all(sum(map(len, here)) >= N_NATURAL for here in found.values()):
            break
    return {place: torch.cat(here)[:N_NATURAL] for place, here in found.items() if here}


def _seen(alignment: Alignment, batch: dict[str, Any]) -> dict[Place, _Here]:
    """What a batch of pairs has at each site of the edits that touch some of it."""
    sites = [site for edit in alignment.edits.values() for site in edit.sites]
    prepared = prepare(alignment.network, batch["base"]).at_answer(alignment.network, sites)
    idle = {variable: False for variable in alignment.variables if variable not in batch["sources"]}
    run = alignment.edited_run(
        prepared, batch["sources"] if alignment.needs_source else None, batch["active"] | idle
    )
    found = {}
    for key, edit in alignment.edits.items():
        variables = variables_of(key, edit)
        active = torch.stack([_active(run, variable, prepared.size) for variable in variables]).any(
            0
        )
        if not bool(active.any()):
            continue
        seen = alignment.read(prepared, {one.columns.site: one.columns for one in run.sites[key]})
        for number, one in enumerate(run.sites[key]):
            site = one.columns.site
            base, edited = seen[site], one.apply(seen[site])
            length = counts(one.columns, prepared)
            steps = torch.arange(base.shape[1], device=base.device).expand(base.shape[:2])
            present = (
                torch.ones_like(steps, dtype=torch.bool)
                if length is None
                else steps < length.to(base.device).unsqueeze(1)
            )
            sources = [
                (source, _active(run, variable, prepared.size).to(base.device))
                for variable, source in one.sources.items()
                if edit.source_sites[number] == site
            ]
            if edit.joint:
                present = present.any(1, keepdim=True)
                base, edited = (activation.flatten(1).unsqueeze(1) for activation in (base, edited))
                sources = [
                    (activation.flatten(1).unsqueeze(1), there) for activation, there in sources
                ]
            read_there = [(activation.float(), there) for activation, there in sources]
            found[key, number] = _Here(
                base.float(), edited.float(), read_there, present, active.to(base.device)
            )
    return found


def _active(run: EditedRun, variable: Any, size: int) -> Bool[Tensor, " batch"]:
    flag = run.flags[variable]
    return torch.ones(size, dtype=torch.bool) if flag is None else flag.cpu()


def _nearest(
    points: Float[Tensor, "n width"], natural: Float[Tensor, "m width"]
) -> Float[Tensor, " n"]:
    """The distance of each point to its nearest natural activation."""
    # By products of matrices equal points would be as far apart as rounding makes them.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat(
        [torch.cdist(chunk, natural, compute_mode=exact).amin(1) for chunk in points.split(CHUNK)]
    )
