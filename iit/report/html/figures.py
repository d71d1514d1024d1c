"""The sections that show figures."""

from iit.report.html.folder import Folder
from iit.report.html.section import Section


def first_sections(folder: Folder) -> list[Section]:
    """The first screen of maps, steering and a sweep."""
    return []


def where_sections(folder: Folder) -> list[Section]:
    """Where and how much."""
    return []
