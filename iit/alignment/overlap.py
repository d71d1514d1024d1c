"""Claims that overlap: they take the same units, or together more dimensions than there are.

A claim is what an edit of a variable takes at a site, or what an inert part takes there. Inert
parts are declared not to matter (see `Alignment`).
"""

from collections.abc import Iterator, Mapping, Sequence
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


class _Claim(NamedTuple):
    """What an edit, or an inert part, takes at one of its sites.

    Arguments:
        name: the edit's key, or the inert part's name.
        inert: whether it is an inert part.
        site: the site.
        intervention: what acts there.
        joint: whether the site's positions are concatenated.
        units: the units of the site, counted as its module counts them. None where only a run tells
            how many there are.
    """

    name: str
    inert: bool
    site: Site
    intervention: Intervention
    joint: bool
    units: Sequence[int] | None

    def __str__(self) -> str:
        return f"the {'inert part' if self.inert else 'edit of'} {self.name!r}"


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
    for is_inert, parts in ((False, edits), (True, inert)):
        for name, edit in parts.items():
            for claim in _claims(str(name), is_inert, edit, resolved):
                meeting = [
                    other
                    for other in claims
                    if not other.inert and other.name != claim.name and _meet(claim, other)
                ]
                for other in meeting:
                    _refuse_common(other, claim)
                # Dimensions are counted at each position by itself, over all claims that reach it.
                # A site without a position reaches all of them. If no claim names a position, all
                # are counted at once (None).
                for place in {
                    place for one in (*meeting, claim) for place in _positions(one.site) or ()
                } or {None}:
                    _refuse_excess(
                        [
                            one
                            for one in (*meeting, claim)
                            if place in (_positions(one.site) or (place,))
                        ]
                    )
                claims.append(claim)


def check_declared(
    edits: Mapping[str, Mapping[str, Any]], inert: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """`check_apart` for the units that a config names, before there is a network.

    Arguments:
        edits, inert: as `several` takes them.
    """
    check_apart(_declared(edits), _declared(inert or {}), {})


def _declared(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Edit]:
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
    name: str, inert: bool, edit: Edit, resolved: Mapping[Site, ResolvedSite]
) -> Iterator[_Claim]:
    """The claims of an edit, one for each site; none where the edit reads no source."""
    if not edit.intervention.needs_source:
        return
    for site in edit.sites:
        resolved_site = resolved.get(site)
        # A joint edit concatenates positions, so the site's own width says nothing about it.
        width = edit.intervention.width or (
            None if resolved_site is None or edit.joint else resolved_site.width
        )
        # A site with heads shows some columns of its module: claims are compared in the module's
        # units.
        units = (
            None
            if width is None
            else range(width)
            if resolved_site is None or resolved_site.columns is None
            else resolved_site.columns.tolist()
        )
        yield _Claim(name, inert, site, edit.intervention, edit.joint, units)


def _meet(one: _Claim, other: _Claim) -> bool:
    """Whether two claims are about some of the same activations.

    They are at one place of the network, with positions and heads in common.
    """
    a, b = one.site, other.site
    if one.joint or other.joint:
        return one.joint and other.joint and a == b
    if (a.component, a.layer, a.module, a.side) != (b.component, b.layer, b.module, b.side):
        return False
    places = (_positions(a), _positions(b)), (a.heads, b.heads)
    # None stands for all positions, or all heads.
    return all(x is None or y is None or bool({*x} & {*y}) for x, y in places)


def _positions(site: Site) -> Sequence[str | int] | None:
    """The positions as a sequence; None where the site has all of them."""
    return (site.position,) if isinstance(site.position, str | int) else site.position


def _refuse_common(one: _Claim, other: _Claim) -> None:
    kind = _shared(one.intervention.basis, other.intervention.basis)
    units, other_units = _taken(one, other), _taken(other, one)
    if kind is None or units is None or other_units is None or not units & other_units:
        return
    common = sorted(units & other_units)
    listed = f"{', '.join(map(str, common[:8]))}{', …' if len(common) > 8 else ''}"
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
    n_units = len({unit for claim in claims for unit in claim.units or ()})
    ranks = [
        _least(claim.intervention, n_units if claim.units is None else len(claim.units))
        for claim in claims
    ]
    if len(claims) > 1 and sum(ranks) > n_units:
        summands = " + ".join(
            f"{rank} ({claim.name})" for rank, claim in zip(ranks, claims, strict=True)
        )
        raise ValueError(
            f"The edits at {claims[-1].site} take {summands} = {sum(ranks)} dimensions of the "
            f"{n_units} that are there. Lower their ranks, or move one of them to another site."
        )


def _shared(one: Basis, other: Basis) -> str | None:
    """The kind of coordinates that two bases have in common; None where none is known."""
    if isinstance(one, Identity) and isinstance(other, Identity):
        return "units"
    if isinstance(one, PrincipalComponents) and isinstance(other, PrincipalComponents):
        # Principal components come in order: a shorter frame is compared with the start of a longer
        # one.
        n = min(one.frame.shape[1], other.frame.shape[1])
        return "components" if torch.equal(one.frame[:, :n], other.frame[:, :n]) else None
    if isinstance(one, Autoencoder) and isinstance(other, Autoencoder):
        return "features" if torch.equal(one.encoder, other.encoder) else None
    return "coordinates" if one is other else None


def _taken(claim: _Claim, other: _Claim) -> set[int] | None:
    """The coordinates that a claim takes; None where a gate learns them."""
    intervention, gate = claim.intervention, claim.intervention.gate
    if isinstance(gate, SoftGate):
        return None
    units = claim.units or other.units or (0,)
    all_coordinates = range(intervention.rank or len(units))
    taken = set(gate.arguments["indices"]) if isinstance(gate, Subset) else set(all_coordinates)
    if intervention.kind == "complement":
        taken = set(all_coordinates) - taken
    return {units[i] for i in taken} if isinstance(intervention.basis, Identity) else taken


def _least(intervention: Intervention, width: int) -> int:
    """The least number of dimensions that an intervention takes."""
    gate, basis = intervention.gate, intervention.basis
    # A learned gate may close almost all coordinates, and an autoencoder's features are no
    # dimensions.
    learned = isinstance(gate, SoftGate) or isinstance(basis, Autoencoder)
    rank = (
        1
        if learned
        else len(gate.arguments["indices"])
        if isinstance(gate, Subset)
        else intervention.rank or width
    )
    return rank if intervention.kind != "complement" else 0 if learned else width - rank
