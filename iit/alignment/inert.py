"""Inert parts of an alignment in its saved record."""

from collections.abc import Mapping
from typing import Any

from iit.intervened import Edit
from iit.intervened.saving import edit_from_json, edit_to_json
from iit.intervention import Intervention


def described(part: Edit, edits: Mapping[Any, Edit]) -> dict[str, Any]:
    """JSON of an inert part; the complement of an edit's subspace is told by the edit's name."""
    of = [
        str(key)
        for key, edit in edits.items()
        if edit.intervention.basis is part.intervention.basis
    ]
    return {
        **edit_to_json(part),
        "complement_of": of[0] if of else None,
        "intervention": None if of else part.intervention.config(),
    }


def recalled(part: Mapping[str, Any], edits: Mapping[Any, Edit]) -> Edit:
    """The inverse of `described`."""
    if part["complement_of"] is None:
        intervention = Intervention.from_config(part["intervention"])
    else:
        intervention = next(
            e.intervention for key, e in edits.items() if str(key) == part["complement_of"]
        ).complement()
    return edit_from_json(part, intervention)
