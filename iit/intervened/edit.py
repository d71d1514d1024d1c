"""The edit: one thing done to one run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from iit.intervention import Intervention
from iit.site import Site

Variable = str | Site
"""The name of a variable; or a site, whose edit serves no named variable.

It is also the type of the keys of edits. The key of an edit with blocks is no variable: the names
of its blocks are variables (see `variables_of`).
"""


@dataclass(frozen=True, eq=False)
class Edit:
    """Sites, and the intervention that acts on them.

    Arguments:
        sites: where the base's run is edited. Several sites (or positions) share the weights of the
            intervention; each has activations of its own.
        source_sites: where the source run is read, one for each site. By default these are the same
            sites, with their positions resolved on the source.
        joint: whether the positions of the site are concatenated into one vector of width
            `n_positions * width`, which is edited as a whole. The site may have several positions,
            roles or heads. Several sites cannot be concatenated: they are computed one after
            another.

    Raises ValueError without a site, and where sites and source sites differ in number. Raises it
    also for a joint edit of several sites, and for an intervention that is no `Intervention`.
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
        sites = as_sites(sites)
        # The same sites; their positions are resolved on the source.
        if source_sites is None:
            source_sites = sites
        source_sites = as_sites(source_sites)
        if not sites:
            raise ValueError("An edit needs at least one site.")
        if len(source_sites) != len(sites):
            raise ValueError(
                f"An edit with {len(sites)} sites needs as many source sites; "
                f"{len(source_sites)} were given."
            )
        if joint and len(sites) > 1:
            raise ValueError(
                "A joint edit has one site, whose positions (or roles, or heads) it concatenates; "
                f"{len(sites)} were given. Sites are computed one after another: the later "
                "depends on what is written at the earlier."
            )
        if not isinstance(intervention, Intervention):
            raise ValueError(
                f"An edit needs an Intervention made for its width; {intervention!r} was given (a "
                "`_partial_` one is completed by `iit.alignment.one`)."
            )

        # The dataclass is frozen, so its own constructor cannot assign to fields either.
        vars(self).update(
            sites=sites, intervention=intervention, source_sites=source_sites, joint=joint
        )

    def apply(
        self,
        base: Tensor,
        sources: Mapping[Variable, Tensor],
        flags: Mapping[Variable, Tensor | None],
    ) -> Tensor:
        """The new activation at one site: Tensor[batch, position, width], as the base.

        Arguments:
            sources: {variable: Tensor, in the shape of the base}, for each variable that has a
                source.
            flags: {variable: Tensor[batch] of bool}, which examples are active; None for every one.
        """
        shape = base.shape
        if self.joint:
            # [batch, position, width] → [batch, 1, position · width]
            base = base.reshape(shape[0], 1, -1)
            sources = {variable: source.reshape(base.shape) for variable, source in sources.items()}
        if self.intervention.blocks is None:
            # Without blocks the edit serves one variable.
            (flag,) = flags.values()
            new = self.intervention(base, next(iter(sources.values()), None), flag)
        else:
            # A block that is missing here is active in every example.
            partly = {block: flag for block, flag in flags.items() if flag is not None}
            new = self.intervention(base, sources, partly or None)
        return new.reshape(shape)


def as_sites(sites: Site | Sequence[Site]) -> tuple[Site, ...]:
    """The sites as a tuple, also where one stands alone."""
    return (sites,) if isinstance(sites, Site) else tuple(sites)


def sites_of(edits: Iterable[Edit]) -> list[Site]:
    """The sites of all edits, in their order."""
    return [site for edit in edits for site in edit.sites]


def variables_of(key: Variable, edit: Edit) -> tuple[Variable, ...]:
    """The variables that an edit serves: the blocks of its intervention, or the edit's own key."""
    return edit.intervention.blocks or (key,)


def block_input(site: Site) -> Site:
    """The input of the block whose output the site is: what `SkipIntervention` puts there.

    Raises ValueError for a site that is not the output of a block.
    """
    if site.component != "block_output":
        raise ValueError(
            "SkipIntervention puts the block's own input in place of `block_output`; the "
            f"site is {site}."
        )
    return Site("block_input", layer=site.layer, position=site.position)
