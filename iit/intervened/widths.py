"""Checks that sites are as wide as the interventions that are to act on them."""

from collections.abc import Mapping

from torch import Tensor

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
        w_base = resolved[site].width
        w_source = resolved[source].width
        if edit.intervention.needs_source and None not in (w_base, w_source) and w_base != w_source:
            raise ValueError(
                f"Variable {str(key)!r}: site {site} has width {w_base}, its source site "
                f"{source} {w_source}."
            )


def check_joint(site_edit: SiteEdit) -> None:
    """Check the positions of a joint edit in one batch.

    Raises ValueError unless every example selects as many positions as the edit was made for, or
    none (an inactive example).
    """
    site_columns = site_edit.columns
    n_positions = site_edit.columns.n_positions
    if not site_edit.edit.joint or n_positions is None:
        return
    if isinstance(site_columns.index, Tensor):
        selected = site_columns.index.ne(IGNORED).sum(1)
        # Inactive examples may select none.
        selected = selected[selected > 0]
        if not len(selected):
            return
        fewest = int(selected.min())
        if fewest < n_positions:
            raise ValueError(
                f"The edit of {site_columns.site} is joint: it must select as many positions in "
                f"every example; here it selects {fewest} to {n_positions}."
            )

    width = site_edit.resolved.width
    expected = site_edit.edit.intervention.width
    if None not in (width, expected) and n_positions * (width or 0) != expected:
        raise ValueError(
            f"The edit of {site_columns.site} is joint: it selects {n_positions} positions of "
            f"width {width}; its intervention was made for width {expected}."
        )
