"""Whether a found subspace works through what the network reads: its read part and its null part, each swapped alone."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.evaluation.subspace import subspaces
from iit.intervened import Edit, IntervenedModel
from iit.intervened.sources import Variable, variables_of
from iit.intervention import All, Identity, Intervention, LambdaIntervention, PrincipalComponents, SigmoidMask
from iit.intervention.operation import Swap
from iit.network.answering import IGNORED
from iit.result import logit_difference
from iit.site import Site, resolve

NEGLIGIBLE = 1e-3
"""Sine of the angle to the other part's space below which a direction of the subspace has no share in a part."""
ROUNDING = 1e-5
"""Singular values below this share of the largest count as 0."""


def split_by_reading(
    alignment: Alignment, pairs: EncodedPairs, *, energy: float = 0.99, batch_size: int = 64
) -> dict[str, Alignment]:
    """{"read_part": Alignment, "null_part": Alignment}: the same sites, each swapping one part of the found subspace.

    With Q the columns that a variable's edit swaps and P the projection on what is read behind the site, they swap the span of PQ
    and that of (1 − P)Q: h' = h + A(Aᵀs − Aᵀh), A orthonormal. Where the whole subspace works and the read part alone does much
    less, the effect is an illusion (arXiv 2311.17030): a direction that nothing reads carries the variable and steers, by its
    correlation, another one that is read and does not vary by itself. A gap says less where few directions are read, each for
    several variables: then no part that is read holds one variable alone.

    What is read, P:
    - where the activation is the input of a linear map (`mlp_activation`, `attention_value_output`, `Site(module=…,
      side="input")` of a linear module; of some heads their columns): the row space of its weight. This is exact: the null part
      changes no logit.
    - elsewhere the leading right singular vectors of G that carry `energy` of its squared norm. The rows of G,
      Tensor[pair·position, width], are gradients, with respect to the activation of the unedited base, of the logit of the label
      minus that of the base's own answer where they first differ (where they do not, or it is not known: of the label's
      log-probability at the first answer token). This is first order and estimated from these pairs: what only larger changes
      bring about counts as not read, and so does what the gradients have little of.

    Of an edit with several sites, what any of them reads. Each variable of an edit with blocks has an edit of its own, under its
    own name. A part that no variable has is left out; where only some lack it, theirs swaps nothing (learned rank 0).

    pairs: one split of the alignment's pairs. Edits none of whose variables they interchange are left out, and so are inert parts.

    Raises ValueError for an energy outside of (0, 1], interventions that do not swap a linear subspace of less than the whole
    width, and joint edits.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy} is a share of the gradients' squared norm: above 0, at most 1.")
    found = subspaces(alignment)
    interchanged = {variable for variables in pairs.interchanged for variable in variables}
    edits = {key: edit for key, edit in alignment.edits.items() if interchanged & set(variables_of(key, edit))}
    for key, edit in edits.items():
        if edit.joint:
            raise ValueError(f"{edit.intervention} edits several positions as one vector: nothing reads these together.")
        if not {str(variable) for variable in variables_of(key, edit)} <= set(found):
            raise ValueError(f"{edit.intervention} swaps no linear subspace of its sites: there is nothing to split.")
    parts: dict[str, dict[Variable, Tensor]] = {"read_part": {}, "null_part": {}}
    for key, edit in edits.items():
        read = read_space(alignment, key, pairs, energy=energy, batch_size=batch_size)
        for variable in variables_of(key, edit):
            whole = found[str(variable)].double()
            inside = read @ (read.T @ whole)
            for name, part in (("read_part", inside), ("null_part", whole - inside)):
                vectors, strength, _ = torch.linalg.svd(part, full_matrices=False)
                parts[name][variable] = vectors[:, strength > NEGLIGIBLE]
    return {name: _swapping(alignment, part) for name, part in parts.items() if any(q.shape[1] for q in part.values())}


def read_space(
    alignment: Alignment, key: Variable, pairs: EncodedPairs, *, energy: float = 0.99, batch_size: int = 64
) -> Float[Tensor, "width n"]:
    """Orthonormal columns (fp64) that span what is read behind the sites of one edit; see `split_by_reading`.

    Raises ValueError where gradients are needed and these pairs interchange none of the edit's variables.
    """
    edit = alignment.edits[key]
    spaces = []
    for site in edit.sites:
        weight = _reader(alignment.network, site)
        if weight is None:
            spaces.append(_rows_span(_gradients(alignment, variables_of(key, edit), site, pairs, batch_size), energy))
        else:
            spaces.append(_rows_span(weight))
    return _rows_span(torch.cat(spaces, 1).T) if len(spaces) > 1 else spaces[0]


def _reader(network: nn.Module, site: Site) -> Float[Tensor, "n_out width"] | None:
    """The weight of the linear map whose input the site is; None where it is none's."""
    resolved = resolve(network, site)
    module = resolved.module
    if resolved.side != "input" or not isinstance(module, nn.Linear | Conv1D):
        return None
    weight = module.weight.detach().cpu()
    weight = weight.T if isinstance(module, Conv1D) else weight
    return weight if resolved.columns is None else weight[:, resolved.columns]


