"""Checks that sites are as wide as the interventions that are to act on them."""

from collections.abc import Mapping

from iit.batch import IGNORED
from iit.intervened.edit import Edit, Variable, block_input
from iit.intervened.edited_run import SiteEdit
from iit.site import ResolvedSite, Site


def check_width(key: Variable, edit: Edit, resolved: Mapping[Site, ResolvedSite]) -> None:
    """Check the widths that are known before a batch is given.

    Raises ValueError for a site that does not fit the intervention or its source site.
    """
    expected = edit.intervention.width
    # A skipped block's input stands in for a source.
    skipped = map(block_input, edit.sites) if edit.intervention.skips else ()
    for site in (*edit.sites, *edit.source_sites, *skipped):
        width = resolved[site].width
        if edit.joint and width is not None:
            # How many positions a role has is known with a batch only.
            width = width * len(site.position) if isinstance(site.position, tuple) else None
        if None not in (expected, width) and width != expected:
            raise ValueError(
                f"Variable {str(key)!r}: site {site} has width {width}, its intervention was made "
                f"for width {expected}."
            )

    for site, source in zip(edit.sites, edit.source_sites, strict=True):
        widths = {resolved[site].width, resolved[source].width}
        if edit.intervention.needs_source and None not in widths and len(widths) == 2:
            raise ValueError(
                f"Variable {str(key)!r}: site {site} has width {resolved[site].width}, its source "
                f"site {source} {resolved[source].width}."
            )


def check_joint(site_edit: SiteEdit) -> None:
    """Check the positions of a joint edit in one batch.

    Raises ValueError unless every example selects as many positions as the edit was made for, or
    none (an inactive example).
    """
    site, n_positions = site_edit.columns.site, site_edit.columns.n_positions
    if not site_edit.edit.joint or n_positions is None:
        return
    if site_edit.columns.index is not None:
        selected = site_edit.columns.index.ne(IGNORED).sum(1)
        # Inactive examples may select none.
        selected = selected[selected > 0]
        if not len(selected):
            return
        fewest = int(selected.min())
        if fewest < n_positions:
            raise ValueError(
                f"The edit of {site} is joint: it must select as many positions in every example; "
                f"here it selects {fewest} to {n_positions}."
            )

    width, expected = site_edit.resolved.width, site_edit.edit.intervention.width
    if width is not None and expected not in (None, n_positions * width):
        raise ValueError(
            f"The edit of {site} is joint: it selects {n_positions} positions of width {width}; "
            f"its intervention was made for width {expected}."
        )
