"""Attribution patching: what patching each cell would do, to first order.

All cells are estimated from two forwards and one backward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

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
    batch_rows,
    contrast_of,
    prompts_of,
)
from iit.patching.effects import Effects
from iit.patching.grid import MapCell, grid
from iit.patching.metric import NORMALISED, Metric, MetricChoice, figures_of, metrics_of
from iit.site import Site, resolve

EMBEDDING = Site("embedding_output")


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
    asked = metrics_of(metric)
    metrics = {
        n: function for n, function in asked.items() if n.removeprefix(NORMALISED) not in flat
    }
    if not metrics:
        raise ValueError(
            f"None of the metrics {list(asked)} has a gradient; take logit_difference, probability "
            "or, with steps, kl."
        )

    contrast = contrast_of(network, pairs, direction)
    cells = grid(contrast, **where)
    for cell in cells:
        if cell.site.component == "attention_weight":
            raise ValueError(
                "Attention weights are as wide as their prompt is long, and are not estimated; "
                "`patch` patches them."
            )

    # Figures of the bases and of the sources, float[pair], and estimates, float[cell, pair].
    before, after, changes = {}, {}, {}
    for name in metrics:
        before[name] = np.full(len(contrast), np.nan)
        after[name] = np.full(len(contrast), np.nan)
        changes[name] = np.full((len(cells), len(contrast)), np.nan)

    for rows in torch.arange(len(contrast)).split(batch_size):
        runs = _PairActivations(contrast, rows, cells, steps)
        plain = runs.logits.detach().cpu()
        answers = contrast.answers(rows, plain)
        figures = figures_of(metrics, plain, answers)
        of_sources = figures_of(metrics, runs.source_logits.cpu(), answers)
        gradients = runs.gradients(metrics)
        for name in metrics:
            before[name][rows.numpy()] = figures[name]
            after[name][rows.numpy()] = of_sources[name]
            for number, cell in enumerate(cells):
                changes[name][number, rows.numpy()] = runs.change(cell, gradients[name])

    values = {name: before[name] + changes[name] for name in metrics}
    method = "AttributionPatching"
    if steps is not None:
        method += f", integrated gradients, {steps} steps"
    if direction == "denoising":
        method += ", denoising"
    return Effects(tuple(cells), values, before, after, contrast.clusters, method)


@final
class _PairActivations:
    """Activations and gradients of some pairs, at whole components.

    The activations are of the bases and of the sources. The gradients are of metrics with respect
    to the activations of the bases.

    logits, source_logits: of the bases and of the sources, Tensor[pair, n_answer, vocab].
    """

    def __init__(
        self, contrast: Contrast, rows: Tensor, cells: Sequence[MapCell], steps: int | None
    ):
        self._contrast = contrast
        self._rows = rows
        self._steps = steps
        self._base = batch_rows(contrast.base, rows, contrast.label)
        self._source = batch_rows(contrast.source, rows, contrast.label)
        self._bases = prepare(contrast.module, prompts_of(self._base))
        self._sources = prepare(contrast.module, prompts_of(self._source))
        self._sites = list(dict.fromkeys(_whole(cell.site) for cell in cells))
        with torch.no_grad():
            self.source_logits, self._source_activations = self._run(self._source)
        # With steps, the gradients come from runs of their own.
        with torch.set_grad_enabled(steps is None):
            self.logits, self._base_activations = self._run(self._base)

    def gradients(self, metrics: Mapping[str, Metric]) -> dict[str, dict[Site, Tensor]]:
        """∂metric/∂activation, {metric: {site: Tensor[pair, position, width]}}.

        It is taken at the base, or is the mean on the way to the source.
        """
        n_steps = self._steps or 1
        total = {}
        for name in metrics:
            total[name] = {
                site: torch.zeros_like(activation)
                for site, activation in self._base_activations.items()
            }

        for step in range(n_steps):
            with torch.enable_grad():
                logits, activations = self.logits, self._base_activations
                if self._steps is not None:
                    logits, activations = self._run(self._base, (step + 0.5) / n_steps)
                plain = self.logits.detach()
                answers = self._contrast.answers(self._rows, plain, logits.device)
                values = [
                    # The sum over pairs has each pair's own gradient; a pair without a value gives
                    # 0.
                    torch.nan_to_num(function(logits, answers)).sum()
                    for function in metrics.values()
                ]

            for number, (name, value) in enumerate(zip(metrics, values, strict=True), 1):
                # The graph is freed with the last metric.
                gradients = torch.autograd.grad(
                    value,
                    list(activations.values()),
                    allow_unused=True,
                    retain_graph=number < len(values),
                )
                for site, gradient in zip(activations, gradients, strict=True):
                    # None: the metric does not depend on the site.
                    if gradient is not None:
                        total[name][site] += gradient / n_steps
        return total

    def change(self, cell: MapCell, gradients: Mapping[Site, Tensor]) -> np.ndarray:
        """The estimated change of each pair, float[pair].

        Σ (source's − base's activation) · gradient, over the cell's positions and coordinates
        """
        site = _whole(cell.site)
        of_base, n_base = self._at(cell, self._base_activations[site], self._bases)
        of_source, n_source = self._at(cell, self._source_activations[site], self._sources)
        if n_base is not None and n_source is not None and not torch.equal(n_base, n_source):
            raise ValueError(
                f"{cell.site} selects other numbers of positions in bases and sources; they "
                "must be equal."
            )
        gradient, _ = self._at(cell, gradients[site], self._bases)
        return widened((of_source - of_base).detach() * gradient).sum((1, 2)).cpu().numpy()

    def _run(
        self, batch: Mapping[str, Any], share: float | None = None
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """The logits, Tensor[pair, n_answer, vocab], and the activations at the sites.

        share: how far the token embeddings are on the way to the source's.
        """
        activations: dict[Site, Tensor] = {}

        edits: dict[Any, Edit] = {}
        sources = None
        if share is not None:
            way = LambdaIntervention(
                lambda base, source: base + share * (source - base), needs_source=True
            )
            edits["way"] = Edit(EMBEDDING, way)
            sources = {"way": prompts_of(self._source)}
        for site in self._sites:
            # An edit that changes nothing: `_note` keeps the activation, with its graph.
            edits[f"activation at {site}"] = Edit(
                site, LambdaIntervention(partial(_note, activations, site))
            )
        model = IntervenedModel(self._contrast.network, edits)
        logits = model.answer_logits(batch, sources)
        return logits, {site: activations[site] for site in self._sites}

    def _at(self, cell: MapCell, values: Tensor, prompts: Batch) -> tuple[Tensor, Tensor | None]:
        """A whole component's values at the cell, Tensor[pair, position, coordinate].

        They are 0 where a pair has fewer positions. The second result is how many each pair has.
        """
        site_columns = columns(cell.site, prompts)
        if site_columns.tokens is not None:
            values = values[:, : site_columns.tokens[1]]  # without the answer's columns
        values = site_columns.read(values)
        # Columns of one head; None for the whole component.
        units = resolve(self._contrast.module, cell.site).columns
        if units is not None:
            values = values[..., units]
        if cell.unit is not None:
            if not 0 <= cell.unit < values.shape[-1]:
                raise ValueError(
                    f"There is no unit {cell.unit} at {cell.site}; it has units 0 to "
                    f"{values.shape[-1] - 1}."
                )
            values = values[..., cell.unit : cell.unit + 1]
        return values, counts(site_columns, prompts)


def _note(activations: dict[Site, Tensor], site: Site, activation: Tensor) -> Tensor:
    # The parameters are frozen: the first site on the way has to start the graph itself.
    if torch.is_grad_enabled() and not activation.requires_grad:
        activation = activation.detach().requires_grad_()
    activations[site] = activation
    return activation


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
    exact_change = exact.mean(metric)
    estimated_change = estimate.mean(metric)[order]

    # A normalised metric is a change already: 0 where an edit does nothing.
    if not metric.startswith(NORMALISED):
        exact_change = exact_change - np.nanmean(exact.unedited[metric])
        estimated_change = estimated_change - np.nanmean(estimate.unedited[metric])

    top = min(top, len(exact))
    best_exact = np.argsort(-np.abs(exact_change), kind="stable")[:top]
    best_estimated = np.argsort(-np.abs(estimated_change), kind="stable")[:top]
    recall = len(set(best_exact) & set(best_estimated)) / top
    correlation: Any = spearmanr(estimated_change, exact_change)
    return Agreement(float(correlation.statistic), recall, top, len(exact))
