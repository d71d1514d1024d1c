"""The grid of a map: the cells, which are edited one at a time."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

from torch import nn

from iit.network.components import HEADED, UNLAYERED, blocks_of, heads_of
from iit.patching.contrast import Contrast
from iit.site import Site, resolve

Position = str | int | tuple[str, ...] | tuple[int, ...] | None


class MapCell(NamedTuple):
    """One point of a map: a site and, where single units are edited, a unit of it."""

    site: Site
    unit: int | None = None

    def __str__(self) -> str:
        return str(self.site) + ("" if self.unit is None else f", unit {self.unit}")


def grid(
    contrast: Contrast,
    *,
    components: str | Iterable[str] = "block_output",
    layers: Iterable[int] | None = None,
    heads: Iterable[Any] | None = None,
    positions: Iterable[Position] | str | int | None = None,
    units: Iterable[int | None] | None = None,
    cells: Iterable[MapCell | Site] | None = None,
) -> list[MapCell]:
    """The cells of a map: the product of components, layers, heads, positions and units.

    Arguments:
        components: names of `iit.network.components.COMPONENTS`. A component's cells leave out what
            it does not have (layers, heads).
        layers: all blocks by default.
        heads: numbers or "all", of components that have heads; None takes the component whole.
        positions: roles or token indices, each by itself. (None,) takes all positions at once. By
            default every index that all prompts have, which suits prompts of one template.
        units: coordinates of the component, each by itself; None takes all at once.
        cells: cells or sites, in place of the product, whose arguments are then not read.

    Raises:
        ValueError: for a product of nothing, heads that are another word, positions that are a
            single one, sites that the network lacks, and units that a site lacks.
    """
    if cells is None:
        if isinstance(components, str):
            components = [components]
        if isinstance(heads, str) and heads != "all":
            raise ValueError(f'heads={heads!r} is neither numbers, "all", nor None.')
        if isinstance(positions, str | int):
            raise ValueError(
                f"positions={positions!r}: give several, each by itself, as [{positions!r}]."
            )

        if layers is None:
            layers = range(n_blocks(contrast.module))
        if positions is None:
            positions = common_positions(contrast)
        if units is None:
            units = (None,)
        cells = []
        for component in components:
            # A component without layers has its cells once, not once for each layer.
            blocks = [None] if component in UNLAYERED else layers
            for layer in blocks:
                parts: Iterable[Any] = [None]
                if layer is not None and component in HEADED and heads is not None:
                    n_heads = heads_of(contrast.module, component, layer)
                    parts = range(n_heads) if heads == "all" else heads
                for head, position, unit in product(parts, positions, units):
                    site = Site(component, layer=layer, head=head, position=position)
                    cells.append(MapCell(site, unit))

    # A site stands for the cell without a unit.
    complete = [MapCell(cell) if isinstance(cell, Site) else cell for cell in cells]
    if not complete:
        raise ValueError(
            "There is no cell: components, layers, heads, positions and units leave none."
        )
    for cell in complete:
        if cell.unit is None:
            continue
        width = resolve(contrast.module, cell.site).width
        # Without a width only a run tells.
        if width is not None and not 0 <= cell.unit < width:
            raise ValueError(
                f"There is no unit {cell.unit} at {cell.site}: units 0 to {width - 1}."
            )
    return complete


def whole_sites(cells: Sequence[MapCell]) -> list[Site]:
    """The sites of cells that are no single units.

    Raises:
        ValueError: for a cell that is one unit.
    """
    for cell in cells:
        if cell.unit is not None:
            raise ValueError(f"{cell}: this map takes components whole; leave `units` out.")
    return [cell.site for cell in cells]


def n_blocks(network: nn.Module) -> int:
    """How many layers a network has."""
    return len(blocks_of(network).blocks)


def common_positions(contrast: Contrast) -> range:
    """Every token index that all bases and sources have."""
    masks = (contrast.base["attention_mask"], contrast.source["attention_mask"])
    return range(min(int(mask.sum(1).min()) for mask in masks))
