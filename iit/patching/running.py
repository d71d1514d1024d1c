"""Running a map: rows are (cell, pair), and cells that differ in position or unit only are one batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from iit.intervened import ActivationStore, Edit, IntervenedModel
from iit.intervened.batch import prepare
from iit.intervened.positions import columns
from iit.intervention import VanillaIntervention
from iit.intervention.precision import widened
from iit.network.answering import IGNORED
from iit.patching.contrast import Contrast, taken
from iit.patching.effects import Cell, Effects
from iit.patching.metric import LIGHT, Answers, Metric
from iit.site import Site

CELL = "cell"
"""The role that stands for a row's own position."""
BEHIND = "behind"
"""The role of every token of a prompt from that position on."""

Given = Callable[[Tensor, Tensor, dict[str, Any]], Any]
"""(number of the cell in its group, pair, base batch) of each row → the source its cells are replaced from: a batch or activations."""
Run = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
"""(number of the cell in its group, pair, base batch with the role `CELL`) of each row → Tensor[row, n_answer, vocab], the logits."""
Runner = Callable[[Site, Sequence[Cell]], tuple[IntervenedModel, Run]]
"""(a group's site, its cells) → the intervened network, which is given the store, and what gives the logits of rows."""
Give = Callable[[IntervenedModel, Site, Sequence[Cell]], Given]
"""(a group's edits, its site, its cells) → what its rows are given."""


