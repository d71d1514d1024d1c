"""How a map is run. A row is one cell on one pair.

Cells that differ in position or unit only share their batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import pad

from iit.batch import IGNORED
from iit.intervened import ActivationStore, IntervenedModel
from iit.network.inputs import prepare
from iit.patching.contrast import Contrast, batch_rows, column_index
from iit.patching.effects import Effects
from iit.patching.grid import MapCell
from iit.patching.metric import LIGHT, Metric, MetricChoice, figures_of, metrics_of
from iit.site import Site

CELL = "cell"
"""The role that stands for the position of each row's own cell."""
BEHIND = "behind"
"""The role of every token of a prompt from that position on."""


@final
@dataclass(frozen=True, eq=False)
class CellRows:
    """The rows of one batch: each is one cell on one pair.

    cell: LongTensor[row], the number of each row's cell in its group.
    pair: LongTensor[row], the number of each row's pair.
    base: the base of each row, with the label as its answer and the roles `CELL` and `BEHIND`.
    """

    cell: Tensor
    pair: Tensor
    base: dict[str, Any]


@final
@dataclass(frozen=True, eq=False)
class CellGroup:
    """Cells that share an intervened network.

    They differ in position only, or in position and unit.

    site: that of all cells, at the role `CELL` unless it is all positions.
    """

    contrast: Contrast
    site: Site
    cells: list[MapCell]

    @property
    def sites(self) -> list[Site]:
        """Each cell's own site."""
        return [cell.site for cell in self.cells]

    def columns(self, batch: Mapping[str, Any]) -> Tensor:
        """The columns of each cell in a batch, LongTensor[cell, row, position], −100 padded."""
        prepared = prepare(self.contrast.module, batch)
        index: dict[Site, Tensor] = {}
        for site in dict.fromkeys(self.sites):
            index[site] = column_index(site, prepared)
        widest = max(columns.shape[1] for columns in index.values())
        for site, columns in index.items():
            index[site] = pad(columns, (0, widest - columns.shape[1]), value=IGNORED)
        return torch.stack([index[site] for site in self.sites])

    @cached_property
    def _columns(self) -> Tensor:
        return self.columns(self.contrast.base)

    def rows(self, numbers: Tensor) -> CellRows:
        """The rows of some numbers: row r is of cell r // n and of pair r % n, of n pairs."""
        cell = numbers // len(self.contrast)
        pair = numbers % len(self.contrast)
        base = batch_rows(self.contrast.base, pair, self.contrast.label)
        if self.site.position is not None:
            roles = {CELL: self._columns[cell, pair]}
            # Path patching holds what is computed from the cell's position on.
            if "attention_mask" in base:
                roles[BEHIND] = _behind(base, roles[CELL])
            base["positions"] = base.get("positions", {}) | roles
        return CellRows(cell, pair, base)

    def batches(self, model: IntervenedModel, size: int) -> Iterator[CellRows]:
        """All rows, in batches of rows that cost alike.

        Each batch has about as many positions as `size` of the longest rows.
        """
        every = torch.arange(len(self.cells) * len(self.contrast))
        # What each row costs to run, LongTensor[row]; None where the network does not say.
        costs = model.n_columns(self.rows(every).base)
        if costs is None:
            for numbers in every.split(size):
                yield self.rows(numbers)
            return
        costs = costs.cpu()
        order = costs.argsort(stable=True)
        budget = size * int(costs.max())
        while len(order):
            # Rows are padded to the last one, the longest: n rows take n times its cost.
            totals = torch.arange(1, len(order) + 1) * costs[order]
            n = max(int((totals <= budget).sum()), 1)
            n = min(n, 4 * size)  # what is stored for a row takes memory, too
            yield self.rows(order[:n])
            order = order[n:]


class EditedCells(NamedTuple):
    """The cells of a group, edited.

    model: the intervened network, which is given the store.
    logits: rows → Tensor[row, n_answer, vocab], those of the edited runs.
    """

    model: IntervenedModel
    logits: Callable[[CellRows], Tensor]


EditOf = Callable[[CellGroup], EditedCells]


