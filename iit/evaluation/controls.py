"""Alignments and answers to compare with: what a number would be without the training."""

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
    """The same edits with random subspaces of equal rank.

    Random frames replace trained frames and principal components. Random coordinates replace those
    that a learned gate has chosen among units or features. The global generator is left as it was.

    Raises:
        ValueError: for an alignment with an intervention that has no rank of its own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _exchanged(alignment, _drawn)


def has_random_subspace(alignment: Alignment) -> bool:
    """Whether random subspaces of equal rank can be drawn and differ from the trained ones.

    They do where every edit swaps some coordinates, and not all.
    """
    return all(_has_random_subspace(edit.intervention) for edit in alignment.edits.values())


def _has_random_subspace(intervention: Intervention) -> bool:
    rank, gate = intervention.learned_rank(), intervention.gate
    if isinstance(gate, SoftGate):
        return 0 < gate.learned_rank() < len(gate.logits())
    if rank is None or intervention.width is None or isinstance(intervention.basis, Autoencoder):
        return False
    return rank < intervention.width


def pca_subspace(alignment: Alignment, pairs: Pairs, *, batch_size: int = 64) -> Alignment | None:
    """The same edits with as many leading principal components as the trained rank.

    The components are those of the training bases' activations.

    Returns:
        None where an edit has no rank below its width, serves several variables by blocks, or is
        made of principal components itself; and where there are no more training pairs than the
        rank.
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
    """Alignments that move activations about as far as the edit does, but elsewhere.

    With Δ = h' − h the edit's move, `placebo_direction` is h + u·‖Δ‖ with a random direction u.
    `placebo_pair` is h + Δ of another pair, the one before it in the batch. That pair should be of
    the same variables (`outcomes` with `apart`).

    Returns:
        {control: alignment}; nothing for an alignment that has an edit with blocks.
    """
    if any(edit.intervention.blocks for edit in alignment.edits.values()):
        return {}

    def turned(move: Tensor) -> Tensor:
        # The same in every run: a run may be repeated to check it.
        # [batch, position, width]
        noise = torch.randn(move.shape, generator=torch.Generator().manual_seed(seed)).to(move)
        return noise * move.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)

    def placebo(trained: Intervention, change: Callable[[Tensor], Tensor]) -> Intervention:
        def moved(h: Tensor, *source: Tensor) -> Tensor:
            return h + change(trained(h, *source) - h)

        return LambdaIntervention(moved, trained.needs_source)

    # `roll` gives each pair the move of the pair before it, and the first one the last's.
    changes = {"placebo_direction": turned, "placebo_pair": lambda move: move.roll(1, 0)}
    return {name: _exchanged(alignment, partial(placebo, change=changes[name])) for name in changes}


def lower_ranks(alignment: Alignment, pairs: Pairs, seed: int) -> dict[str, Alignment]:
    """The same claim with a random frame of a lower rank, as {control: alignment}.

    `least_rank` has the variable's number of values less one: a linear code of the values needs so
    many dimensions. An interchange that needs more swaps more than the variable. `rank/K` have four
    times as many dimensions, sixteen times, …, below the claim's own rank.

    Returns:
        Nothing for a claim that has no more than the least rank, is of several variables, swaps no
        linear subspace or is not trained; and where the pairs do not know the values.
    """
    key, edit = next(iter(alignment.edits.items()))
    trained = edit.intervention
    # −1 where the pairs do not know the values, which ends the function below.
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
        # The first of them is the least.
        lower[f"{RANK}{rank}" if lower else "least_rank"] = _exchanged(
            alignment, {trained: frame}.__getitem__
        )
        rank *= 4
    return lower


def majority(pairs: Pairs, encoded: EncodedPairs) -> np.ndarray:
    """bool[n]: is the most frequent label of the training pairs a right one?"""
    frequencies = Counter(
        answer for label in pairs.split("train")["label"] for answer in _each(label)
    )
    # Of equally frequent labels the one whose text comes first.
    common = min(frequencies, key=lambda answer: (-frequencies[answer], str(answer)))
    return np.array([common in _each(label) for label in encoded.labels])


def fresh(
    alignment: Alignment,
    seed: int,
    *,
    network: Network | None = None,
    moved: Callable[[Site], Site] = lambda site: site,
) -> Alignment:
    """The same claim with weights drawn anew; if asked, on another network or at other sites.

    Nothing of it is inert. It shares the alignment's store unless it is on another network.

    Raises:
        ValueError: for sites the network lacks, or of another width.
    """
    redrawn: dict[Intervention, Intervention] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for edit in alignment.edits.values():
            # Edits that share an intervention share the new one, too.
            if edit.intervention not in redrawn:
                trained = edit.intervention
                redrawn[trained] = Intervention.from_config(trained.config(), trained.custom_parts)
                if isinstance(trained.basis, Autoencoder):  # which is loaded, not drawn
                    redrawn[trained].basis.load_state_dict(trained.basis.state_dict())
    edits = {
        key: Edit(
            list(map(moved, edit.sites)),
            redrawn[edit.intervention],
            list(map(moved, edit.source_sites)),
            edit.joint,
        )
        for key, edit in alignment.edits.items()
    }
    other = Alignment(network or alignment.studied or alignment.network, edits)
    # A store is of one network.
    other.store = alignment.store if network is None else None
    return other


def _each(label: Any) -> list[Any]:
    """The answers that a label says are right."""
    return list(label) if isinstance(label, list | tuple) else [label]


def _drawn(trained: Intervention) -> Intervention:
    rank, basis = trained.learned_rank(), trained.basis
    if rank is None:
        raise ValueError(f"{trained} has no rank: there is no random subspace to compare with.")
    # Its frames start at random, as before any training.
    redrawn = Intervention.from_config(trained.config(), trained.custom_parts)
    if isinstance(basis, PrincipalComponents) or (
        isinstance(basis, Frame) and isinstance(trained.gate, SoftGate)
    ):
        assert basis.width is not None
        return Intervention(trained.name, Frame(basis.width, rank), All(), redrawn.operation)
    if isinstance(trained.gate, SoftGate):
        n = len(trained.gate.logits())
        return Intervention(
            trained.name, basis, Subset(n, torch.randperm(n)[:rank].tolist()), redrawn.operation
        )
    return redrawn


def _exchanged(alignment: Alignment, make: Callable[[Intervention], Intervention]) -> Alignment:
    """The same edits with other interventions; edits that share one still share one."""
    others: dict[Intervention, Intervention] = {}
    edits = {}
    for key, edit in alignment.edits.items():
        if edit.intervention not in others:
            others[edit.intervention] = make(edit.intervention)
        edits[key] = replace(edit, intervention=others[edit.intervention])
    return beside(alignment, edits)
