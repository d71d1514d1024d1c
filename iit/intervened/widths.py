"""Whether sites are as wide as the interventions that are to act on them."""

from collections.abc import Mapping

from torch import Tensor

from iit.intervened.edit import Edit
from iit.intervened.positions import Columns
from iit.intervened.sources import Variable
from iit.network.answering import IGNORED
from iit.site import ResolvedSite, Site


def check_width(key: Variable, edit: Edit, resolved: Mapping[Site, ResolvedSite]) -> None:
    """What is known before a batch is given. Raises ValueError for sites that do not fit the intervention or their source sites."""
    expected = edit.intervention.width
    for site in (*edit.sites, *edit.source_sites):
        width = resolved[site].width
        if width is not None and edit.joint and isinstance(site.position, tuple):
            width *= len(site.position)
        elif edit.joint:
            continue
        if expected is not None and width is not None and width != expected:
            raise ValueError(
                f"Variable {str(key)!r}: site {site} has width {width}, its intervention was made for width {expected}."
            )
    for site, source in zip(edit.sites, edit.source_sites, strict=True):
        widths = resolved[site].width, resolved[source].width
        if edit.intervention.needs_source and None not in widths and widths[0] != widths[1]:
            raise ValueError(f"Variable {str(key)!r}: site {site} has width {widths[0]}, its source site {source} {widths[1]}.")


def check_joint(key: Variable, edit: Edit, place: Columns, width: int | None) -> None:
    """Raises ValueError unless every example selects as many positions as the intervention was made for, or (inactive) none."""
    n_positions = place.n_positions
    if n_positions is None:
        return
    if isinstance(place.index, Tensor):
        there = place.index.ne(IGNORED)
        present = there[there.any(1)]
        if not len(present):
            return
        if not bool(present.all()):
            raise ValueError(
                f"Variable {str(key)!r} is joint: site {place.site} must select as many positions in every example; here it "
                f"selects {int(present.sum(1).min())} to {n_positions}."
            )
    expected = edit.intervention.width
    if None not in (width, expected) and n_positions * (width or 0) != expected:
        raise ValueError(
            f"Variable {str(key)!r} is joint: site {place.site} selects {n_positions} positions of width {width}; its intervention "
            f"was made for width {expected}."
        )


def check_one_width(edits: Mapping[Variable, Edit], resolved: Mapping[Site, ResolvedSite]) -> None:
    """Raises ValueError where one edit's sites differ in width: what they saw cannot be put side by side."""
    for key, edit in edits.items():
        widths = {str(site): resolved[site].width for site in edit.sites}
        if len({width for width in widths.values() if width is not None}) > 1:
            raise ValueError(f"run: the sites of {str(key)!r} differ in width ({widths}); use `capture`, which keeps them apart.")
