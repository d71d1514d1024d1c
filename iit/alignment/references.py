"""References beside a training: the whole vector, and a random subspace of equal rank.

They are scored on validation pairs during a training, where there is a logger. The controls of an
evaluation are made in `iit.evaluation.controls`, which takes `vanilla` and `beside` from here.
"""

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
    """The IIA of each cell's references on validation pairs, {name in the log: value}.

    Arguments:
        cells: {name: alignment}; a single one has the empty name.
        pairs: the validation pairs.
        batch_size: pairs a batch.
        trained: the variables whose pairs count; all by default.
    """
    # A pair is_counted where all that it interchanges is trained.
    is_counted = torch.tensor(
        [trained is None or set(v) <= set(trained) for v in pairs.interchanged]
    )
    lines: dict[str, float] = {}
    for name, cell in cells.items():
        for control, reference in references(cell).items():
            # Batches come in the order of their cost; their rows put the figures back in place.
            right = torch.zeros(len(pairs))
            for batch in pairs.batches(batch_size, reference.n_columns):
                base = batch["base"]
                logits = reference.answer_logits(base, batch["sources"], batch["active"]).cpu()
                right[batch["row"]] = correct(logits, base["answer"]).float()
            for metric, selected in (
                ("iia", is_counted),
                ("iia_changing", is_counted & pairs.changing),
            ):
                logged = f"val/{control}/{metric}" + (f"/{name}" if name else "")
                lines[logged] = float(right[selected].mean())
    return lines


def references(alignment: Alignment) -> dict[str, Alignment]:
    """The references of an alignment, {control: alignment}.

    There is none for an alignment with an edit that reads no source. There is no random subspace
    where the rank of an edit is learned, unknown, or the whole width.
    """
    # Without a source there is nothing to swap.
    if not all(edit.intervention.needs_source for edit in alignment.edits.values()):
        return {}
    alignments = {"vanilla": vanilla(alignment)}
    with_random_frames = random_frames(alignment)
    return (
        alignments
        if with_random_frames is None
        else alignments | {"random_subspace": with_random_frames}
    )


def vanilla(alignment: Alignment) -> Alignment:
    """An alignment whose edits swap whole vectors: a reference, not an upper bound.

    Each variable of an edit with blocks swaps the whole vector. Where several are active, the last
    one's source stays.
    """
    edits = {}
    for key, edit in alignment.edits.items():
        # A whole vector has no blocks: each variable gets an edit of its own.
        for variable in edit.intervention.blocks or (key,):
            edits[variable] = Edit(edit.sites, VanillaIntervention(), edit.source_sites, edit.joint)
    return beside(alignment, edits)


def random_frames(alignment: Alignment, seed: int = 0) -> Alignment | None:
    """An alignment whose edits swap random subspaces of their ranks.

    It is one draw, the same in every run. The control `random_subspace` of an evaluation has draws
    of its own, which depend on the run's seed: the two figures may differ.

    None where an edit has no fixed rank below its width. The global random generator is left as it
    was.
    """
    edits = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for key, edit in alignment.edits.items():
            trained = edit.intervention
            rank, width = _rank(trained), trained.width
            if rank is None or width is None or rank >= width:
                return None
            # Frozen: this subspace is never trained.
            basis = Frame(width, rank).requires_grad_(False)
            frame = Intervention(trained.name, basis, All(), Swap(), blocks=trained.block_sizes)
            edits[key] = Edit(edit.sites, frame, edit.source_sites, edit.joint)
    return beside(alignment, edits)


def beside(alignment: Alignment, edits: Mapping[Any, Edit]) -> Alignment:
    """An alignment with other edits on the same network, which shares the activation store."""
    other = Alignment(alignment.studied or alignment.network, edits)
    other.store = alignment.store
    return other


def _rank(intervention: Intervention) -> int | None:
    """How many dimensions an intervention swaps; None where that is learned or unknown."""
    gate = intervention.gate
    if isinstance(gate, SoftGate):
        return None
    return len(gate.arguments["indices"]) if isinstance(gate, Subset) else intervention.rank
