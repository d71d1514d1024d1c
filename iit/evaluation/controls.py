"""Alignments to compare with: what a number would be without the training."""

import torch

from iit.alignment import Alignment
from iit.intervened import Edit
from iit.intervention import All, Frame, Intervention, PrincipalComponents, SoftGate, Subset, VanillaIntervention


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
    """The same edits with random subspaces of equal rank: random frames in place of trained frames and principal components, random
    coordinates in place of those that a learned gate has chosen among units or features.

    Raises ValueError for an alignment none of whose interventions has a rank of its own.
    """
    fresh: dict[Intervention, Intervention] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edit in alignment.edits.values():
            trained = edit.intervention
            if trained.learned_rank() is None:
                raise ValueError(f"{trained} has no rank: there is no random subspace to compare with.")
            if trained not in fresh:
                fresh[trained] = _drawn(trained)
    edits = {
        key: Edit(edit.sites, fresh[edit.intervention], edit.source_sites, edit.joint) for key, edit in alignment.edits.items()
    }
    return _beside(alignment, edits)


def _drawn(trained: Intervention) -> Intervention:
    rank, basis = trained.learned_rank() or 1, trained.basis
    fresh = Intervention.from_config(trained.config(), trained.own_parts)
    if isinstance(basis, PrincipalComponents) or (isinstance(basis, Frame) and isinstance(trained.gate, SoftGate)):
        assert basis.width is not None
        return Intervention(trained.name, Frame(basis.width, rank), All(), fresh.operation)
    if isinstance(trained.gate, SoftGate):
        n = len(trained.gate.logits())
        return Intervention(trained.name, basis, Subset(n, torch.randperm(n)[:rank].tolist()), fresh.operation)
    return fresh


def _beside(alignment: Alignment, edits: dict) -> Alignment:
    other = Alignment(alignment.studied or alignment.network, edits)
    other.store = alignment.store
    return other
