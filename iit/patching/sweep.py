"""Vanilla patching of many sites: one pass over the network for many of them at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from iit.data import EncodedPairs
from iit.intervened import ActivationStore, Edit, IntervenedModel
from iit.intervened.batch import prepare
from iit.intervened.positions import columns
from iit.intervention import VanillaIntervention
from iit.network import Network
from iit.network.answering import IGNORED
from iit.result import correct, logit_difference
from iit.site import Site

CELL = "cell"
"""The role that stands for a row's own position."""


class Patched(NamedTuple):
    """What patching one site does to the pairs, in their order.

    right: bool[n], whether the label is the argmax at every answer token.
    difference: float[n], logit of the label − logit of the base's own answer; NaN where that is not known.
    """

    right: np.ndarray
    difference: np.ndarray


def patched(
    network: Network,
    pairs: EncodedPairs,
    sites: Sequence[Site],
    *,
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[Site, Patched]:
    """Swap the whole vector of each site from source to base, one site at a time, on every pair.

    Sites that differ in their position only are one batch of examples with a position each; with those that run equally few
    tokens in common. With a store (one is made, if none is given) each prompt is run once for all sites.

    variable: whose source is read; needed where the pairs are of several.
    batch_size: pairs a batch of the longest runs; of shorter ones up to four times as many.

    Raises ValueError for a site the network lacks, a position a prompt lacks, and a variable the pairs do not have.
    """
    name = _variable(pairs, variable)
    groups: dict[Site, list[Site]] = {}
    for site in sites:
        groups.setdefault(replace(site, position=CELL if site.position is not None else None), []).append(site)
    models = {site: IntervenedModel(network, {"x": Edit(site, VanillaIntervention())}) for site in groups}
    if store is None:
        layers = {model.first_block for model in models.values()} - {None}
        store = ActivationStore(network.model, layers=[layer for layer in layers if layer is not None])
    whole = pairs.batch(range(len(pairs)))
    found: dict[Site, Patched] = {}
    with Progress(transient=True, disable=not progress) as bar, torch.no_grad():
        task = bar.add_task("Patching", total=len(groups))
        for site, model in models.items():
            model.store = store
            found |= _of_group(model, groups[site], whole, name, batch_size)
            bar.advance(task)
    return {site: found[site] for site in sites}


def _variable(pairs: EncodedPairs, variable: str | None) -> str:
    if variable is None and len(pairs.variables) > 1:
        raise ValueError(f"The pairs are of the variables {list(pairs.variables)}; say whose source is to be patched in.")
    if variable is not None and variable not in pairs.variables:
        raise ValueError(f"The pairs are of the variables {list(pairs.variables)}, not {variable!r}.")
    return next(iter(pairs.variables)) if variable is None else variable


def _of_group(
    model: IntervenedModel, sites: Sequence[Site], whole: dict[str, Any], variable: str, batch_size: int
) -> dict[Site, Patched]:
    """Rows are (site, pair): row r is of site r // n and pair r % n."""
    base, source = whole["base"], whole["sources"][variable]
    n: int = whole["row"].numel()
    cells: list[Tensor] | None = None
    if sites[0].position is not None:
        cells = [_positions(model, sites, batch) for batch in (base, source)]
    right = np.zeros(len(sites) * n, dtype=bool)
    difference = np.full(len(sites) * n, np.nan)

    def cut(rows: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        chosen = rows % n
        both = []
        for side, batch in enumerate((base, source)):
            part = {key: value[chosen] for key, value in batch.items() if key != "positions"}
            if "attention_mask" in part:
                longest = int(part["attention_mask"].sum(1).max())
                part |= {key: part[key][:, :longest] for key in ("input_ids", "attention_mask")}
            both.append(part if cells is None else part | {"positions": {CELL: cells[side][rows]}})
        return both[0], both[1]

    every = torch.arange(len(sites) * n)
    costs = model.n_columns(cut(every)[0])
    for rows in _batches(every, costs, batch_size):
        here, there = cut(rows)
        logits = model.answer_logits(here, there).cpu()
        right[rows.numpy()] = correct(logits, here["answer"]).numpy()
        own = whole.get("base_answer")
        if own is not None and here["answer"].ndim == own.ndim == 2:
            difference[rows.numpy()] = logit_difference(logits, here["answer"], own[rows % n]).numpy()
    return {site: Patched(right[i * n : (i + 1) * n], difference[i * n : (i + 1) * n]) for i, site in enumerate(sites)}


def _positions(model: IntervenedModel, sites: Sequence[Site], batch: dict[str, Any]) -> Tensor:
    """LongTensor[row, position] of all sites' columns, one site after the other."""
    prepared = prepare(model.network, batch)
    found = []
    for site in sites:
        index = columns(site, prepared).index
        assert isinstance(index, Tensor)
        found.append(index.cpu())
    widest = max(index.shape[1] for index in found)
    return torch.cat([torch.nn.functional.pad(index, (0, widest - index.shape[1]), value=IGNORED) for index in found])


def _batches(rows: Tensor, costs: Tensor | None, size: int) -> Iterator[Tensor]:
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
