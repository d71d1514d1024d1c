"""Does a subspace work through what the network reads?

Its read part and its null part are each swapped alone.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from iit.alignment import Alignment
from iit.alignment.references import with_edits
from iit.batch import IGNORED
from iit.data import EncodedPairs
from iit.evaluation.angles import MOSTLY, span_of_rows, within
from iit.evaluation.divergence import natural_activations
from iit.evaluation.outcomes import edits_of, evaluating, inputs_of
from iit.evaluation.subspace import subspaces
from iit.intervened import Edit, IntervenedModel
from iit.intervened.edit import Variable, variables_of
from iit.intervention import (
    Identity,
    Intervention,
    LambdaIntervention,
    PrincipalComponents,
    SigmoidMask,
)
from iit.result import logit_difference
from iit.site import Site, resolve

Spaces = dict[str, Tensor]
"""{variable: orthonormal columns, Tensor[width, n]}"""
ENERGY = 0.99
"""The share of the gradients' squared norm that the read space carries."""
VARIANCE = 0.999
"""The share of natural activations' variance that the space of their variation holds."""


def split_by_reading(alignment: Alignment, read: Spaces) -> dict[str, Alignment]:
    """The same sites, each swapping one part of the trained subspace.

    Q holds the columns that a variable's edit swaps. P projects on the space that is read behind
    the site. Each principal direction q between the two (see `within`) may go to a part:

    - read part: it swaps the span of Pq, for every q with ‖Pq‖² > 1/2 (more than half is read).
    - null part: it swaps the span of (1 − P)q, for every q with ‖(1 − P)q‖² > 1/2.

    Where less than half of q is read, Pq is short and points elsewhere. Scaled up to length 1, it
    would be a piece of the read space, whatever the subspace.

    Where the whole subspace works and the read part alone does much less, the effect is an
    illusion. A direction that nothing reads carries the variable. It steers, by its correlation,
    another direction that is read and does not vary by itself. Compare the read part with those of
    the whole vector and of random subspaces (the control `read_parts`). A gap says less in two
    cases. The read part of the whole vector may have one, too. And few directions may be read, each
    for several variables: then no part that is read holds one variable alone.

    Arguments:
        read: {variable: Tensor[width, n]}, of `read_spaces`. Variables that it lacks are left out.

    Returns:
        {"read_part": Alignment, "null_part": Alignment}. A read part of no dimension swaps nothing.
        There is no null part where none has a dimension.

    References:
        arXiv 2311.17030.
    """
    parts: dict[str, Spaces] = {"read_part": {}, "null_part": {}}
    frames = subspaces(alignment)
    for variable, space in read.items():
        # [width, rank]
        whole = frames[variable].double()
        parts["read_part"][variable] = space @ within(whole, space)
        # The singular values of (1 − P)Q are the sines of the principal angles.
        outside = whole - space @ (space.T @ whole)
        left, sines, _ = torch.linalg.svd(outside, full_matrices=False)
        parts["null_part"][variable] = left[:, sines**2 > MOSTLY]
    if not any(part.shape[1] for part in parts["null_part"].values()):
        del parts["null_part"]
    return {name: swapping(alignment, part) for name, part in parts.items()}


