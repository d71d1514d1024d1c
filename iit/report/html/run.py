"""The sections of a run: the claim, examples, every number, and how to repeat it."""

from iit.report.html.folder import Folder
from iit.report.html.section import Section


def claim(folder: Folder) -> Section:
    """The first screen: claim, verdict, test accuracy, causal model."""
    return Section("claim", "Claim", "sections/claim.html.j2", {"text": folder.path.name})


def examples(folder: Folder) -> list[Section]:
    """Pairs, failures first."""
    return []


def numbers(folder: Folder) -> Section:
    """Every row."""
    return Section("numbers", "Every number", "sections/claim.html.j2", {"text": "…"})


def repeat(folder: Folder) -> Section:
    """How to repeat the run."""
    return Section("repeat", "How to repeat it", "sections/claim.html.j2", {"text": "…"})
