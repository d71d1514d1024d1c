"""Inert parts in an alignment's saved record."""

from collections.abc import Mapping
from typing import Any

from iit.intervened import Edit
from iit.intervened.saving import edit_from_json, edit_to_json
from iit.intervention import Intervention


def described(part: Edit, edits: Mapping[Any, Edit]) -> dict[str, Any]:
    """An inert part as JSON. A complement is described by the name of its edit."""
    record = edit_to_json(part)
    for key, edit in edits.items():
        # A complement shares the basis of its edit, and its weights are saved there.
        if edit.intervention.basis is part.intervention.basis:
            return record | {"complement_of": str(key), "intervention": None}
    return record | {"complement_of": None, "intervention": part.intervention.config()}


def recalled(part: Mapping[str, Any], edits: Mapping[Any, Edit]) -> Edit:
    """The inverse of `described`."""
    if part["complement_of"] is None:
        intervention = Intervention.from_config(part["intervention"])
    else:
        intervention = next(
            e.intervention for key, e in edits.items() if str(key) == part["complement_of"]
        ).complement()
    return edit_from_json(part, intervention)
