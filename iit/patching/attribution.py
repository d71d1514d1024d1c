"""Attribution patching: what patching each cell would do, to first order.

All cells are estimated from two forwards and one backward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from iit.batch import Batch
from iit.intervened import Edit, IntervenedModel
from iit.intervened.positions import columns, counts
from iit.intervention import LambdaIntervention
from iit.intervention.precision import widened
from iit.network.inputs import prepare
from iit.patching.contrast import (
    AnyNetwork,
    Contrast,
    Contrasted,
    EncodedBatch,
    batch_rows,
    contrast_of,
    prompts_of,
)
from iit.patching.corruption import EMBEDDING
from iit.patching.effects import Effects
from iit.patching.grid import MapCell, grid
from iit.patching.metric import (
    NORMALISED,
    Figures,
    Metric,
    MetricChoice,
    blank,
    metrics_of,
    record,
)
from iit.progress import progress
from iit.site import Site, resolve

SiteTensors = dict[Site, Tensor]
"""{site: Tensor[pair, position, width]}"""


def attribute(
    network: AnyNetwork,
    pairs: Contrasted,
    *,
    steps: int | None = None,
    direction: str = "noising",
    metric: MetricChoice = "logit_difference",
    batch_size: int = 32,
    **where: Any,
) -> Effects:
    """Estimate what `patch` gives, to first order.

    estimate = unedited + Σ (source's activation − base's activation) · ∂metric/∂activation

    Arguments:
        steps: with integrated gradients, the number of runs whose gradients are averaged. The
            token embeddings of these runs lie between the base's and the source's, (k − ½)/steps of
            the way (arXiv 2403.17806). So prompts have to be as long as their sources. None takes
            the base's gradient.
        metric: metrics without a gradient are left out. These are `iia` and, without steps, `kl`,
            which is least at the base.
        direction, batch_size, where: as `patch` takes them.

    Raises:
        ValueError: where no metric has a gradient, for fewer than one step, for sites whose
            positions differ in number between base and source, attention weights, and what `patch`
            refuses.

    References:
        arXiv 2310.10348.
    """
    if steps is not None and steps < 1:
        raise ValueError(
            f"steps={steps}: integrated gradients take 1 step or more; None takes the "
            "base's gradient."
        )

    # Metrics without a useful gradient: `iia` is a step, and `kl` is least at the base.
    flat = ("iia",) if steps else ("iia", "kl")
    metrics = metrics_of(metric)
    for name in list(metrics):
        if name.removeprefix(NORMALISED) in flat:
            del metrics[name]
    if not metrics:
        raise ValueError(
            f"metric={metric!r} has no gradient; take logit_difference, probability or, with "
            "steps, kl."
        )

    contrast = contrast_of(network, pairs, direction)
    cells = grid(contrast, **where)
    for cell in cells:
        if cell.site.component == "attention_weight":
            raise ValueError(
                "Attention weights are as wide as their prompt is long, and are not estimated; "
                "`patch` patches them."
            )

    before, after = blank(metrics, len(contrast)), blank(metrics, len(contrast))
    values = blank(metrics, len(cells), len(contrast))
    for rows in progress(torch.arange(len(contrast)).split(batch_size), "Attributing"):
        runs = _PairRuns(contrast, rows, cells)
        with torch.no_grad():
            source_logits, of_source = runs.run(runs.source)
        # With steps, the gradients come from runs of their own.
        with torch.set_grad_enabled(steps is None):
            logits, of_base = runs.run(runs.base)
        plain = logits.detach().cpu()
        answers = contrast.answers(rows, plain)
        index = rows.numpy()
        record(before, index, metrics, plain, answers)
        record(after, index, metrics, source_logits.cpu(), answers)

        gradients = runs.gradients(metrics, steps, logits, of_base)
        for number, cell in enumerate(cells):
            changes = runs.changes(cell, of_base, of_source, gradients)
            for name, change in changes.items():
                values[name][number, index] = before[name][index] + change

    method = "AttributionPatching"
    if steps is not None:
        method += f", integrated gradients, {steps} steps"
    if direction == "denoising":
        method += ", denoising"
    return Effects(tuple(cells), values, before, after, contrast.clusters, method)


@final
class _PairRuns:
    """Runs of some pairs in which whole components are read.

    base, source: the pairs' bases and sources, both with the label as their answer.
    """

    def __init__(self, contrast: Contrast, rows: Tensor, cells: Sequence[MapCell]):
        self._contrast = contrast
        self._rows = rows
        self._sites = list(dict.fromkeys(_whole(cell.site) for cell in cells))
        self.base = batch_rows(contrast.base, rows, contrast.label)
        self.source = batch_rows(contrast.source, rows, contrast.label)
        # Activations at all positions are those of the prompts, without the answer's columns.
        self._bases = prepare(contrast.module, prompts_of(self.base))
        self._sources = prepare(contrast.module, prompts_of(self.source))

    def run(self, batch: EncodedBatch, share: float | None = None) -> tuple[Tensor, SiteTensors]:
        """The logits, Tensor[pair, n_answer, vocab], and the activations at the sites.

        share: how far the token embeddings are on the way to the source's.
        """
        activations: SiteTensors = {}

        def note(site: Site, activation: Tensor) -> Tensor:
            # The parameters are frozen: the first site on the way has to start the graph itself.
            if torch.is_grad_enabled() and not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            activations[site] = activation
            return activation

        edits = {}
        sources = None
        if share is not None:
            way = LambdaIntervention(
                lambda base, source: base + share * (source - base), needs_source=True
            )
            edits["way"] = Edit(EMBEDDING, way)
            sources = {"way": prompts_of(self.source)}
        for site in self._sites:
            # An edit that changes nothing: `note` keeps the activation, with its graph.
            edits[site] = LambdaIntervention(partial(note, site))
        model = IntervenedModel(self._contrast.network, edits)
        return model.answer_logits(batch, sources), activations

    def gradients(
        self,
        metrics: Mapping[str, Metric],
        steps: int | None,
        logits: Tensor,
        activations: SiteTensors,
    ) -> dict[str, SiteTensors]:
        """∂metric/∂activation, {metric: {site: Tensor[pair, position, width]}}.

        It is taken at the base, or is the mean over the steps on the way to the source.

        logits, activations: of the run of the bases.
        """
        plain = logits.detach()
        answers = self._contrast.answers(self._rows, plain)
        n_steps = steps or 1
        total: dict[str, SiteTensors] = {name: {} for name in metrics}
        for step in range(n_steps):
            with torch.enable_grad():
                if steps is not None:
                    logits, activations = self.run(self.base, (step + 0.5) / n_steps)
                values = []
                for metric in metrics.values():
                    # The sum over pairs has each pair's own gradient; a pair without a value gives
                    # 0.
                    values.append(torch.nan_to_num(metric(logits, answers)).sum())
            for number, (name, value) in enumerate(zip(metrics, values, strict=True), 1):
                # The graph is freed with the last metric. Where a metric does not depend on a site,
                # its gradient is 0.
                gradients = torch.autograd.grad(
                    value,
                    list(activations.values()),
                    materialize_grads=True,
                    retain_graph=number < len(values),
                )
                for site, gradient in zip(activations, gradients, strict=True):
                    total[name][site] = total[name].get(site, 0) + gradient / n_steps
        return total

    def changes(
        self,
        cell: MapCell,
        of_base: SiteTensors,
        of_source: SiteTensors,
        gradients: Mapping[str, SiteTensors],
    ) -> Figures:
        """The estimated change of each pair, {metric: float[pair]}.

        Σ (source's − base's activation) · gradient, over the cell's positions and coordinates
        """
        n_base = counts(columns(cell.site, self._bases), self._bases)
        n_source = counts(columns(cell.site, self._sources), self._sources)
        if n_base is not None and n_source is not None and not torch.equal(n_base, n_source):
            raise ValueError(
                f"{cell.site} selects other numbers of positions in bases and sources; they must "
                "be equal."
            )
        site, module = _whole(cell.site), self._contrast.module
        old = _at(module, cell, of_base[site], self._bases)
        new = _at(module, cell, of_source[site], self._sources)
        changes = {}
        for name, by_site in gradients.items():
            gradient = _at(module, cell, by_site[site], self._bases)
            product = widened((new - old).detach() * gradient)
            changes[name] = product.sum((1, 2)).cpu().numpy()
        return changes


def _at(network: nn.Module, cell: MapCell, values: Tensor, prompts: Batch) -> Tensor:
    """A whole component's values at the cell, Tensor[pair, position, coordinate].

    They are 0 where a pair has fewer positions.
    """
    values = columns(cell.site, prompts).read(values)
    # Columns of one head; None for the whole component.
    units = resolve(network, cell.site).units
    if units is not None:
        values = values[..., units]
    return values if cell.unit is None else values[..., [cell.unit]]


def _whole(site: Site) -> Site:
    return replace(site, head=None, position=None)


class Agreement(NamedTuple):
    """How far an estimate agrees with the exact map, at the cells of the exact map.

    rank_correlation: Spearman's, of the cells' mean changes.
    recall: the share of the exact map's `top` cells (by size of the change) that are among the
        `top` of the estimate.
    top, n: how many cells are the top, and how many there are.
    """

    rank_correlation: float
    recall: float
    top: int
    n: int


def agreement(estimate: Effects, exact: Effects, metric: str, top: int = 10) -> Agreement:
    """Compare an estimate of `attribute` with what `patch` gives at some or all of its cells.

    An exact map of the estimate's strongest cells alone (`cells=[estimate.cells[i] for i in
    estimate.top(20, metric)]`) is cheap, and shows how they rank. Recall is then of these cells,
    and says nothing of strong ones that the estimate missed.

    Raises:
        ValueError: for cells that were not estimated, a metric that either lacks, a top of none,
            and fewer than two cells.
    """
    from scipy.stats import spearmanr  # takes half a second to import

    missing = {*exact.cells} - {*estimate.cells}
    if missing:
        raise ValueError(
            f"The exact map has {len(missing)} cells of {len(exact)} that were not estimated, "
            f"{next(iter(missing))} for one."
        )
    if len(exact) < 2 or top < 1:
        raise ValueError(
            "Ranks say something of two cells or more, and of a top of one or more; got "
            f"{len(exact)} cells, top={top}."
        )

    numbers = {cell: number for number, cell in enumerate(estimate.cells)}
    order = [numbers[cell] for cell in exact.cells]
    exact_change = exact.mean(metric) - exact.baseline(metric)
    estimated_change = (estimate.mean(metric) - estimate.baseline(metric))[order]
    top = min(top, len(exact))
    strongest = np.argsort(-np.abs(estimated_change), kind="stable")[:top]
    in_both = set(exact.top(top, metric)) & set(strongest.tolist())
    recall = len(in_both) / top
    correlation: Any = spearmanr(estimated_change, exact_change)
    return Agreement(float(correlation.statistic), recall, top, len(exact))