def read_spaces(alignment: Alignment, pairs: EncodedPairs, *, batch_size: int = 64) -> Spaces:
    """The space that is read behind each edit (`read_space`), {variable: Tensor[width, n]}.

    An edit is left out if these pairs interchange none of its variables. For an edit with several
    sites, it is the space that is read behind any of them.

    There are two ways to know what is read:

    - The activation may be the input of a linear map (`mlp_activation`, `attention_value_output`,
      `Site(module=…, side="input")` of a linear module). Then it is the row space of the map's
      weight; of some heads, the row space of their columns. This is exact: what lies outside
      changes no logit.
    - Elsewhere it is the span of the leading right singular vectors of G that carry `ENERGY` of its
      squared norm. The rows of G, Tensor[pair·position, width], are gradients with respect to the
      activation of the unedited base. What is differentiated is the logit of the label minus that
      of the base's own answer, where the two first differ. Where they do not differ, or the base's
      answer is not known, it is the label's log-probability at the first answer token. This is
      first order and estimated from these pairs: what only larger changes bring about counts as not
      read, and so does what the gradients have little of.

    Arguments:
        pairs: one split of the alignment's pairs.

    Raises:
        ValueError: for interventions that do not swap a linear subspace of less than the whole
            width, and joint edits.
    """
    linear = subspaces(alignment)
    interchanged = set(chain.from_iterable(pairs.interchanged))
    spaces = {}
    for key, edit in alignment.edits.items():
        variables = list(map(str, variables_of(key, edit)))
        if not interchanged & set(variables):
            continue
        if edit.joint:
            raise ValueError(
                f"{edit.intervention} edits several positions as one vector: nothing reads "
                "these together."
            )
        if not linear.keys() >= set(variables):
            raise ValueError(
                f"{edit.intervention} swaps no linear subspace of its sites: there is "
                "nothing to split."
            )
        space = read_space(alignment, key, pairs, batch_size=batch_size)
        spaces |= dict.fromkeys(variables, space)
    return spaces


def spans(
    alignment: Alignment, pairs: EncodedPairs, training: EncodedPairs | None, batch_size: int
) -> dict[str, Spaces]:
    """Two spaces at each variable's sites, as {name: {variable: columns}}.

    "natural" is the space in which the activations of the training pairs vary. "read" is the space
    that the network reads behind the sites (`read_spaces`).

    Returns:
        Nothing natural without training pairs. Nothing at all where an edit swaps no linear
        subspace, or swaps several positions as one vector.
    """
    # What reads several positions together, or a curved map, cannot be split by directions.
    joint = any(edit.joint for edit in alignment.edits.values())
    if joint or len(subspaces(alignment)) < len(alignment.variables):
        return {}
    spaces = {"read": read_spaces(alignment, pairs, batch_size=batch_size)}
    if training is None:
        return spaces
    with evaluating(alignment):
        activations = natural_activations(alignment, training, batch_size)
    # Sites of one edit share the subspace, but each varies about a mean of its own.
    centred: dict[Variable, list[Tensor]] = {}
    for (key, _), points in activations.items():
        on_cpu = points.cpu()
        centred.setdefault(key, []).append(on_cpu - on_cpu.mean(0))
    spaces["natural"] = {}
    for key, points in centred.items():
        span = span_of_rows(torch.cat(points), VARIANCE)
        for variable in variables_of(key, alignment.edits[key]):
            spaces["natural"][str(variable)] = span
    return spaces


def views(
    frames: Sequence[Tensor], variable: str, spaces: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Sequence[Tensor]]:
    """The subspaces, and the part of them inside of each of the variable's `spans` (see `within`).

    Returns:
        {"": the subspaces, "/natural": …, "/read": …}.
    """
    by_suffix = {"": frames}
    for name, space in spaces.items():
        if variable in space:
            by_suffix[f"/{name}"] = [within(frame, space[variable]) for frame in frames]
    return by_suffix


def read_space(
    alignment: Alignment,
    key: Variable,
    pairs: EncodedPairs,
    *,
    batch_size: int = 64,
) -> Float[Tensor, "width n"]:
    """Orthonormal columns (fp64) that span what is read behind one edit's sites; see `read_spaces`.

    Raises:
        ValueError: where gradients are needed and these pairs interchange none of the edit's
            variables.
    """
    edit = alignment.edits[key]
    spaces = []
    for site in edit.sites:
        rows, share = _reader(alignment.network, site), 1.0
        if rows is None:
            variables = variables_of(key, edit)
            rows, share = _gradients(alignment, variables, site, pairs, batch_size), ENERGY
        spaces.append(span_of_rows(rows, share))
    if len(spaces) == 1:
        return spaces[0]
    # The span of the columns of all sites together.
    return span_of_rows(torch.cat(spaces, 1).T)


