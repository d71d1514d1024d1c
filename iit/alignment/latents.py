"""How far from natural an edit's activations are: what it makes of the base, and what a natural
counterpart has there.
"""

from typing import Any

from torch import Tensor

from iit.alignment.alignment import Alignment
from iit.intervened import Edit, IntervenedModel
from iit.intervention import VanillaIntervention


def latents(alignment: Alignment, batch: dict[str, Any]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """[(edited activation, natural one, which pairs have one)], one for each edit, as
    `Prediction.latents`.

    Every edit is applied by itself to the unedited base. Without a pass over the network where the
    alignment has a store.
    """
    natural = IntervenedModel(
        alignment.studied or alignment.network,
        {key: Edit(edit.sites, VanillaIntervention()) for key, edit in alignment.edits.items()},
    )
    natural.store = alignment.store
    made = alignment.edited_activations(batch["base"], batch["sources"], batch["active"])
    known: Any = dict.fromkeys(alignment.edits, batch["has_natural"])
    there = natural.edited_activations(batch["base"], batch["natural"], known)
    return [
        (made[key], there[key], batch["has_natural"].to(made[key].device))
        for key in alignment.edits
    ]
