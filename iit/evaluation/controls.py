"""What a number would be without the training: alignments and answers to compare with."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.alignment import Alignment, initialise
from iit.alignment.references import beside
from iit.data import EncodedPairs, Pairs
from iit.evaluation.subspace import subspaces
from iit.intervened import Edit
from iit.intervention import (
    All,
    Autoencoder,
    Frame,
    Intervention,
    LambdaIntervention,
    PrincipalComponents,
    SoftGate,
    Subset,
)
from iit.network import Network
from iit.result.vocabulary import RANK
from iit.site import Site


def random_subspace(alignment: Alignment, seed: int) -> Alignment:
    """The same edits with random subspaces of equal rank: random frames in place of trained frames
    and principal components, random
    coordinates in place of those that a learned gate has chosen among units or features.

    Raises ValueError for an alignment none of whose interventions has a rank of its own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _exchanged(alignment, _drawn)


def has_random_subspace(alignment: Alignment) -> bool:
    """Whether random subspaces of equal rank can be drawn and differ from the trained ones: of
    every edit some coordinates are
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
    """The same edits with the leading principal components of the training bases' activations, as
    many as the trained rank.

    None where an edit has no rank below its width, serves several variables by blocks, is made of
    principal components itself, or where there are too few activations, or no training pairs.
    """
    if not has_random_subspace(alignment) or "train" not in set(pairs.dataset["split"]):
        return None
    edits = {}
    for key, edit in alignment.edits.items():
        trained = edit.intervention
        rank, width = trained.learned_rank(), trained.width
        if (
            trained.blocks
            or isinstance(trained.basis, PrincipalComponents)
            or rank is None
            or width is None
        ):
            return None
        components = Intervention(
            trained.name, PrincipalComponents(width, rank), All(), trained.operation
        )
        edits[key] = replace(edit, intervention=components)
    other = beside(alignment, edits)
    if len(pairs.split("train")) <= max(e.intervention.rank or 0 for e in edits.values()):
        return None
    initialise(other, pairs, batch_size=batch_size)
    return other


def placebos(alignment: Alignment, seed: int) -> dict[str, Alignment]:
    """The same pairs moved as far as the edit moves them, Δ = h' − h.

    `placebo_direction`: h + u·‖Δ‖ with a random direction u. `placebo_pair`: h + Δ of another pair,
    the one before it in the batch, which should be of the same variables (`outcomes` with `apart`).
    None for edits with blocks.
    """
    if any(edit.intervention.blocks for edit in alignment.edits.values()):
        return {}

    def turned(move: Tensor) -> Tensor:
        # The same in every run: a run may be repeated to check it.
        noise = torch.randn(move.shape, generator=torch.Generator().manual_seed(seed)).to(move)
        return noise * move.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)

    def placebo(trained: Intervention, change: Callable[[Tensor], Tensor]) -> Intervention:
        def moved(h: Tensor, *source: Tensor) -> Tensor:
            return h + change(trained(h, *source) - h)

        return LambdaIntervention(moved, trained.needs_source)

    to = {"placebo_direction": turned, "placebo_pair": lambda move: move.roll(1, 0)}
    return {name: _exchanged(alignment, partial(placebo, change=to[name])) for name in to}


def lower_ranks(alignment: Alignment, pairs: Pairs, seed: int) -> dict[str, Alignment]:
    """{control: the same claim with a random frame of a lower rank}.

    `least_rank` has the variable's number of values less one: a linear code of the values needs so
    many dimensions. An interchange that needs more swaps more than the variable. `rank/K` are four
    times as many, and again, below the claim's own rank. Nothing for claims that have no more than
    the least, are of several variables or swap no linear subspace, for what is not trained, and
    where the pairs do not know the values.
    """
    key, edit = next(iter(alignment.edits.items()))
    trained = edit.intervention
    least = len(set(map(repr, (pairs.values or {}).get(str(key), ())))) - 1
    if len(alignment.edits) > 1 or not any(p.requires_grad for p in trained.parameters()):
        return {}
    if not subspaces(alignment) or not 0 < least < (trained.learned_rank() or 0):
        return {}
    lower: dict[str, Alignment] = {}
    rank = least
    while rank < (trained.learned_rank() or 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            frame = Intervention(
                trained.name, Frame(trained.width or 0, rank), All(), trained.operation
            )
        lower[f"{RANK}{rank}" if lower else "least_rank"] = _exchanged(
            alignment, {trained: frame}.__getitem__
        )
        rank *= 4
    return lower


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
    """The same claim with weights drawn anew, and, if asked, on another network or at other sites;
    nothing of it is inert.

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
        key: Edit(
            list(map(moved, edit.sites)),
            made[edit.intervention],
            list(map(moved, edit.source_sites)),
            edit.joint,
        )
        for key, edit in alignment.edits.items()
    }
    other = Alignment(network or alignment.studied or alignment.network, edits)
    other.store = alignment.store if network is None else None
    return other


def _each(label: Any) -> list[Any]:
    """The answers that a label says are right."""
    return list(label) if isinstance(label, list | tuple) else [label]


def _drawn(trained: Intervention) -> Intervention:
    rank, basis = trained.learned_rank(), trained.basis
    if rank is None:
        raise ValueError(f"{trained} has no rank: there is no random subspace to compare with.")
    fresh = Intervention.from_config(trained.config(), trained.own_parts)
    if isinstance(basis, PrincipalComponents) or (
        isinstance(basis, Frame) and isinstance(trained.gate, SoftGate)
    ):
        assert basis.width is not None
        return Intervention(trained.name, Frame(basis.width, rank), All(), fresh.operation)
    if isinstance(trained.gate, SoftGate):
        n = len(trained.gate.logits())
        return Intervention(
            trained.name, basis, Subset(n, torch.randperm(n)[:rank].tolist()), fresh.operation
        )
    return fresh


def _exchanged(alignment: Alignment, make: Callable[[Intervention], Intervention]) -> Alignment:
    """The same edits with other interventions; edits that share one still do."""
    others: dict[Intervention, Intervention] = {}
    edits = {}
    for key, edit in alignment.edits.items():
        if edit.intervention not in others:
            others[edit.intervention] = make(edit.intervention)
        edits[key] = replace(edit, intervention=others[edit.intervention])
    return beside(alignment, edits)