def _reader(network: nn.Module, site: Site) -> Float[Tensor, "n_out width"] | None:
    """The weight of the linear map whose input the site is; None where it is none's."""
    resolved = resolve(network, site)
    module = resolved.module
    if resolved.side != "input" or not isinstance(module, nn.Linear | Conv1D):
        return None
    weight = module.weight.detach()
    if isinstance(module, Conv1D):
        # GPT-2's Conv1D stores [width, n_out], where nn.Linear has [n_out, width].
        weight = weight.T
    if weight.is_meta:
        # Offloaded weights are there only while the module runs: on each unit, and on none.
        units = torch.eye(weight.shape[1], dtype=weight.dtype)
        with torch.no_grad():
            weight = (module(units) - module(0 * units)).T
    weight = weight.cpu()
    if resolved.units is not None:
        weight = weight[:, resolved.units]
    return weight


def _gradients(
    alignment: Alignment,
    variables: tuple[Variable, ...],
    site: Site,
    pairs: EncodedPairs,
    batch_size: int,
) -> Float[Tensor, "n width"]:
    """Gradients of each pair's readout by the unedited activation of its base, one row a position.

    They are 0 where the edit is inactive.
    """
    added: list[Tensor] = []

    def probe(activation: Tensor) -> Tensor:
        # Added to the activation, 0 changes nothing, and its gradient is the activation's.
        added[:] = [torch.zeros_like(activation, requires_grad=True)]
        return activation + added[0]

    probed = IntervenedModel(
        alignment.studied or alignment.network, {site: LambdaIntervention(probe)}
    )
    rows = []
    for batch in pairs.batches(batch_size):
        flags = inputs_of(alignment, batch)[1]
        active = torch.zeros(len(batch["row"]), dtype=torch.bool)
        for variable in variables:
            active = active | torch.as_tensor(flags.get(variable, True))
        if not active.any():
            continue
        with torch.enable_grad():
            logits = probed.answer_logits(batch["base"], active={site: active}).cpu()
            readouts = _readout(logits, batch["base"]["answer"], batch.get("base_answer"))
            gradient = torch.autograd.grad(readouts.sum(), added)[0]
            # [batch, position, width] → [batch·position, width]
            rows.append(gradient.flatten(0, 1).cpu())
    if not rows:
        raise ValueError(
            f"What is read at {site} is estimated from pairs that interchange one of "
            f"{list(map(str, variables))}."
        )
    return torch.cat(rows)


def _readout(
    logits: Float[Tensor, "batch n_answer vocab"],
    label: Int[Tensor, "..."],
    own: Int[Tensor, "..."] | None,
) -> Float[Tensor, " batch"]:
    """logit(label) − logit(own answer) where they first differ; else the label's log-probability.

    The log-probability is that of the first answer token; of several right ones, of all together.
    """
    first = logits[:, 0].float()
    # [batch, n_alternatives]
    right = label[:, 0] if label.ndim == 3 else label[:, :1]
    right_logits = first.gather(1, right.clamp(min=0))
    among = right_logits.masked_fill(right == IGNORED, -torch.inf)
    # Of several right tokens: the probability that any of them comes.
    likely = among.logsumexp(1) - first.logsumexp(1)
    if own is None or label.ndim == 3 or own.ndim == 3:
        return likely
    difference = logit_difference(logits, label, own)
    return torch.where(difference.isnan(), likely, difference)


def swapping(alignment: Alignment, spans: Spaces) -> Alignment:
    """The alignment's edits, each variable's with fixed columns of its own."""
    edits = {}
    for variable, edit in edits_of(alignment).items():
        if variable in spans:
            # Blocks of one edit become edits of their own.
            part = _fixed(edit.intervention.name, spans[variable])
            edits[variable] = Edit(edit.sites, part, edit.source_sites)
    return with_edits(alignment, edits).eval()


def _fixed(name: str, vectors: Float[Tensor, "width rank"]) -> Intervention:
    """The swap of a fixed subspace; of a subspace without dimensions, a mask that is closed."""
    width, rank = vectors.shape
    if rank == 0:
        mask = SigmoidMask(width)
        # A mask is open where it is above 0.
        nn.init.constant_(mask.mask, -1.0)
        return Intervention(name, Identity(width), mask).requires_grad_(False)
    basis = PrincipalComponents(width, rank)
    # Marked as fitted, the basis is not set by activations later on.
    basis.frame.copy_(vectors)
    basis.fitted.fill_(True)
    return Intervention(name, basis)
