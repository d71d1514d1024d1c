"""What a training is seen beside: the whole vector, and a random subspace of equal rank."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from iit.alignment.alignment import Alignment
from iit.data import EncodedPairs
from iit.intervened import Edit
from iit.intervention import All, Frame, Intervention, SoftGate, Subset, VanillaIntervention
from iit.intervention.operation import Swap
from iit.result import correct


def measured(
    cells: Mapping[str, Alignment],
    pairs: EncodedPairs,
    batch_size: int,
    trained: Collection[str] | None = None,
) -> dict[str, float]:
    """{what it is logged as: a reference's IIA on validation pairs}, beside each of some cells.

    trained: the variables whose pairs count; all by default.
    """
    counts = torch.tensor([trained is None or set(v) <= set(trained) for v in pairs.interchanged])
    lines: dict[str, float] = {}
    for name, cell in cells.items():
        for control, reference in references(cell).items():
            right = torch.zeros(len(pairs))
            for batch in pairs.batches(batch_size, reference.n_columns):
                base = batch["base"]
                logits = reference.answer_logits(base, batch["sources"], batch["active"]).cpu()
                right[batch["row"]] = correct(logits, base["answer"]).float()
            for metric, chosen in (("iia", counts), ("iia_changing", counts & pairs.changing)):
                logged = f"val/{control}/{metric}" + (f"/{name}" if name else "")
                lines[logged] = float(right[chosen].mean())
    return lines


def references(alignment: Alignment) -> dict[str, Alignment]:
    """{control: the reference}.

    An alignment with an edit that reads no source has none. One with an edit whose rank is learned,
    not known, or the whole width has no random subspace.
    """
    if not all(edit.intervention.needs_source for edit in alignment.edits.values()):
        return {}
    found = {"vanilla": vanilla(alignment)}
    frames = random_frames(alignment)
    return found if frames is None else found | {"random_subspace": frames}


def vanilla(alignment: Alignment) -> Alignment:
    """Every edit swaps the whole vector of its sites: a reference, not an upper bound.

    Of the variables of one edit's blocks each swaps the whole vector; where several are active, the
    last one's source stays.
    """
    edits = {}
    for key, edit in alignment.edits.items():
        for variable in edit.intervention.blocks or (key,):
            edits[variable] = Edit(edit.sites, VanillaIntervention(), edit.source_sites, edit.joint)
    return beside(alignment, edits)


def random_frames(alignment: Alignment, seed: int = 0) -> Alignment | None:
    """Every edit swaps a random subspace of its rank; None where an edit has no fixed rank below
    its width.

    The global generator is left as it was.
    """
    edits = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key, edit in alignment.edits.items():
            trained = edit.intervention
            rank, width = _rank(trained), trained.width
            if rank is None or width is None or rank >= width:
                return None
            basis = Frame(width, rank).requires_grad_(False)
            frame = Intervention(trained.name, basis, All(), Swap(), blocks=trained.block_sizes)
            edits[key] = Edit(edit.sites, frame, edit.source_sites, edit.joint)
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
