"""Claims that overlap: they take the same units, or together more dimensions than there are.

A claim is what an edit of a variable takes at a site, or what an inert part takes there. Inert
parts are declared not to matter (see `Alignment`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from iit.intervened import Edit
from iit.intervention import (
    Autoencoder,
    Basis,
    Identity,
    Intervention,
    PrincipalComponents,
    SoftGate,
    Subset,
    VanillaIntervention,
)
from iit.intervention.named import units_of
from iit.site import ResolvedSite, Site

DeclaredEdits = Mapping[str, Mapping[str, Any]]
"""{variable or inert part: its site and intervention}, as a config has them."""


class _Claim(NamedTuple):
    """What an edit, or an inert part, takes at one of its sites.

    Arguments:
        name: the edit's key, or the inert part's name.
        inert: whether it is an inert part.
        edit: the edit.
        site: the site.
        units: the units of the site, counted as its module counts them. None where only a run tells
            how many there are.
    """

    name: str
    inert: bool
    edit: Edit
    site: Site
    units: Sequence[int] | None

    def __str__(self) -> str:
        if self.inert:
            return f"the inert part {self.name!r}"
        return f"the edit of {self.name!r}"


def check_apart(
    edits: Mapping[Any, Edit], inert: Mapping[str, Edit], resolved: Mapping[Site, ResolvedSite]
) -> None:
    """Check that edits and inert parts claim different subspaces.

    Inert parts may overlap each other. A learned gate may close all coordinates but one, so it
    counts as one dimension.

    Raises ValueError where two of them take the same units (components, features) of a site, or
    together more dimensions than it has. The two are the edits of two variables, or an edit and an
    inert part.
    """
    claims: list[_Claim] = []
    for claim in (*_claims(edits, False, resolved), *_claims(inert, True, resolved)):
        # What other edits claim of the same activations.
        neighbours = [c for c in claims if not c.inert and c.name != claim.name and _meet(claim, c)]
        for neighbour in neighbours:
            _refuse_common(neighbour, claim)
        # Dimensions are counted at each position by itself, over all claims that reach it. A site
        # without a position reaches all of them. If no claim names a position, all are counted at
        # once (None).
        together = [*neighbours, claim]
        positions = set()
        for one in together:
            positions.update(_positions(one.site) or ())
        for position in positions or {None}:
            _refuse_excess([c for c in together if position in (_positions(c.site) or (position,))])
        claims.append(claim)


def check_declared(edits: DeclaredEdits, inert: DeclaredEdits | None = None) -> None:
    """`check_apart` for the units that a config names, before there is a network.

    Arguments:
        edits, inert: as `several` takes them.
    """
    check_apart(_declared(edits), _declared(inert or {}), {})


def _declared(parts: DeclaredEdits) -> dict[str, Edit]:
    """The vanilla parts, as edits that are just wide enough for their units."""
    edits = {}
    for name, part in parts.items():
        make: Any = part.get("intervention")
        if getattr(make, "func", None) is VanillaIntervention:
            units = make.keywords.get("units")
            # Without `units` the part is the whole site, of a width that nobody knows yet.
            width = None if units is None else 1 + max(units_of(units), default=0)
            edits[name] = Edit(part["site"], VanillaIntervention(width, units))
    return edits


def _claims(
    parts: Mapping[Any, Edit], inert: bool, resolved: Mapping[Site, ResolvedSite]
) -> Iterator[_Claim]:
    """The claims of edits, one for each site; none where an edit reads no source."""
    for name, edit in parts.items():
        if not edit.intervention.needs_source:
            continue
        for site in edit.sites:
            resolved_site = resolved.get(site)
            width, columns = edit.intervention.width, None
            if resolved_site is not None:
                columns = resolved_site.units
                # A joint edit concatenates positions, so the site's width says nothing about it.
                if width is None and not edit.joint:
                    width = resolved_site.width
            units = None if width is None else range(width)
            # A site with heads shows some columns of its module: claims are compared in the
            # module's units.
            if units is not None and columns is not None:
                units = columns.tolist()
            yield _Claim(str(name), inert, edit, site, units)


def _meet(one: _Claim, other: _Claim) -> bool:
    """Whether two claims are about some of the same activations.

    They are at one place of the network, with positions and heads in common.
    """
    a, b = one.site, other.site
    if one.edit.joint or other.edit.joint:
        return one.edit.joint and other.edit.joint and a == b
    # None stands for all positions, or all heads.
    for some, others in ((_positions(a), _positions(b)), (a.heads, b.heads)):
        if some is not None and others is not None and {*some}.isdisjoint(others):
            return False
    return replace(a, position=None, head=None) == replace(b, position=None, head=None)


def _positions(site: Site) -> Sequence[str | int] | None:
    """The positions as a sequence; None where the site has all of them."""
    return (site.position,) if isinstance(site.position, str | int) else site.position


def _refuse_common(one: _Claim, other: _Claim) -> None:
    """Raises ValueError where two claims take the same coordinates."""
    kind = _shared(one.edit.intervention.basis, other.edit.intervention.basis)
    common = sorted(_taken(one, other) & _taken(other, one))
    if kind is None or not common:
        return
    listed = ", ".join(map(str, common[:8]))
    if len(common) > 8:
        listed += ", …"
    raise ValueError(
        f"{str(one).capitalize()} and {other} overlap at {other.site}: both take {kind} {listed}. "
        f"Give each {kind} of its own; several "
        "variables at one site may be blocks of one basis: RotatedSpaceIntervention(width, "
        "blocks={variable: rank})."
    )


def _refuse_excess(claims: Sequence[_Claim]) -> None:
    """Raises ValueError where claims on one site take more dimensions than it has."""
    # The units that the claims show together; 0 where no claim knows its width, and each takes the
    # whole site.
    shown = set()
    for claim in claims:
        shown.update(claim.units or ())
    n_units = len(shown)
    ranks = []
    for claim in claims:
        width = n_units if claim.units is None else len(claim.units)
        ranks.append(_least(claim.edit.intervention, width))
    if len(claims) > 1 and sum(ranks) > n_units:
        names = [claim.name for claim in claims]
        summands = " + ".join(map("{} ({})".format, ranks, names))
        raise ValueError(
            f"The edits at {claims[-1].site} take {summands} = {sum(ranks)} dimensions of the "
            f"{n_units} that are there. Lower their ranks, or move one of them to another site."
        )


def _shared(one: Basis, other: Basis) -> str | None:
    """The kind of coordinates that two bases have in common; None where none is known."""
    match one, other:
        case Identity(), Identity():
            return "units"
        case PrincipalComponents(), PrincipalComponents():
            # Principal components come in order: a shorter frame is compared with the start of a
            # longer one.
            n = min(one.frame.shape[1], other.frame.shape[1])
            if torch.equal(one.frame[:, :n], other.frame[:, :n]):
                return "components"
        case Autoencoder(), Autoencoder():
            if torch.equal(one.encoder, other.encoder):
                return "features"
        case _ if one is other:
            return "coordinates"
    return None


def _taken(claim: _Claim, other: _Claim) -> set[int]:
    """The coordinates that a claim surely takes: none where a gate learns them."""
    intervention, gate = claim.edit.intervention, claim.edit.intervention.gate
    if isinstance(gate, SoftGate):
        return set()
    units = claim.units or other.units or (0,)
    taken = coordinates = set(range(intervention.rank or len(units)))
    if isinstance(gate, Subset):
        taken = set(gate.arguments["indices"])
    if intervention.kind == "complement":
        taken = coordinates - taken
    if isinstance(intervention.basis, Identity):
        return {units[i] for i in taken}
    return taken


def _least(intervention: Intervention, width: int) -> int:
    """The least number of dimensions that an intervention takes at a site of this width."""
    rest = intervention.kind == "complement"
    # A learned gate may close almost all coordinates, and an autoencoder's features are no
    # dimensions.
    if isinstance(intervention.gate, SoftGate) or isinstance(intervention.basis, Autoencoder):
        return 0 if rest else 1
    rank = swapped_rank(intervention) or width
    return width - rank if rest else rank


def swapped_rank(intervention: Intervention) -> int | None:
    """How many dimensions an intervention swaps; None where that is learned or unknown.

    It differs from `learned_rank` for gates: a learned gate has none, and a fixed one as many as
    it has indices.
    """
    gate = intervention.gate
    if isinstance(gate, SoftGate):
        return None
    if isinstance(gate, Subset):
        return len(gate.arguments["indices"])
    return intervention.rank