def _rows_span(rows: Float[Tensor, "n width"], energy: float = 1.0) -> Float[Tensor, "width rank"]:
    """The leading right singular vectors that carry `energy` of the squared norm."""
    _, strength, across = torch.linalg.svd(rows.double(), full_matrices=False)
    squares = strength**2
    before = squares.cumsum(0) - squares
    return across[(before < energy * squares.sum()) & (strength > ROUNDING * strength.max())].T


def _gradients(
    alignment: Alignment, variables: tuple[Variable, ...], site: Site, pairs: EncodedPairs, batch_size: int
) -> Float[Tensor, "n width"]:
    """Of each pair's readout by the unedited activation of its base, one row a position; 0 where the edit is inactive."""
    added: list[Tensor] = []

    def probe(activation: Tensor) -> Tensor:
        added[:] = [torch.zeros_like(activation, requires_grad=True)]
        return activation + added[0]

    probed = IntervenedModel(alignment.studied or alignment.network, {site: LambdaIntervention(probe)})
    rows = []
    for batch in pairs.batches(batch_size):
        everywhere = torch.ones(len(batch["row"]), dtype=torch.bool)
        flags = [batch["active"].get(variable, everywhere) for variable in variables if variable in pairs.variables]
        active = torch.stack([~everywhere, *flags]).any(0)
        if not bool(active.any()):
            continue
        with torch.enable_grad():
            logits = probed.answer_logits(batch["base"], active={site: active}).cpu()
            told = _readout(logits, batch["base"]["answer"], batch.get("base_answer"))
            rows.append(torch.autograd.grad(told.sum(), added)[0].flatten(0, 1).cpu())
    if not rows:
        raise ValueError(f"What is read at {site} is estimated from pairs that interchange one of {list(map(str, variables))}.")
    return torch.cat(rows)


def _readout(
    logits: Float[Tensor, "batch n_answer vocab"], label: Int[Tensor, "..."], own: Int[Tensor, "..."] | None
) -> Float[Tensor, " batch"]:
    """logit(label) − logit(own answer) where they first differ; else the label's log-probability (of all its right tokens)."""
    first = logits[:, 0].float()
    right = label[:, 0] if label.ndim == 3 else label[:, :1]
    among = first.gather(1, right.clamp(min=0)).masked_fill(right == IGNORED, -torch.inf)
    likely = among.logsumexp(1) - first.logsumexp(1)
    if own is None or label.ndim == 3 or own.ndim == 3:
        return likely
    difference = logit_difference(logits, label, own)
    return torch.where(difference.isnan(), likely, difference)


def _swapping(alignment: Alignment, spans: dict[Variable, Tensor]) -> Alignment:
    """The alignment's edits, each variable's with its own fixed columns."""
    edits: dict[Any, Edit] = {}
    for key, edit in alignment.edits.items():
        for variable in (variable for variable in variables_of(key, edit) if variable in spans):
            part = _fixed(edit.intervention.name, spans[variable])
            edits[variable] = Edit(edit.sites, part, edit.source_sites)
    made = Alignment(alignment.studied or alignment.network, edits)
    made.store = alignment.store
    return made.eval()


def _fixed(name: str, vectors: Float[Tensor, "width rank"]) -> Intervention:
    """The swap of a fixed subspace; of none, a mask that lets nothing through."""
    width, rank = vectors.shape
    if rank == 0:
        mask = SigmoidMask(width)
        nn.init.constant_(mask.mask, -1.0)
        return Intervention(name, Identity(width), mask, Swap()).requires_grad_(False)
    basis = PrincipalComponents(width, rank)
    basis.frame.copy_(vectors)
    basis.fitted.fill_(True)
    return Intervention(name, basis, All(), Swap())
