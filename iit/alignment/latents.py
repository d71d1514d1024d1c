"""Edited activations beside natural ones, for the objective `CounterfactualLatent`."""

from typing import Any

from torch import Tensor

from iit.alignment.alignment import Alignment
from iit.alignment.objective import PairsBatch
from iit.alignment.references import with_edits
from iit.intervened import Edit
from iit.intervention import VanillaIntervention


def latents(alignment: Alignment, batch: PairsBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each edit: the edited activations, the natural ones, and which pairs have natural ones.

    Each edit is applied by itself to the unedited base. The natural activation is that of a prompt
    that has by itself the values that the interchange asks for. With a store this takes no pass
    over the network.

    Returns a list, as `Prediction.latents` describes it.
    """
    swaps = {key: Edit(edit.sites, VanillaIntervention()) for key, edit in alignment.edits.items()}
    natural = with_edits(alignment, swaps)
    edited = alignment.edited_activations(batch["base"], batch["sources"], batch["active"])
    # A pair without a counterpart has the base in its place; its edit stays inactive.
    has_natural: Any = dict.fromkeys(alignment.edits, batch["has_natural"])
    natural_activations = natural.edited_activations(batch["base"], batch["natural"], has_natural)
    return [
        (edited[key], natural_activations[key], batch["has_natural"].to(edited[key].device))
        for key in alignment.edits
    ]
