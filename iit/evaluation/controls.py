"""What a number would be without the training: alignments and answers to compare with."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from iit.alignment import Alignment, initialise
from iit.alignment.references import beside
from iit.data import EncodedPairs, Pairs
from iit.intervened import Edit
from iit.intervention import All, Autoencoder, Frame, Intervention, PrincipalComponents, SoftGate, Subset
from iit.network import Network
from iit.site import Site


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
    return beside(alignment, edits)


def has_random_subspace(alignment: Alignment) -> bool:
    """Whether random subspaces of equal rank can be drawn and differ from the trained ones: of every edit some coordinates are
    swapped, not all."""
    return all(_has_random_subspace(edit.intervention) for edit in alignment.edits.values())


def _has_random_subspace(intervention: Intervention) -> bool:
    rank, gate = intervention.learned_rank(), intervention.gate
    if isinstance(gate, SoftGate):
        return 0 < gate.learned_rank() < len(gate.logits())
    if rank is None or intervention.width is None or isinstance(intervention.basis, Autoencoder):
        return False
    return rank < intervention.width


def pca_subspace(alignment: Alignment, pairs: Pairs, *, batch_size: int = 64) -> Alignment | None:
    """The same edits with the leading principal components of the training bases' activations, as many as the trained rank.

    None where an edit has no rank below its width, serves several variables by blocks, is made of principal components itself, or
    where there are too few activations, or no training pairs.
    """
    if not has_random_subspace(alignment) or "train" not in set(pairs.dataset["split"]):
        return None
    edits = {}
    for key, edit in alignment.edits.items():
        trained = edit.intervention
        rank, width = trained.learned_rank(), trained.width
        if trained.blocks or isinstance(trained.basis, PrincipalComponents) or rank is None or width is None:
            return None
        components = Intervention(trained.name, PrincipalComponents(width, rank), All(), trained.operation)
        edits[key] = Edit(edit.sites, components, edit.source_sites, edit.joint)
    other = beside(alignment, edits)
    if len(pairs.split("train")) <= max(e.intervention.rank or 0 for e in edits.values()):
        return None
    initialise(other, pairs, batch_size=batch_size)
    return other


def majority(pairs: Pairs, encoded: EncodedPairs) -> np.ndarray:
    """bool[n]: is the most frequent label of the training pairs a right one?"""
    counted = Counter(answer for label in pairs.split("train")["label"] for answer in _each(label))
    common = min(counted, key=lambda answer: (-counted[answer], str(answer)))
    return np.array([common in _each(label) for label in encoded.labels])


def fresh(
    alignment: Alignment,
    seed: int,
    *,
    network: Network | None = None,
    moved: Callable[[Site], Site] = lambda site: site,
) -> Alignment:
    """The same claim with weights drawn anew, and, if asked, on another network or at other sites; nothing of it is inert.

    Raises ValueError for sites the network lacks, or of another width.
    """
    made: dict[Intervention, Intervention] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edit in alignment.edits.values():
            if edit.intervention not in made:
                trained = edit.intervention
                made[trained] = Intervention.from_config(trained.config(), trained.own_parts)
                if isinstance(trained.basis, Autoencoder):  # which is loaded, not drawn
                    made[trained].basis.load_state_dict(trained.basis.state_dict())
    edits = {
        key: Edit(list(map(moved, edit.sites)), made[edit.intervention], list(map(moved, edit.source_sites)), edit.joint)
        for key, edit in alignment.edits.items()
    }
    other = Alignment(network or alignment.studied or alignment.network, edits)
    other.store = alignment.store if network is None else None
    return other


def _each(label: Any) -> list[Any]:
    """The answers that a label says are right."""
    return list(label) if isinstance(label, list | tuple) else [label]


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
