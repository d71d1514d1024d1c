"""Attribution patching: what patching each cell would do, to first order, for all cells from two forwards and one backward."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from iit.data import EncodedPairs, Pairs
from iit.intervened import ActivationStore, Edit, IntervenedModel
from iit.intervened.batch import Batch, prepare
from iit.intervened.positions import columns, counts
from iit.intervention import LambdaIntervention
from iit.intervention.precision import widened
from iit.network import Network
from iit.network.answering import IGNORED
from iit.patching.contrast import Contrast, taken
from iit.patching.effects import Cell, Effects
from iit.patching.metric import NORMALISED, Answers, Metric, metrics_of
from iit.patching.patch import Position, of, sites_of
from iit.patching.running import read
from iit.site import Site, resolve

EMBEDDING = Site("embedding_output")


def attribute(
    network: Network | nn.Module,
    pairs: Pairs | EncodedPairs | Contrast,
    *,
    components: str | Sequence[str] = "block_output",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    positions: Sequence[Position] | None = None,
    units: Sequence[int] | None = None,
    sites: Sequence[Site] | None = None,
    steps: int | None = None,
    direction: str = "noising",
    metric: str | Metric | Sequence[str] | Mapping[str, Metric] = "logit_difference",
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Effects:
    """Estimates of what `patch` gives: unedited + Σ (source's − base's activation) · ∂metric/∂activation (arXiv 2310.10348).

    steps: integrated gradients: the mean of the gradients of that many runs whose token embeddings lie between the base's and the source's,
        (k − ½)/steps of the way (arXiv 2403.17806); prompts have to be as long as their sources. None takes the base's gradient.
    metric: those without a gradient (`iia`; `kl` without steps, which is least at the base) are left out.
    store, progress: taken and left alone, as `patch` stands in for this function; runs are whole, and few.
    The others: as `patch` takes them.

    Raises ValueError where no metric has a gradient, for sites whose positions differ in number between base and source, attention weights,
    and what `patch` refuses.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: integrated gradients take 1 step or more; None takes the base's gradient.")
    contrast = of(network, pairs, split, variable, direction)
    metrics = metrics_of(metric)
    smooth = [name for name in metrics if name != "iia" and (steps is not None or name.removeprefix(NORMALISED) != "kl")]
    if not smooth:
        raise ValueError(
            f"None of the metrics {list(metrics)} has a gradient; take logit_difference, probability or, with steps, kl."
        )
    found = list(sites) if sites is not None else sites_of(contrast, components, layers, heads, positions)
    cells = [Cell(site, unit) for site in found for unit in (units if units is not None else (None,))]
    if not cells:
        raise ValueError("There is no cell to estimate: components, layers, heads and positions leave none.")
    if any(site.component == "attention_weight" for site in found):
        raise ValueError("Attention weights are as wide as their prompt is long, and are not estimated; `patch` patches them.")
    metrics = {name: metrics[name] for name in smooth}
    before, after = ({name: np.full(len(contrast), np.nan) for name in metrics} for _ in range(2))
    changes = {name: np.full((len(cells), len(contrast)), np.nan) for name in metrics}
    for rows in torch.arange(len(contrast)).split(batch_size):
        reader = _Reader(contrast, rows, [replace(site, head=None, position=None) for site in found], steps)
        for whole, logits in ((before, reader.unedited), (after, reader.others)):
            for name, values in read(metrics, contrast, logits, rows, reader.unedited).items():
                whole[name][rows.numpy()] = values
        for name, gradients in reader.gradients(metrics).items():
            changes[name][:, rows.numpy()] = np.stack([reader.change(cell, gradients) for cell in cells])
    method = "AttributionPatching" + ("" if steps is None else f", integrated gradients, {steps} steps")
    return Effects(
        tuple(cells),
        {name: before[name] + changes[name] for name in metrics},
        before,
        after,
        contrast.clusters,
        method + ("" if direction == "noising" else ", denoising"),
    )