def effects_of(
    contrast: Contrast,
    cells: Sequence[MapCell],
    edit_of: EditOf,
    metric: MetricChoice,
    method: str,
    store: ActivationStore | None,
    batch_size: int,
    progress: bool,
) -> Effects:
    """Edit each cell, one at a time, on every pair.

    store, batch_size, progress: as `cell_values` takes them.
    """
    metrics = metrics_of(metric)
    before, logits = unedited(contrast, contrast.base, metrics)
    after, _ = unedited(contrast, contrast.source, metrics, logits)
    values = cell_values(contrast, cells, edit_of, metrics, logits, store, batch_size, progress)
    return Effects(tuple(cells), values, before, after, contrast.clusters, method)


def cell_values(
    contrast: Contrast,
    cells: Sequence[MapCell],
    edit_of: EditOf,
    metrics: Mapping[str, Metric],
    base_logits: Tensor | None,
    store: ActivationStore | None,
    batch_size: int,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """The figures of the edited runs, {metric: float[cell, pair]}.

    Arguments:
        base_logits: Tensor[pair, n_answer, vocab], of the unedited bases, where a metric asks for
            them.
        store: activations that earlier runs left; by default a new one.
        batch_size: pairs in a batch of the longest runs; of shorter runs up to four times as many.

    Raises:
        ValueError: for a site the network lacks and a position a prompt lacks.
    """
    groups: dict[Any, list[int]] = {}
    for number, cell in enumerate(cells):
        position = None if cell.site.position is None else CELL
        # Cells with a unit and cells without one need different sources.
        key = replace(cell.site, position=position), cell.unit is None
        groups.setdefault(key, []).append(number)

    values = {name: np.full((len(cells), len(contrast)), np.nan) for name in metrics}
    with torch.no_grad(), Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("Patching", total=len(cells))
        if store is None:
            store = ActivationStore(contrast.module)
        else:
            store.check()

        runs = []
        for (site, _), numbers in groups.items():
            group = CellGroup(contrast, site, [cells[number] for number in numbers])
            edited = edit_of(group)
            edited.model.store = store
            # All groups are made before any runs, so the first run of a prompt stores every layer
            # that a later group resumes from.
            if edited.model.first_block is not None:
                store.layers |= {edited.model.first_block}
            runs.append((group, edited, np.array(numbers)))

        for group, edited, numbers in runs:
            for rows in group.batches(edited.model, batch_size):
                plain = None if base_logits is None else base_logits[rows.pair]
                answers = contrast.answers(rows.pair, plain)
                figures = figures_of(metrics, edited.logits(rows).cpu(), answers)
                for name, column in figures.items():
                    # The rows of a batch are scattered to [cell, pair].
                    values[name][numbers[rows.cell.numpy()], rows.pair.numpy()] = column
            bar.advance(task, len(numbers))
    return values


def unedited(
    contrast: Contrast,
    batch: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    base_logits: Tensor | None = None,
) -> tuple[dict[str, np.ndarray], Tensor | None]:
    """The figures of a batch's runs without an edit, {metric: float[pair]}, and their logits.

    The logits are None where no metric asks for those of the bases.
    """
    model = IntervenedModel(contrast.network, {})
    light = all(metric in LIGHT for metric in metrics.values())
    values = {name: np.full(len(contrast), np.nan) for name in metrics}
    parts = []
    for rows in torch.arange(len(contrast)).split(64):
        with torch.no_grad():
            logits = model.answer_logits(batch_rows(batch, rows, contrast.label)).cpu()
        # Without base logits, either the batch holds the bases or no metric reads them.
        plain = logits if base_logits is None else base_logits[rows]
        figures = figures_of(metrics, logits, contrast.answers(rows, plain))
        for name, column in figures.items():
            values[name][rows.numpy()] = column
        if not light:
            parts.append(logits)
    return values, None if light else torch.cat(parts)


def _behind(batch: Mapping[str, Any], cell: Tensor) -> Tensor:
    """Every token from the first of the row's cell on, LongTensor[row, n], −100 padded."""
    n = batch["input_ids"].shape[1]
    first = cell.masked_fill(cell == IGNORED, n).min(1, keepdim=True).values
    index = first + torch.arange(n)
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    return torch.where(index < lengths, index, IGNORED)
