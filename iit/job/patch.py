"""The job `patch`: maps of what edits do, without any training.

The strongest cells of each map are measured again on test.
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
"""(network, contrast, cells=…, metric=…, …) → Effects, such as `iit.patching.patch`.

It gets those of metric, batch_size and store that its signature names.
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
    """Measure each map on validation, and its strongest cells again on test.

    The strongest cells are those that change the first metric most, in either direction. They are
    frozen in `choice.json` before the test split is opened.

    The job writes a heatmap (or curve) of each map with its data, and the causal model's graph.

    Arguments:
        folder: the run's folder.
        maps: name → a function of `iit.patching` that has its cells already.
        examples: name → a map that is drawn, but neither ranked nor measured on test; of a single
            prompt, for example.
        estimates: {map: the exact map of the same cells}. The facts say how far the two agree.
        metrics: what is measured; the first one ranks the cells and is drawn.
        top: how many cells of each map are measured on test.
        batch_size: pairs in a batch, for maps that take it.

    Returns:
        The rows, and the run's facts. A row's `experiment` is EXPERIMENT/MAP. The facts also say
        how many seconds each map took.

    Raises:
        ValueError: for estimates of maps that are not there, or of other cells.
    """
    unknown = [name for pair in estimates.items() for name in pair if name not in maps]
    if unknown:
        raise ValueError(f"job.estimates names {unknown[0]!r}; the maps are {list(maps)}.")
    frozen = frozen_network(cfg)
    network = frozen.network
    store = instantiate(cfg.store)(network.model)
    pairs, held_out = pairs_held_out(cfg, network)
    # The changing pairs of validation.
    contrast = Contrast.of(network, pairs, variable=cfg.variable)
    facts = {
        "network": network.name,
        "task": pairs.task.name if pairs.task else "file",
        "variable": cfg.variable,
        "seed": cfg.seed,
    }
    # A map gets those that its signature names (`accepted`).
    options = {"metric": tuple(metrics), "batch_size": batch_size, "store": store}
    rows: list[Row] = []
    effects: dict[str, Effects] = {}
    seconds = {}
    for name, run in {**maps, **examples}.items():
        log.info("Map %s", name)
        start = time.perf_counter()
        measured = run(network, contrast, **accepted(run, options))
        seconds[name] = round(time.perf_counter() - start, 1)
        table = measured.table()
        # Labels are examples of tokens, which stand below the names on an axis.
        labels = measured.labels or contrast.tokens([c.site.position for c in measured.cells])
        picture = map_figure(
            table,
            metric=metrics[0],
            labels=labels,
            centre=measured.baseline(metrics[0]),
            title=f"{name}: validation, changing pairs",
        )
        save_figure(picture, folder / name, table)
        # Examples have no rows: they are drawn and no more.
        if name in maps:
            rows += measured.rows(experiment=f"{cfg.name}/{name}", split="validation", **facts)
            effects[name] = measured
    # {map: its cells that change the first metric most}
    strongest = {}
    for name, measured in effects.items():
        indices = measured.top(top, metrics[0])
        strongest[name] = [measured.cells[i] for i in indices]
    named = {name: list(map(str, cells)) for name, cells in strongest.items()}
    # From here on the test split is open.
    opened = held_out.opened(freeze(folder, {"ranked by": metrics[0], "cells": named}))
    contrast = Contrast.of(network, opened, split="test", variable=cfg.variable)
    for name, run in maps.items():
        # `cells` stands in place of the components, layers and positions that the map names.
        tested = run(network, contrast, cells=strongest[name], **accepted(run, options))
        rows += tested.rows(experiment=f"{cfg.name}/{name}", split="test", **facts)
    frozen.check()
    save_causal_model(folder, pairs, {})
    map_facts: dict[str, Any] = {"maps": {}, "estimates": {}}
    for name, measured in effects.items():
        map_facts["maps"][name] = {
            "metric": metrics[0],
            "n_cells": len(measured),
            "top": named[name],
            "seconds": seconds[name],
        }
    for name, exact in estimates.items():
        agreed = agreement(effects[name], effects[exact], metrics[0])
        map_facts["estimates"][name] = {"of": exact} | agreed._asdict()
    return rows, facts_of(opened, network) | map_facts


def accepted(run: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a function takes, such as a map.

    Not all maps read a store.
    """
    parameters = signature(run).parameters
    return {name: value for name, value in options.items() if name in parameters}