class _Reader:
    """Some pairs: the activations of their bases and sources at whole components, and gradients of metrics with respect to the former.

    unedited, others: the logits of the bases and of the sources, Tensor[pair, n_answer, vocab].
    """

    def __init__(self, contrast: Contrast, rows: Tensor, sites: Sequence[Site], steps: int | None):
        self._contrast, self._rows, self._steps = contrast, rows, steps
        self._module = contrast.network.model if isinstance(contrast.network, Network) else contrast.network
        self._base, self._source = (taken(side, rows, contrast.label) for side in (contrast.base, contrast.source))
        self._prepared = [self._of(side) for side in (self._base, self._source)]
        self._sites = list(dict.fromkeys(sites))
        self._seen: dict[Site, Tensor] = {}
        with torch.no_grad():
            self.others = self._run(self._source).cpu()
        self._theirs = self._seen
        with torch.set_grad_enabled(steps is None):
            self._logits = self._run(self._base)
        self._own, self.unedited = self._seen, self._logits.detach().cpu()

    def gradients(self, metrics: Mapping[str, Metric]) -> dict[str, dict[Site, Tensor]]:
        """{metric: {site: Tensor[pair, position, width]}}, ∂metric/∂activation, at the base or the mean on the way to the source."""
        shares = [(k + 0.5) / self._steps for k in range(self._steps)] if self._steps else [0.0]
        total = {name: {site: torch.zeros_like(own) for site, own in self._own.items()} for name in metrics}
        given = (
            self._contrast.label[self._rows],
            None if self._contrast.own is None else self._contrast.own[self._rows],
            self.unedited,
        )
        for share in shares:
            with torch.enable_grad():
                logits = self._run(self._base, share) if share else self._logits
                label, own, plain = (None if one is None else one.to(logits.device) for one in given)
                assert label is not None
                values = [torch.nan_to_num(metric(logits, Answers(label, own, plain))).sum() for metric in metrics.values()]
            seen = [self._seen[site] for site in self._sites]
            for left, (name, value) in zip(reversed(range(len(values))), zip(metrics, values, strict=True), strict=True):
                found = torch.autograd.grad(value, seen, allow_unused=True, retain_graph=left > 0)
                for site, gradient in zip(self._sites, found, strict=True):
                    if gradient is not None:
                        total[name][site] += gradient / len(shares)
        return total

    def change(self, cell: Cell, gradients: Mapping[Site, Tensor]) -> np.ndarray:
        """float[pair]: Σ (source's − base's) · gradient over the cell's positions and coordinates."""
        whole = replace(cell.site, head=None, position=None)
        own, theirs = (self._at(cell, values[whole], i) for i, values in enumerate((self._own, self._theirs)))
        return widened((theirs - own).detach() * self._at(cell, gradients[whole], 0)).sum((1, 2)).cpu().numpy()

    def _run(self, batch: Mapping[str, Any], share: float = 0.0) -> Tensor:
        """The logits, Tensor[pair, n_answer, vocab], of a run with token embeddings at that share of the way to the source; activations are
        noted."""
        self._seen = {}
        edits: dict[Any, Edit] = {}
        if share:
            way = LambdaIntervention(lambda own, other: own + share * (other - own), needs_source=True)
            edits["way"] = Edit(EMBEDDING, way)
        edits |= {f"seen at {site}": Edit(site, LambdaIntervention(self._noting(site))) for site in self._sites}
        model = IntervenedModel(self._contrast.network, edits)
        theirs = {key: value for key, value in self._source.items() if key != "answer"}
        return model.answer_logits(batch, {"way": theirs} if share else None)

    def _noting(self, site: Site) -> Any:
        def note(activation: Tensor) -> Tensor:
            # Where no gradient reaches yet it begins; the frozen parameters have no part in it.
            begins = torch.is_grad_enabled() and not activation.requires_grad
            self._seen[site] = activation.detach().requires_grad_() if begins else activation
            return self._seen[site]

        return note

    def _of(self, batch: Mapping[str, Any]) -> Batch:
        return prepare(self._module, {key: value for key, value in batch.items() if key != "answer"})

    def _at(self, cell: Cell, values: Tensor, side: int) -> Tensor:
        """Tensor[pair, position, coordinate] of a whole component's, at the cell's positions; 0 where a pair has fewer of them."""
        place = columns(cell.site, self._prepared[side])
        mine, others = (counts(columns(cell.site, batch), batch) for batch in self._prepared)
        if mine is not None and others is not None and not torch.equal(mine, others):
            raise ValueError(f"{cell.site} selects other numbers of positions in bases and sources; they must be equal.")
        if isinstance(place.index, Tensor):
            index = place.index.clamp(min=0).unsqueeze(-1).expand(-1, -1, values.shape[-1])
            values = values.gather(1, index) * (place.index != IGNORED).unsqueeze(-1)
        elif place.index is not None:
            values = values[:, list(place.index)]
        elif mine is not None:  # the prompt's own tokens, not those of its answer
            width = int(mine.max())
            values = values[:, :width] * (torch.arange(width, device=values.device) < mine.unsqueeze(1)).unsqueeze(-1)
        head = resolve(self._module, cell.site).columns
        values = values if head is None else values[..., head]
        if cell.unit is None:
            return values
        if not 0 <= cell.unit < values.shape[-1]:
            raise ValueError(f"There is no unit {cell.unit} at {cell.site}; it has units 0 to {values.shape[-1] - 1}.")
        return values[..., cell.unit : cell.unit + 1]


class Agreement(NamedTuple):
    """How far an estimate agrees with the exact map, at the cells of the latter.

    rank_correlation: Spearman's, of the cells' mean changes. recall: the share of the `top` cells of the exact map (by size of the change)
    that are among the `top` of the estimate. n: cells.
    """

    rank_correlation: float
    recall: float
    top: int
    n: int


def agreement(estimate: Effects, exact: Effects, metric: str, top: int = 10) -> Agreement:
    """Hold an estimate (of `attribute`) against what `patch` gives at the same cells, or at some of them.

    An exact map of the estimate's strongest cells alone (`[estimate.cells[i].site for i in estimate.top(20, metric)]`) is cheap, and tells
    how they rank; recall then is of these cells, and says nothing of strong ones that the estimate missed.

    Raises ValueError for cells that were not estimated, a metric that either lacks, and fewer than two cells.
    """
    from scipy.stats import spearmanr  # takes half a second to import

    missing = {*exact.cells} - {*estimate.cells}
    if missing:
        raise ValueError(
            f"The exact map has {len(missing)} cells of {len(exact)} that were not estimated, {next(iter(missing))} for one."
        )
    if len(exact) < 2 or top < 1:
        raise ValueError(
            f"Ranks say something of two cells or more, and of a top of one or more; got {len(exact)} cells, top={top}."
        )
    place = {cell: number for number, cell in enumerate(estimate.cells)}
    order = [place[cell] for cell in exact.cells]
    theirs, mine = exact.mean(metric), estimate.mean(metric)[order]
    if not metric.startswith(NORMALISED):
        theirs, mine = theirs - np.nanmean(exact.unedited[metric]), mine - np.nanmean(estimate.unedited[metric])
    top = min(top, len(exact))
    best, guessed = (set(np.argsort(-np.abs(values), kind="stable")[:top].tolist()) for values in (theirs, mine))
    correlation: Any = spearmanr(mine, theirs)
    return Agreement(float(correlation.statistic), len(best & guessed) / top, top, len(exact))
