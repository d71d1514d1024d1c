"""The edit: one thing done to one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from iit.intervention import Intervention
from iit.site import Site

Variable = str | Site


@dataclass(frozen=True, eq=False)
class Edit:
    """Sites and the intervention that acts on them.

    sites: where the base run is edited. Several sites (or positions) share the intervention's
        weights, each with its own activations.
    source_sites: where the source run is read, one a site; by default the same sites, their
        positions resolved on the source.
    joint: concatenate the positions of the site into one vector of width `n_positions * width`,
        edited as a whole. Several positions, roles or heads are one site's; what lies elsewhere is
        computed at another time, and cannot be concatenated.

    Raises ValueError when the sites and source sites differ in number, or a joint edit has several
    sites.
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
            raise ValueError(
                f"An edit with {len(sites)} sites needs as many source sites; "
                f"{len(source_sites)} were given."
            )
        if joint and len(sites) > 1:
            raise ValueError(
                "A joint edit has one site, whose positions (or roles, or heads) it "
                f"concatenates; {len(sites)} were given. Places "
                "apart are computed one after another: the later depends on what is written at "
                "the earlier."
            )
        if not isinstance(intervention, Intervention):
            raise ValueError(
                f"An edit needs an Intervention made for its width; {intervention!r} was given "
                "(a `_partial_` one is completed "
                "by `iit.alignment.one`)."
            )
        for name, value in (
            ("sites", sites),
            ("intervention", intervention),
            ("source_sites", source_sites),
            ("joint", joint),
        ):
            object.__setattr__(self, name, value)

    def apply(
        self,
        base: Tensor,
        sources: Mapping[Variable, Tensor],
        flags: Mapping[Variable, Tensor | None],
    ) -> Tensor:
        """The new activation at one site: Tensor[batch, position, width], as the base.

        sources: of each variable that has one, in the shape of the base. flags: which examples are
            active, Tensor[batch] of bool; None = every one.
        """
        shape = base.shape
        if self.joint:
            base = base.reshape(shape[0], 1, -1)
            sources = {variable: source.reshape(base.shape) for variable, source in sources.items()}
        if self.intervention.blocks is None:
            (flag,) = flags.values()
            new = self.intervention(base, next(iter(sources.values()), None), flag)
        else:
            partly = {block: flag for block, flag in flags.items() if flag is not None}
            new = self.intervention(base, sources, partly or None)
        return new.reshape(shape)


def variables_of(key: Variable, edit: Edit) -> tuple[Variable, ...]:
    """The variables an edit serves: its intervention's blocks, or the name it was given."""
    return edit.intervention.blocks or (key,)


def block_input(site: Site) -> Site:
    """What a skipped block would have read. Raises ValueError for a site that is no block's
    output."""
    if site.component != "block_output":
        raise ValueError(
            "SkipIntervention puts the block's own input in place of `block_output`; the site "
            f"is {site}."
        )
    return Site("block_input", layer=site.layer, position=site.position)
