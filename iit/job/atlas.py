"""The job `atlas`: a cell at every layer × position × rank × seed, beside vanilla patching."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from iit.alignment import Alignment, Fitted
from iit.evaluation import evaluate, sweep
from iit.job.align import freeze_choice
from iit.job.declared import check_config
from iit.job.setup import (
    alike,
    facts_of,
    fitting,
    frozen_network,
    judged,
    pairs_held_out,
    scoring,
)
from iit.network import Network
from iit.network.components import blocks_of
from iit.report import atlas_cells, atlas_figure, save_figure
from iit.result import Cell, Row, select, where
from iit.site import Site

log = logging.getLogger(__name__)


def atlas(
    cfg: DictConfig,
    folder: Path,
    loggers: list[Any],
    *,
    positions: Sequence[str | int],
    layers: Sequence[int] | None = None,
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    screen: float | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Fit a cell at every layer × position × rank × seed; score all of them on validation, the
    chosen one also on test.

    The component, the intervention and all else are the config's. The cells of a layer are trained
    side by side, and every prompt is run once for all layers.

    positions: roles or token indices. layers: all by default. ranks, seeds: the config's own by
        default.
    screen: sites whose whole vector gives a lower validation IIA on changing pairs are not trained;
        None trains all.

    Writes every trained cell to `folder / "cells"`, the chosen one to `folder / "alignment"`, and
    the heatmap with its table. Returns the rows (each cell's, the whole vector's as
    `control="vanilla"`; of sites that were screened the latter alone) and the run's facts.

    Raises ValueError where the screen leaves no site, for a layer, position, rank or seed that is
    named twice, and for `ckpt_path`: there is no checkpoint to go on from.
    """
    if cfg.ckpt_path is not None:
        raise ValueError("ckpt_path: an atlas has no checkpoint to go on from; run it afresh.")
    for name, given in {
        "layers": layers,
        "positions": positions,
        "ranks": ranks,
        "seeds": seeds,
    }.items():
        twice = [
            value for number, value in enumerate(given or ()) if value in (given or ())[:number]
        ]
        if twice:
            raise ValueError(
                f"job.{name}={list(given or ())} names {twice[0]!r} twice; its cells would be one."
            )
    check_config(cfg, trains_network=False)
    # it greets for every layer
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    frozen = frozen_network(cfg)
    network = frozen.network
    layers = range(len(blocks_of(network.model)[1])) if layers is None else layers
    made = {
        _site(cfg, layer, position): [
            _cell(cfg, network, layer, position, rank, seed)
            for rank in ranks or (None,)
            for seed in seeds or (cfg.seed,)
        ]
        for layer in layers
        for position in positions
    }
    every = [cell for cells in made.values() for _, cell in cells]
    store = instantiate(cfg.store)(network.model, layers={cell.first_block for cell in every})
    for cell in every:
        cell.store = store
    pairs, held_out = pairs_held_out(cfg, every[0])
    options = scoring(cfg)
    whole = sweep(
        network,
        pairs,
        components=[cfg.site.component],
        layers=layers,
        heads=None if cfg.site.get("head") is None else [cfg.site.head],
        positions=positions,
        variable=cfg.variable,
        store=store,
        **options,
    )
    rows: list[Row] = []
    fits: dict[str, Fitted] = {}
    trained: dict[Cell, Alignment] = {}
    names: dict[Cell, str] = {}
    skipped: list[str] = []
    for layer in layers:
        here = {site: cells for site, cells in made.items() if site.layer == layer}
        for site, cells in list(here.items()):
            beside = where(whole, layer=layer, position=site.position)
            vanilla = where(beside, metric="iia", subset="changing")[0].value
            if screen is not None and vanilla < screen:
                skipped.append(str(site))
                del here[site]
            for seed, cell in cells:
                intervention = cell.edits[cfg.variable].intervention
                own = {
                    "method": intervention.name,
                    "rank": intervention.rank,
                    "seed": seed,
                    "control": "vanilla",
                }
                rows += [replace(row, **own) for row in beside]
        running = {
            _name(cell, seed): (seed, cell) for cells in here.values() for seed, cell in cells
        }
        if not running:
            continue
        cells = {name: cell for name, (_, cell) in running.items()}
        fitted = fitting(cfg, cells, pairs, folder)
        fits |= fitted
        for name, (seed, cell) in running.items():
            cell.rows = evaluate(
                cell, pairs, split="validation", controls=False, seed=seed, **options
            )
            cell.save_pretrained(folder / "cells" / name)
            trained[Cell.of(cell.rows[0])] = cell
            names[Cell.of(cell.rows[0])] = name
            rows += cell.rows
        told = "; ".join(
            f"{name}: {found.monitor} {found.value:.3f}" for name, found in fitted.items()
        )
        log.info("Layer %s", told)
    if skipped:
        log.info(
            "Not trained, for the whole vector does less than %s there: %s",
            screen,
            ", ".join(skipped),
        )
    if not trained:
        raise ValueError(
            f"screen={screen} leaves no site to train; the whole vector does less at all of them."
        )
    frozen.check()
    chosen = trained[select(rows)]
    seed = chosen.rows[0].seed
    pairs = held_out.opened(freeze_choice(folder, rows, chosen, fits[names[select(rows)]]))
    trust = instantiate(cfg.trust)
    rows += evaluate(
        chosen,
        pairs,
        split="test",
        trust=trust,
        seed=seed or 0,
        refit=alike(cfg, folder),
        **options,
    )
    chosen.rows = [row for row in rows if Cell.of(row) == Cell.of(chosen.rows[0])]
    chosen.save_pretrained(folder / "alignment")
    save_figure(atlas_figure(rows), folder / "atlas", atlas_cells(rows))
    facts = {
        **facts_of(pairs, network),
        "fit": {name: fitted._asdict() for name, fitted in fits.items()},
        "verdict": judged(rows, trust),
        "screened": {"threshold": screen, "sites": skipped},
    }
    return rows, facts


def _cell(
    cfg: DictConfig, network: Network, layer: int, position: str | int, rank: int | None, seed: int
) -> tuple[int, Alignment]:
    """The config's alignment at another place, with weights drawn by the seed."""
    torch.manual_seed(seed)
    intervention = instantiate(cfg.intervention)
    if rank is not None:
        intervention = partial(intervention, rank=rank)
    site = _site(cfg, layer, position)
    return seed, instantiate(cfg.alignment)(network=network, site=site, intervention=intervention)


def _site(cfg: DictConfig, layer: int, position: str | int) -> Site:
    return Site(cfg.site.component, layer=layer, head=cfg.site.get("head"), position=position)


def _name(cell: Alignment, seed: int) -> str:
    (edit,) = cell.edits.values()
    return (
        f"{edit.sites[0].layer} {edit.sites[0].position}, rank "
        f"{edit.intervention.rank}, seed {seed}"
    )
