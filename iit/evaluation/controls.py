"""Alignments to compare with: what a number would be without the training."""

import torch

from iit.alignment import Alignment
from iit.intervened import Edit
from iit.intervention import Intervention, VanillaIntervention


def vanilla(alignment: Alignment) -> Alignment:
    """Every edit swaps the whole vector of its sites: a reference, not an upper bound.

    Of the variables of one edit's blocks each swaps the whole vector; where several are active, the last one's source stays.
    """
    edits = {}
    for key, edit in alignment.edits.items():
        for variable in edit.intervention.blocks or (key,):
            edits[variable] = Edit(edit.sites, VanillaIntervention(), edit.source_sites, edit.joint)
    return _beside(alignment, edits)


def random_subspace(alignment: Alignment, seed: int) -> Alignment:
    """The same interventions with the weights they start from: a subspace of equal rank drawn at random.

    Raises ValueError for an alignment none of whose interventions has a rank of its own.
    """
    fresh: dict[Intervention, Intervention] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edit in alignment.edits.values():
            if edit.intervention.rank is None:
                raise ValueError(f"{edit.intervention} has no rank: there is no random subspace to compare with.")
            if edit.intervention not in fresh:
                trained = edit.intervention
                fresh[trained] = Intervention.from_config(trained.config(), trained.own_parts)
    edits = {
        key: Edit(edit.sites, fresh[edit.intervention], edit.source_sites, edit.joint) for key, edit in alignment.edits.items()
    }
    return _beside(alignment, edits)


def _beside(alignment: Alignment, edits: dict) -> Alignment:
    other = Alignment(alignment.studied or alignment.network, edits)
    other.store = alignment.store
    return other
