"""References beside a training: the whole vector, and a random subspace of equal rank.

They are scored on validation pairs during a training, where there is a logger. The controls of an
evaluation are made in `iit.evaluation.controls`, which takes `vanilla` and `with_edits` from here.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from iit.alignment.alignment import Alignment
from iit.alignment.overlap import swapped_rank
from iit.data import EncodedPairs
from iit.intervened import Edit
from iit.intervention import All, Frame, Intervention, VanillaIntervention
from iit.intervention.operation import Swap
from iit.result import correct


def reference_iia(
    members: Mapping[str, Alignment],
    pairs: EncodedPairs,
    batch_size: int,
    trained: Collection[str] | None = None,
) -> dict[str, float]:
    """The IIA of each member's references on validation pairs, {name in the log: value}.

    Arguments:
        members: {name: alignment}; a single one has the empty name.
        pairs: the validation pairs.
        batch_size: pairs a batch.
        trained: the variables whose pairs count; all by default.
    """
    # A pair counts where all that it interchanges is trained.
    is_counted = torch.tensor(
        [trained is None or set(v) <= set(trained) for v in pairs.interchanged]
    )
    lines: dict[str, float] = {}
    for name, member in members.items():
        for control, reference in references(member).items():
            # Batches come in the order of their cost; their rows put the figures back in place.
            right = torch.zeros(len(pairs))
            for batch in pairs.batches(batch_size, reference.n_columns):
                base = batch["base"]
                logits = reference.answer_logits(base, batch["sources"], batch["active"]).cpu()
                right[batch["row"]] = correct(logits, base["answer"]).float()
            suffix = f"/{name}" if name else ""
            lines[f"val/{control}/iia{suffix}"] = float(right[is_counted].mean())
            changing = right[is_counted & pairs.changing]
            lines[f"val/{control}/iia_changing{suffix}"] = float(changing.mean())
    return lines


def references(alignment: Alignment) -> dict[str, Alignment]:
    """The references of an alignment, {control: alignment}.

    There is none for an alignment with an edit that reads no source. There is no random subspace
    where the rank of an edit is learned, unknown, or the whole width.
    """
    # Without a source there is nothing to swap.
    if not all(edit.intervention.needs_source for edit in alignment.edits.values()):
        return {}
    scored = {"vanilla": vanilla(alignment)}
    random_subspace = random_frames(alignment)
    if random_subspace is not None:
        scored["random_subspace"] = random_subspace
    return scored


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
    return with_edits(alignment, edits)


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
            rank, width = swapped_rank(trained), trained.width
            if rank is None or width is None or rank >= width:
                return None
            # Frozen: this subspace is never trained.
            basis = Frame(width, rank).requires_grad_(False)
            frame = Intervention(trained.name, basis, All(), Swap(), blocks=trained.block_sizes)
            edits[key] = Edit(edit.sites, frame, edit.source_sites, edit.joint)
    return with_edits(alignment, edits)


def with_edits(alignment: Alignment, edits: Mapping[Any, Edit]) -> Alignment:
    """An alignment with other edits on the same network, which shares the activation store."""
    other = Alignment(alignment.studied or alignment.network, edits)
    other.store = alignment.store
    return other
