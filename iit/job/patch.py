"""The job `patch`: maps of what edits do, without any training; the strongest cells of each are measured again on test."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from iit.causal.figure import figure
from iit.data import freeze, hold_out
from iit.job.align import facts_of, pairs_of
from iit.network import fingerprint
from iit.patching import Cell, Contrast, Effects, agreement
from iit.patching.effects import joined
from iit.report import map_figure, save_figure
from iit.result import Row
from iit.site import Site

log = logging.getLogger(__name__)

Map = Callable[..., Effects]
"""(network, pairs, split=…, variable=…, store=…, metric=…, progress=…) → Effects, as `iit.patching.patch` and its siblings are."""


def patch(
    cfg: DictConfig,
    folder: Path,
    loggers: list[Any],
    *,
    maps: Mapping[str, Map],
    examples: Mapping[str, Map] = MappingProxyType({}),
    estimates: Mapping[str, str] = MappingProxyType({}),
    metrics: Sequence[str] = ("normalised_logit_difference", "logit_difference", "iia"),
    top: int = 5,
    batch_size: int = 64,
) -> tuple[list[Row], dict[str, Any]]:
    """Each map on validation; of each the cells that change the first metric most on test.

    maps: name → a function of `iit.patching`, its cells given. examples: maps that are drawn and no more, of single prompts say.
    estimates: {map: the map of the same cells that it estimates}; the facts tell how far they agree, and how long each took.
    metrics: what is measured; the first one ranks and is drawn. top: cells of each map that are measured on test, frozen in
    `choice.json` before it is opened.

    Writes a heatmap (or curve) of each map with its data, and the causal model's graph. Returns the rows, whose `experiment` is
    EXPERIMENT/MAP, and the run's facts. Raises ValueError for estimates of maps that are not there, or of other cells.
    """
    unknown = [name for pair in estimates.items() for name in pair if name not in maps]
    if unknown:
        raise ValueError(f"job.estimates names {unknown[0]!r}; the maps are {list(maps)}.")
    network = instantiate(cfg.network)
    before = fingerprint(network.model)
    store = instantiate(cfg.store)(network.model)
    pairs, held_out = hold_out(pairs_of(cfg, network))
    contrast = Contrast.of(network, pairs, variable=cfg.variable)
    facts = {
        "network": network.name,
        "task": pairs.task.name if pairs.task else "file",
        "variable": cfg.variable,
        "seed": cfg.seed,
    }
    rows: list[Row] = []
    chosen: dict[str, Effects] = {}
    seconds: dict[str, float] = {}
    for name, run in {**maps, **examples}.items():
        log.info("Map %s", name)
        options = {"variable": cfg.variable, "metric": tuple(metrics), "batch_size": batch_size, "progress": True}
        begun = time.perf_counter()
        found = run(network, pairs, split="validation", store=store, **options)
        seconds[name] = round(time.perf_counter() - begun, 1)
        labels = found.labels or contrast.tokens(list(dict.fromkeys(cell.site.position for cell in found.cells)))
        centre = found.baseline(metrics[0])
        picture = map_figure(
            found.table(), metric=metrics[0], labels=labels, centre=centre, title=f"{name}: validation, changing pairs"
        )
        save_figure(picture, folder / name, found.table())
        if name in maps:
            rows += found.rows(experiment=f"{cfg.name}/{name}", split="validation", **facts)
            chosen[name] = found
    best = {name: found.top(top, metrics[0]) for name, found in chosen.items()}
    told = {name: [str(chosen[name].cells[i]) for i in cells] for name, cells in best.items()}
    opened = held_out.opened(freeze(folder, {"ranked by": metrics[0], "cells": told}))
    for name, run in maps.items():
        cells = [chosen[name].cells[i] for i in best[name]]
        options = {"variable": cfg.variable, "metric": tuple(metrics), "batch_size": batch_size}
        again = only(run, cells)(network, opened, split="test", store=store, **options)
        rows += again.rows(experiment=f"{cfg.name}/{name}", split="test", **facts)
    assert fingerprint(network.model) == before, "the frozen network has changed"
    if pairs.task is not None:
        save_figure(figure(pairs.task.model), folder / "causal_model")
    return rows, {
        **facts_of(opened, network),
        "maps": {
            name: {"metric": metrics[0], "n_cells": len(found), "top": told[name], "seconds": seconds[name]}
            for name, found in chosen.items()
        },
        "estimates": {
            name: {"of": exact} | agreement(chosen[name], chosen[exact], metrics[0])._asdict()
            for name, exact in estimates.items()
        },
    }


def only(run: Map, cells: Sequence[Cell]) -> Map:
    """The map at these cells alone: of each unit, its sites."""
    sites: dict[int | None, list[Site]] = {}
    for cell in cells:
        sites.setdefault(cell.unit, []).append(cell.site)

    def again(*given: Any, **options: Any) -> Effects:
        units = (({} if unit is None else {"units": [unit]}, here) for unit, here in sites.items())
        return joined([run(*given, **options, sites=here, **unit) for unit, here in units])

    return again
