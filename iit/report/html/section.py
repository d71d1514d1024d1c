"""A section of a page: what it shows, and the template that shows it."""

from typing import Any, NamedTuple


class Section(NamedTuple):
    """A section of a page.

    Arguments:
        id: the section's anchor.
        title: its heading.
        template: a file in `templates/`.
        data: what the template sees as `data`.
    """

    id: str
    title: str
    template: str
    data: dict[str, Any]
