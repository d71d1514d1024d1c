"""The job `patch`: maps of what edits do, without any training; the strongest cells of each are
measured again on test.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from iit.data import freeze
from iit.job.setup import facts_of, frozen_network, pairs_held_out, save_causal_model
from iit.patching import Contrast, Effects, agreement
from iit.report import map_figure, save_figure
from iit.result import Row

log = logging.getLogger(__name__)

Map = Callable[..., Effects]
"""(network, contrast, cells=…, metric=…, …) → Effects, as `iit.patching.patch` and its siblings
are.

It is given those of metric, batch_size, store and progress that its signature names.
"""


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

    maps: name → a function of `iit.patching`, its cells given. examples: maps that are drawn and no
        more, of single prompts say.
    estimates: {map: the map of the same cells that it estimates}; the facts tell how far they
        agree, and how long each took.
    metrics: what is measured; the first one ranks and is drawn. top: cells of each map that are
    measured on test, frozen in `choice.json` before it is opened.

    Writes a heatmap (or curve) of each map with its data, and the causal model's graph. Returns the
    rows, whose `experiment` is EXPERIMENT/MAP, and the run's facts. Raises ValueError for estimates
    of maps that are not there, or of other cells.
    """
    unknown = [name for pair in estimates.items() for name in pair if name not in maps]
    if unknown:
        raise ValueError(f"job.estimates names {unknown[0]!r}; the maps are {list(maps)}.")
    frozen = frozen_network(cfg)
    network = frozen.network
    store = instantiate(cfg.store)(network.model)
    pairs, held_out = pairs_held_out(cfg, network)
    contrast = Contrast.of(network, pairs, variable=cfg.variable)
    facts = {
        "network": network.name,
        "task": pairs.task.name if pairs.task else "file",
        "variable": cfg.variable,
        "seed": cfg.seed,
    }
    options = {"metric": tuple(metrics), "batch_size": batch_size, "store": store}
    rows: list[Row] = []
    effects: dict[str, Effects] = {}
    seconds: dict[str, float] = {}
    for name, run in {**maps, **examples}.items():
        log.info("Map %s", name)
        begun = time.perf_counter()
        found = run(network, contrast, **accepted(run, options | {"progress": True}))
        seconds[name] = round(time.perf_counter() - begun, 1)
        table = found.table()
        positions = list(dict.fromkeys(cell.site.position for cell in found.cells))
        picture = map_figure(
            table,
            metric=metrics[0],
            labels=found.labels or contrast.tokens(positions),
            centre=found.baseline(metrics[0]),
            title=f"{name}: validation, changing pairs",
        )
        save_figure(picture, folder / name, table)
        if name in maps:
            rows += found.rows(experiment=f"{cfg.name}/{name}", split="validation", **facts)
            effects[name] = found
    strongest = {}
    for name, found in effects.items():
        strongest[name] = [found.cells[i] for i in found.top(top, metrics[0])]
    named = {name: list(map(str, cells)) for name, cells in strongest.items()}
    opened = held_out.opened(freeze(folder, {"ranked by": metrics[0], "cells": named}))
    contrast = Contrast.of(network, opened, split="test", variable=cfg.variable)
    for name, run in maps.items():
        again = run(network, contrast, cells=strongest[name], **accepted(run, options))
        rows += again.rows(experiment=f"{cfg.name}/{name}", split="test", **facts)
    frozen.check()
    save_causal_model(folder, pairs)
    told: dict[str, Any] = {"maps": {}, "estimates": {}}
    for name, found in effects.items():
        told["maps"][name] = {
            "metric": metrics[0],
            "n_cells": len(found),
            "top": named[name],
            "seconds": seconds[name],
        }
    for name, exact in estimates.items():
        agreed = agreement(effects[name], effects[exact], metrics[0])
        told["estimates"][name] = {"of": exact} | agreed._asdict()
    return rows, facts_of(opened, network) | told


def accepted(run: Map, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a map takes: not all read a store, or show how far they are."""
    taken = signature(run).parameters
    return {name: value for name, value in options.items() if name in taken}
