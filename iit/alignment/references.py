"""What a training's figures are seen beside: the whole vector, and a random subspace of equal rank."""

from collections.abc import Mapping
from typing import Any

import torch

from iit.alignment.alignment import Alignment
from iit.intervened import Edit
from iit.intervention import All, Frame, Intervention, SoftGate, Subset, VanillaIntervention
from iit.intervention.operation import Swap


def references(alignment: Alignment) -> dict[str, Alignment]:
    """{control: the reference}. An alignment with an edit that reads no source has none; one with an edit whose rank is learned, not known,
    or the whole width has no random subspace."""
    if not all(edit.intervention.needs_source for edit in alignment.edits.values()):
        return {}
    found = {"vanilla": vanilla(alignment)}
    frames = random_frames(alignment)
    return found if frames is None else found | {"random_subspace": frames}


def vanilla(alignment: Alignment) -> Alignment:
    """Every edit swaps the whole vector of its sites: a reference, not an upper bound.

    Of the variables of one edit's blocks each swaps the whole vector; where several are active, the last one's source stays.
    """
    edits = {}
    for key, edit in alignment.edits.items():
        for variable in edit.intervention.blocks or (key,):
            edits[variable] = Edit(edit.sites, VanillaIntervention(), edit.source_sites, edit.joint)
    return beside(alignment, edits)


def random_frames(alignment: Alignment, seed: int = 0) -> Alignment | None:
    """Every edit swaps a random subspace of its rank, which a generator of its own draws; None where an edit has no fixed rank below its
    width."""
    edits = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key, edit in alignment.edits.items():
            trained = edit.intervention
            rank, width = _rank(trained), trained.width
            if rank is None or width is None or rank >= width:
                return None
            frame = Intervention(trained.name, Frame(width, rank), All(), Swap(), blocks=trained.block_sizes)
            edits[key] = Edit(edit.sites, frame.requires_grad_(False), edit.source_sites, edit.joint)
    return beside(alignment, edits)


def beside(alignment: Alignment, edits: Mapping[Any, Edit]) -> Alignment:
    """Other edits on the same network, which share what the alignment's runs have left."""
    other = Alignment(alignment.studied or alignment.network, edits)
    other.store = alignment.store
    return other


def _rank(intervention: Intervention) -> int | None:
    """How many dimensions are swapped; None where that is learned or not known."""
    gate = intervention.gate
    if isinstance(gate, SoftGate):
        return None
    return len(gate.arguments["indices"]) if isinstance(gate, Subset) else intervention.rank
