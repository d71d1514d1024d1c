"""The edit: one thing done to one run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from iit.intervention import Intervention
from iit.site import Site


@dataclass(frozen=True, eq=False)
class Edit:
    """Sites and the intervention that acts on them.

    sites: where the base run is edited. Several sites (or positions) share the intervention's weights, each with its own
        activations.
    source_sites: where the source run is read, one a site; by default the same sites, their positions resolved on the
        source.
    joint: concatenate the positions of the site into one vector of width `n_positions * width`, edited as a whole. Several
        positions, roles or heads are one site's; what lies elsewhere is computed at another time, and cannot be concatenated.

    Raises ValueError when the sites and source sites differ in number, or a joint edit has several sites.
    """

    sites: tuple[Site, ...]
    intervention: Intervention
    source_sites: tuple[Site, ...]
    joint: bool

    def __init__(
        self,
        sites: Site | Sequence[Site],
        intervention: Intervention,
        source_sites: Site | Sequence[Site] | None = None,
        joint: bool = False,
    ):
        sites = (sites,) if isinstance(sites, Site) else tuple(sites)
        if source_sites is None:
            source_sites = sites
        source_sites = (source_sites,) if isinstance(source_sites, Site) else tuple(source_sites)
        if not sites:
            raise ValueError("An edit needs at least one site.")
        if len(source_sites) != len(sites):
            raise ValueError(f"An edit with {len(sites)} sites needs as many source sites; {len(source_sites)} were given.")
        if joint and len(sites) > 1:
            raise ValueError(
                f"A joint edit has one site, whose positions (or roles, or heads) it concatenates; {len(sites)} were given. Places "
                "apart are computed one after another: the later depends on what is written at the earlier."
            )
        if not isinstance(intervention, Intervention):
            raise ValueError(
                f"An edit needs an Intervention made for its width; {intervention!r} was given (a `_partial_` one is completed "
                "by `iit.alignment.one`)."
            )
        for name, value in (("sites", sites), ("intervention", intervention), ("source_sites", source_sites), ("joint", joint)):
            object.__setattr__(self, name, value)

    def apply(self, base: Tensor, source: Tensor | dict[str, Tensor] | None, active: Any) -> Tensor:
        """The new activation at one site: Tensor[batch, position, width], as the base."""
        if not self.joint:
            return self.intervention(base, source, active)
        shape = base.shape
        if isinstance(source, dict):
            source = {block: value.reshape(shape[0], 1, -1) for block, value in source.items()}
        elif source is not None:
            source = source.reshape(shape[0], 1, -1)
        return self.intervention(base.reshape(shape[0], 1, -1), source, active).reshape(shape)
