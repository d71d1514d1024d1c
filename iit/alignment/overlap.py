"""What an alignment claims twice: edits, and inert parts, that cover the same units of a site, or
more dimensions than it has.
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
    """What an edit takes at one of its sites. units: those of the module that the site shows, where
    that is known before a run.
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
    """Raises ValueError where the edits of two variables, or an edit and an inert part, take the
    same units (components, features) of a
    site, or more dimensions together than it has.

    Inert parts may overlap each other. What a learned gate will let through is not known: it counts
    as one dimension.
    """
    seen: list[_Claim] = []
    for inert_ones, parts in ((False, edits), (True, inert)):
        for name, edit in parts.items():
            for claim in _claims(str(name), inert_ones, edit, resolved):
                beside = [
                    other
                    for other in seen
                    if not other.inert and other.name != claim.name and _meet(claim, other)
                ]
                for other in beside:
                    _refuse_common(other, claim)
                for place in {
                    place for one in (*beside, claim) for place in _positions(one.site) or ()
                } or {None}:
                    _refuse_excess(
                        [
                            one
                            for one in (*beside, claim)
                            if place in (_positions(one.site) or (place,))
                        ]
                    )
                seen.append(claim)


def check_declared(
    edits: Mapping[str, Mapping[str, Any]], inert: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """`check_apart` of the units that a config names, before there is a network; edits and inert
    parts as `several` takes them.
    """
    check_apart(_declared(edits), _declared(inert or {}), {})


def _declared(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Edit]:
    """Those parts that are vanilla, at a width that holds their units."""
    found = {}
    for name, part in parts.items():
        make: Any = part.get("intervention")
        if getattr(make, "func", None) is VanillaIntervention:
            units = make.keywords.get("units")
            width = None if units is None else 1 + max(units_of(units), default=0)
            found[name] = Edit(part["site"], VanillaIntervention(width, units))
    return found


def _claims(
    name: str, inert: bool, edit: Edit, resolved: Mapping[Site, ResolvedSite]
) -> Iterator[_Claim]:
    if not edit.intervention.needs_source:
        return
    for site in edit.sites:
        place = resolved.get(site)
        width = edit.intervention.width or (None if place is None or edit.joint else place.width)
        units = (
            None
            if width is None
            else range(width)
            if place is None or place.columns is None
            else place.columns.tolist()
        )
        yield _Claim(name, inert, site, edit.intervention, edit.joint, units)


def _meet(one: _Claim, other: _Claim) -> bool:
    """Whether both are about some of the same activations: one place, with positions and heads in
    common.
    """
    a, b = one.site, other.site
    if one.joint or other.joint:
        return one.joint and other.joint and a == b
    if (a.component, a.layer, a.module, a.side) != (b.component, b.layer, b.module, b.side):
        return False
    places = (_positions(a), _positions(b)), (a.heads, b.heads)
    return all(x is None or y is None or bool({*x} & {*y}) for x, y in places)


def _positions(site: Site) -> Sequence[str | int] | None:
    """The positions as a sequence; None where they are all."""
    return (site.position,) if isinstance(site.position, str | int) else site.position


def _refuse_common(one: _Claim, other: _Claim) -> None:
    what = _shared(one.intervention.basis, other.intervention.basis)
    mine, theirs = _taken(one, other), _taken(other, one)
    if what is None or mine is None or theirs is None or not mine & theirs:
        return
    common = sorted(mine & theirs)
    told = f"{', '.join(map(str, common[:8]))}{', …' if len(common) > 8 else ''}"
    raise ValueError(
        f"{str(one).capitalize()} and {other} overlap at {other.site}: both take {what} {told}. "
        f"Give each {what} of its own; several "
        "variables at one site may be blocks of one basis: RotatedSpaceIntervention(width, "
        "blocks={variable: rank})."
    )


def _refuse_excess(claims: Sequence[_Claim]) -> None:
    """Where claims on one site take more dimensions than it has."""
    # 0 where no claim knows its width: all are whole
    there = len({unit for claim in claims for unit in claim.units or ()})
    ranks = [
        _least(claim.intervention, there if claim.units is None else len(claim.units))
        for claim in claims
    ]
    if len(claims) > 1 and sum(ranks) > there:
        told = " + ".join(
            f"{rank} ({claim.name})" for rank, claim in zip(ranks, claims, strict=True)
        )
        raise ValueError(
            f"The edits at {claims[-1].site} take {told} = {sum(ranks)} dimensions of the "
            f"{there} that are there. Lower their ranks, or "
            "move one of them to another site."
        )


def _shared(one: Basis, other: Basis) -> str | None:
    """What the coordinates of both bases are, if they are the same ones; None where they are not,
    or nothing tells.
    """
    if isinstance(one, Identity) and isinstance(other, Identity):
        return "units"
    if isinstance(one, PrincipalComponents) and isinstance(other, PrincipalComponents):
        n = min(one.frame.shape[1], other.frame.shape[1])
        return "components" if torch.equal(one.frame[:, :n], other.frame[:, :n]) else None
    if isinstance(one, Autoencoder) and isinstance(other, Autoencoder):
        return "features" if torch.equal(one.encoder, other.encoder) else None
    return "coordinates" if one is other else None


def _taken(claim: _Claim, other: _Claim) -> set[int] | None:
    """Which coordinates a claim takes; None where a gate learns it."""
    intervention, gate = claim.intervention, claim.intervention.gate
    if isinstance(gate, SoftGate):
        return None
    units = claim.units or other.units or (0,)
    every = range(intervention.rank or len(units))
    taken = set(gate.arguments["indices"]) if isinstance(gate, Subset) else set(every)
    if intervention.kind == "complement":
        taken = set(every) - taken
    return {units[i] for i in taken} if isinstance(intervention.basis, Identity) else taken


def _least(intervention: Intervention, width: int) -> int:
    """How many dimensions are taken at least."""
    gate, basis = intervention.gate, intervention.basis
    learned = isinstance(gate, SoftGate) or isinstance(basis, Autoencoder)
    rank = (
        1
        if learned
        else len(gate.arguments["indices"])
        if isinstance(gate, Subset)
        else intervention.rank or width
    )
    return rank if intervention.kind != "complement" else 0 if learned else width - rank
