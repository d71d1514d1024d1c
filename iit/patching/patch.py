"""Activation patching: the source's activation in place of the base's, one cell at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iit.data import EncodedPairs, Pairs
from iit.intervened import Activations, ActivationStore, IntervenedModel
from iit.network import Network
from iit.network.components import HEADED, UNLAYERED, blocks_of, heads_of
from iit.patching.ahead import Ahead
from iit.patching.contrast import Contrast, activations, taken
from iit.patching.effects import Cell, Effects
from iit.patching.metric import Metric, metrics_of
from iit.patching.running import CELL, Give, Given, measured, places_of
from iit.site import Site

Position = str | int | tuple[str, ...] | tuple[int, ...] | None


def patch(
    network: Network | nn.Module,
    pairs: Pairs | EncodedPairs | Contrast,
    *,
    components: str | Sequence[str] = "block_output",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    positions: Sequence[Position] | None = None,
    units: Sequence[int] | None = None,
    sites: Sequence[Site] | None = None,
    direction: str = "noising",
    metric: str | Metric | Sequence[str] | Mapping[str, Metric] = "logit_difference",
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """Activation patching of every component × layer × head × position × unit (arXiv 2202.05262, 2309.16042).

    pairs: of their split the changing ones are run; or a `Contrast` made of two batches.
    layers: all blocks by default. heads: numbers or "all", of components that have heads; None takes the component whole.
    positions: roles or token indices, each by itself; (None,) takes all positions at once; by default every index that all prompts
        have (which suits prompts of one template). units: coordinates of the component, each by itself; None takes all at once.
    sites: in place of the product of components, layers, heads and positions.
    direction: "noising" runs the base with the source's activations, "denoising" the source with the base's.
    metric: names of `iit.patching.METRICS`, also with "normalised_" before them, or functions (logits, answers) → Tensor[batch].

    Raises ValueError for sites the network lacks, positions a prompt lacks, and what `Contrast.of` refuses.
    """
    contrast = of(network, pairs, split, variable, direction)
    found = sites if sites is not None else sites_of(contrast, components, layers, heads, positions)
    cells = [Cell(site, unit) for site in found for unit in (units if units is not None else (None,))]
    return measured(
        contrast,
        cells,
        from_source(contrast),
        metrics_of(metric),
        method="VanillaIntervention" if direction == "noising" else "VanillaIntervention, denoising",
        store=store,
        batch_size=batch_size,
        progress=progress,
    )


def of(
    network: Network | nn.Module,
    pairs: Pairs | EncodedPairs | Contrast,
    split: str,
    variable: str | None,
    direction: str = "noising",
) -> Contrast:
    """The pairs as a contrast in the direction that is asked for."""
    if not isinstance(pairs, Contrast):
        return Contrast.of(network, pairs, split=split, variable=variable, direction=direction)
    if direction not in ("noising", "denoising"):
        raise ValueError(f"direction={direction!r} is none of noising, denoising.")
    return pairs if direction == "noising" else pairs.swapped()


def sites_of(
    contrast: Contrast,
    components: str | Sequence[str],
    layers: Sequence[int] | None,
    heads: Sequence[int] | str | None,
    positions: Sequence[Position] | None,
) -> list[Site]:
    """The product of what is asked for; layers and heads that a component does not have are left out of it."""
    network: Any = contrast.network.model if isinstance(contrast.network, Network) else contrast.network
    components = [components] if isinstance(components, str) else components
    if isinstance(heads, str) and heads != "all":
        raise ValueError(f'heads={heads!r} is neither numbers, "all", nor None.')
    if isinstance(positions, str | int):
        raise ValueError(f"positions={positions!r}: give several, each by itself, as [{positions!r}].")
    every = range(len(blocks_of(network)[1])) if layers is None else layers
    places = common_positions(contrast) if positions is None else positions

    def heads_in(component: str) -> Sequence[int | None]:
        if heads is None or component not in HEADED:
            return (None,)
        return range(heads_of(network, component)) if isinstance(heads, str) else heads

    return [
        Site(component, layer=layer, head=head, position=position)
        for component in components
        for layer in ((None,) if component in UNLAYERED else every)
        for head in heads_in(component)
        for position in places
    ]


def common_positions(contrast: Contrast) -> list[Position]:
    """Every token index that all bases and sources have."""
    return list(range(min(int(side["attention_mask"].sum(1).min()) for side in (contrast.base, contrast.source))))


def from_source(contrast: Contrast, source: Mapping[str, Any] | None = None) -> Give:
    """What replaces a cell: the source's activation at its own position; of a unit, the base's activation with that unit from the
    source's."""
    other = contrast.source if source is None else source
    ahead = Ahead(contrast.network, other)

    def give(model: IntervenedModel, site: Site, cells: Sequence[Cell]) -> Given:
        n = len(contrast)
        if cells[0].unit is not None:
            return one_unit(contrast, site, cells, activations(contrast.network, other, list({cell.site for cell in cells})))
        if site.component not in (None, "attention_weight"):
            group = ahead.ask([cell.site for cell in cells])
            return lambda which, pairs, _: ahead.rows(group, site, which, pairs)
        # A module may have positions of its own, and attention weights are as wide as their batch is long.
        places = None if site.position is None else places_of(model, cells, other)

        def theirs(which: Tensor, pairs: Tensor, _: Mapping[str, Any]) -> dict[str, Any]:
            batch = taken(other, pairs)
            return batch if places is None else batch | {"positions": {CELL: places[which * n + pairs]}}

        return theirs

    return give


def one_unit(contrast: Contrast, site: Site, cells: Sequence[Cell], replacement: Activations) -> Given:
    """The base's activations with, in each row, one unit of the replacement's.

    replacement: {the cells' sites: Tensor[pair, position, width]}. Raises ValueError for a unit the component lacks.
    """
    own: Mapping[Site, Tensor] = activations(contrast.network, contrast.base, list(replacement))
    width = next(iter(own.values())).shape[-1]
    most = max(each.shape[1] for each in own.values())  # cells of one group may select different numbers of positions
    own, theirs = (
        {site: nn.functional.pad(each, (0, 0, 0, most - each.shape[1])) for site, each in side.items()}
        for side in (own, replacement)
    )
    units = torch.tensor([cell.unit for cell in cells])
    if not bool(((units >= 0) & (units < width)).all()):
        raise ValueError(
            f"units reach from {int(units.min())} to {int(units.max())}; {site.component} has units 0 to {width - 1}."
        )

    def mixed(which: Tensor, pairs: Tensor, base: Mapping[str, Any]) -> Activations:
        found = torch.stack([own[cells[c].site][p] for c, p in zip(which.tolist(), pairs.tolist(), strict=True)])
        rows = torch.arange(len(found))
        there = torch.stack([theirs[cells[c].site][p] for c, p in zip(which.tolist(), pairs.tolist(), strict=True)])
        found[rows, :, units[which]] = there[rows, :, units[which]]
        return Activations({site: found})

    return mixed
