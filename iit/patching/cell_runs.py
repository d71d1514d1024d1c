"""How a map is run. A row is one cell on one pair.

Cells that differ in position or unit only share their batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iit.batch import IGNORED
from iit.intervened import ActivationStore, IntervenedModel
from iit.network.inputs import prepare
from iit.patching.contrast import Contrast, EncodedBatch, batch_rows, column_index
from iit.patching.effects import Effects
from iit.patching.grid import MapCell
from iit.patching.metric import Figures, Metric, MetricChoice, blank, metrics_of, record
from iit.progress import progress
from iit.site import Site

CELL = "cell"
"""The role that stands for the position of each row's own cell."""
BEHIND = "behind"
"""The role of every token of a prompt from that position on."""


class CellRows(NamedTuple):
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

    def columns(self, batch: EncodedBatch) -> Tensor:
        """The columns of each cell in a batch, LongTensor[cell, row, position], −100 padded."""
        prepared = prepare(self.contrast.module, batch)
        index: dict[Site, Tensor] = {}
        for site in dict.fromkeys(self.sites):
            # [position, row], because `pad_sequence` pads the first dimension.
            index[site] = column_index(site, prepared).T
        by_cell = [index[site] for site in self.sites]
        return pad_sequence(by_cell, batch_first=True, padding_value=IGNORED).mT

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
        # What each row costs to run, LongTensor[row]; all the same where the network does not say.
        costs = model.n_columns(self.rows(every).base)
        costs = torch.ones_like(every) if costs is None else costs.cpu()
        order = costs.argsort(stable=True)
        budget = size * int(costs.max())
        while len(order):
            # Rows are padded to the last one, the longest: n rows take n times its cost.
            totals = torch.arange(1, len(order) + 1) * costs[order]
            n = max(int((totals <= budget).sum()), 1)
            n = min(n, 4 * size)  # what is stored for a row takes memory, too
            yield self.rows(order[:n])
            order = order[n:]


EditedCells = tuple[IntervenedModel, Callable[[CellRows], Tensor]]
"""The intervened network, which is given the store; and rows → logits of their edited runs.

The logits are Tensor[row, n_answer, vocab].
"""
EditOf = Callable[[CellGroup], EditedCells]


def effects_of(
    contrast: Contrast,
    cells: Sequence[MapCell],
    edit_of: EditOf,
    method: str,
    metric: MetricChoice,
    store: ActivationStore | None,
    batch_size: int,
) -> Effects:
    """Edit each cell, one at a time, on every pair.

    store, batch_size: as `cell_values` takes them.
    """
    metrics = metrics_of(metric)
    before, logits = contrast.unedited(contrast.base, metrics)
    after, _ = contrast.unedited(contrast.source, metrics, logits)
    values = cell_values(contrast, cells, edit_of, metrics, logits, store, batch_size)
    return Effects(tuple(cells), values, before, after, contrast.clusters, method)


def cell_values(
    contrast: Contrast,
    cells: Sequence[MapCell],
    edit_of: EditOf,
    metrics: Mapping[str, Metric],
    base_logits: Tensor | None,
    store: ActivationStore | None,
    batch_size: int,
) -> Figures:
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

    if store is None:
        store = ActivationStore(contrast.module)
    else:
        store.check()

    runs = []
    for (site, _), numbers in groups.items():
        group = CellGroup(contrast, site, [cells[number] for number in numbers])
        model, logits_of = edit_of(group)
        model.store = store
        # All groups are made before any runs, so the first run of a prompt stores every layer that
        # a later group resumes from.
        if model.first_block is not None:
            store.layers |= {model.first_block}
        runs.append((group, model, logits_of, np.array(numbers)))

    values = blank(metrics, len(cells), len(contrast))
    for group, model, logits_of, numbers in progress(runs, "Patching"):
        for rows in group.batches(model, batch_size):
            with torch.no_grad():
                logits = logits_of(rows).cpu()
            plain = None if base_logits is None else base_logits[rows.pair]
            # The rows of a batch are scattered to [cell, pair].
            index = numbers[rows.cell.numpy()], rows.pair.numpy()
            record(values, index, metrics, logits, contrast.answers(rows.pair, plain))
    return values


def _behind(batch: EncodedBatch, cell: Tensor) -> Tensor:
    """Every token from the first of the row's cell on, LongTensor[row, n], −100 padded."""
    columns = torch.arange(batch["input_ids"].shape[1])
    first = cell.masked_fill(cell == IGNORED, len(columns)).min(1, keepdim=True).values
    lengths = batch["attention_mask"].sum(1, keepdim=True)
    return torch.where((columns >= first) & (columns < lengths), columns, IGNORED)