def measured(
    contrast: Contrast,
    cells: Iterable[Cell],
    give: Give,
    metrics: Mapping[str, Metric],
    *,
    method: str,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """Replace each cell by what `give` says, one at a time, on every pair.

    store: what earlier runs left; one is made, if none is given. batch_size: pairs a batch of the longest runs; of shorter ones
    up to four times as many.

    Raises ValueError for a site the network lacks and a position a prompt lacks.
    """

    def runner(site: Site, here: Sequence[Cell]) -> tuple[IntervenedModel, Run]:
        model = IntervenedModel(contrast.network, {"cell": Edit(site, VanillaIntervention())})
        given = give(model, site, here)
        return model, lambda which, pairs, base: model.answer_logits(base, given(which, pairs, base))

    return run_cells(contrast, cells, runner, metrics, method=method, store=store, batch_size=batch_size, progress=progress)


def run_cells(
    contrast: Contrast,
    cells: Iterable[Cell],
    runner: Runner,
    metrics: Mapping[str, Metric],
    *,
    method: str,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """`measured` for edits of any kind."""
    cells = list(cells)
    if not cells:
        raise ValueError("There is no cell to edit: components, layers, heads and positions leave none.")
    whole, plain = unedited(contrast, contrast.base, metrics)
    beside, _ = unedited(contrast, contrast.source, metrics, plain)
    options = {"store": store, "batch_size": batch_size, "progress": progress}
    values = cell_values(contrast, cells, runner, metrics, plain, **options)
    return Effects(tuple(cells), values, whole, beside, contrast.clusters, method)


def cell_values(
    contrast: Contrast,
    cells: Sequence[Cell],
    runner: Runner,
    metrics: Mapping[str, Metric],
    plain: Tensor | None,
    *,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """{metric: float[cell, pair]} of the edited runs alone. plain: the bases' logits, where a metric asks for them."""
    groups: dict[Site, list[Cell]] = {}
    for cell in cells:
        site = replace(cell.site, position=CELL if cell.site.position is not None else None)
        groups.setdefault(site, []).append(cell)
    found: dict[Cell, dict[str, np.ndarray]] = {}
    with torch.no_grad(), Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("Patching", total=len(cells))
        runners = {site: runner(site, here) for site, here in groups.items()}
        if store is None:
            store = ActivationStore(next(iter(runners.values()))[0].network)
        else:
            store.check()
        # What all of them resume from is kept when a prompt is first run.
        store.layers |= {model.first_block for model, _ in runners.values() if model.first_block is not None}
        for site, (model, run) in runners.items():
            model.store = store
            here = groups[site]
            places = None if site.position is None else places_of(model, here, contrast.base)
            values = _of_group(model, run, contrast, len(here), places, metrics, plain, batch_size)
            found |= dict(zip(here, values, strict=True))
            bar.advance(task, len(here))
    return {name: np.stack([found[cell][name] for cell in cells]) for name in metrics}


def unedited(
    contrast: Contrast, batch: Mapping[str, Any], metrics: Mapping[str, Metric], plain: Tensor | None = None
) -> tuple[dict[str, np.ndarray], Tensor | None]:
    """The metrics of runs without an edit and, where a metric asks for them, their logits; `plain`: those of the bases."""
    model, logits = IntervenedModel(contrast.network, {}), []
    values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    for rows in torch.arange(len(contrast)).split(64):
        with torch.no_grad():
            here = model.answer_logits(taken(batch, rows, contrast.label)).cpu()
        for name, column in read(metrics, contrast, here, rows, here if plain is None else plain[rows]).items():
            values[name].append(column)
        if not all(metric in LIGHT for metric in metrics.values()):
            logits.append(here)
    return {name: np.concatenate(parts) for name, parts in values.items()}, torch.cat(logits) if logits else None


def read(
    metrics: Mapping[str, Metric], contrast: Contrast, logits: Tensor, pairs: Tensor, plain: Tensor | None
) -> dict[str, np.ndarray]:
    """{metric: float[row]} of the logits of some pairs. plain: the bases' own. Raises ValueError for a metric of another shape."""
    own = None if contrast.own is None else contrast.own[pairs]
    answers = Answers(contrast.label[pairs], own, plain)
    found = {}
    for name, metric in metrics.items():
        values = torch.as_tensor(metric(logits, answers))
        if values.shape != (len(logits),):
            raise ValueError(
                f"The metric {name!r} gave shape {tuple(values.shape)}; expected one value for each of {len(logits)} rows."
            )
        found[name] = widened(values.cpu()).numpy()
    return found


def _of_group(
    model: IntervenedModel,
    run: Run,
    contrast: Contrast,
    n_cells: int,
    places: Tensor | None,
    metrics: Mapping[str, Metric],
    plain: Tensor | None,
    batch_size: int,
) -> list[dict[str, np.ndarray]]:
    """Each cell's values. Row r is of cell r // n and pair r % n."""
    n = len(contrast)
    values = {name: np.full(n_cells * n, np.nan) for name in metrics}

    def cut(rows: Tensor) -> dict[str, Any]:
        batch = taken(contrast.base, rows % n, contrast.label)
        if places is None:
            return batch
        roles = {CELL: places[rows]} | ({BEHIND: _behind(batch, places[rows])} if "attention_mask" in batch else {})
        return batch | {"positions": batch.get("positions", {}) | roles}

    every = torch.arange(n_cells * n)
    costs = model.n_columns(cut(every))
    for rows in batches(every, costs, batch_size):
        logits = run(rows // n, rows % n, cut(rows)).cpu()
        for name, column in read(metrics, contrast, logits, rows % n, None if plain is None else plain[rows % n]).items():
            values[name][rows.numpy()] = column
    return [{name: each[i * n : (i + 1) * n] for name, each in values.items()} for i in range(n_cells)]


def _behind(batch: Mapping[str, Any], cell: Tensor) -> Tensor:
    """LongTensor[row, n]: every token from the first of the row's cell on."""
    n = batch["input_ids"].shape[1]
    columns = cell.masked_fill(cell == IGNORED, n).min(1, keepdim=True).values + torch.arange(n)
    return torch.where(columns < batch["attention_mask"].sum(1, keepdim=True), columns, IGNORED)


def places_of(model: IntervenedModel, cells: Sequence[Cell], batch: Mapping[str, Any]) -> Tensor:
    """LongTensor[row, position]: the columns of all cells in a batch, one cell after the other."""
    prepared = prepare(model.network, {key: value for key, value in batch.items() if key != "answer"})
    known: dict[Site, Tensor] = {}
    for cell in cells:
        if cell.site not in known:
            index = columns(cell.site, prepared).index
            if isinstance(index, tuple):  # without tokens only the run can tell what is inside
                index = torch.tensor(index).expand(prepared.size, -1)
            assert isinstance(index, Tensor)
            known[cell.site] = index.cpu()
    widest = max(index.shape[1] for index in known.values())
    wide = {site: torch.nn.functional.pad(index, (0, widest - index.shape[1]), value=IGNORED) for site, index in known.items()}
    return torch.cat([wide[cell.site] for cell in cells])


def batches(rows: Tensor, costs: Tensor | None, size: int) -> Iterator[Tensor]:
    """Batches of rows that cost alike, each of about the positions that `size` rows of the longest have."""
    if costs is None:
        yield from rows.split(size)
        return
    order = costs.cpu().argsort(stable=True)
    sorted_costs, budget, start = costs.cpu()[order], size * int(costs.max()), 0
    while start < len(order):
        # The last row decides how long the batch is.
        counts = torch.arange(1, len(order) - start + 1) * sorted_costs[start:]
        stop = start + min(max(int((counts <= budget).sum()), 1), 4 * size)  # what is cached of a row takes memory, too
        yield rows[order[start:stop]]
        start = stop
