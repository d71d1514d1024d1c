"""The job `atlas`: a cell at every layer × position × rank × seed, beside vanilla patching."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from iit.alignment import Alignment
from iit.evaluation import Scoring, scored_rows, sweep
from iit.job.align import freeze_choice
from iit.job.declared import check_config
from iit.job.outcome_file import save_outcomes
from iit.job.setup import (
    evaluate_options,
    facts_of,
    fitting,
    frozen_network,
    pairs_held_out,
    refit_as_configured,
    verdict_facts,
)
from iit.network import Network
from iit.network.components import blocks_of
from iit.progress import progress
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
    """Fit a cell at every layer × position × rank × seed, and choose one on validation.

    All cells are scored on validation; the chosen one is also scored on test. The component, the
    intervention and all else are the config's. The cells of a layer are trained side by side, and
    every prompt is run once for all layers.

    The job writes every trained cell to `folder / "cells"`, the chosen one to
    `folder / "alignment"` with the outcome of each pair, and the heatmap with its table.

    Arguments:
        folder: the run's folder.
        positions: roles or token indices.
        layers: block numbers; all blocks by default.
        ranks: of the interventions; by default the config's own.
        seeds: of the cells' weights; by default the config's own.
        screen: a validation IIA on changing pairs. Sites whose whole vector gives a lower one are
            not trained. None trains all sites.

    Returns:
        The rows, and the run's facts. Each cell has rows of its own and, as control `vanilla`, of
        its site's whole vector. A site that was screened out has the latter alone.

    Raises:
        ValueError: where the screen leaves no site; for a layer, position, rank or seed that is
            named twice; for `ckpt_path`, as there is no checkpoint to go on from; and for what
            `check_config` and `pairs_held_out` refuse.
    """
    if cfg.ckpt_path is not None:
        raise ValueError("ckpt_path: an atlas has no checkpoint to go on from; run it afresh.")
    axes = {"layers": layers, "positions": positions, "ranks": ranks, "seeds": seeds}
    for name, axis in axes.items():
        values = list(axis or ())
        for value in values:
            if values.count(value) > 1:
                raise ValueError(
                    f"job.{name}={values} names {value!r} twice; its cells would be one."
                )
    check_config(cfg, trains_network=False)
    frozen = frozen_network(cfg)
    network = frozen.network
    layers = range(len(blocks_of(network.model).blocks)) if layers is None else layers
    # {site: [(seed, cell)]}: every cell is made before any is trained.
    cells_at: dict[Site, list[tuple[int, Alignment]]] = {}
    all_cells = []
    head = cfg.site.get("head")
    for layer, position, rank, seed in product(
        layers, positions, ranks or (None,), seeds or (cfg.seed,)
    ):
        site = Site(cfg.site.component, layer=layer, head=head, position=position)
        cell = made_cell(cfg, network, site, rank, seed)
        cells_at.setdefault(site, []).append((seed, cell))
        all_cells.append(cell)
    # The cells share one store. It knows at which blocks their runs will resume, so a prompt is run
    # once for all of them.
    store = instantiate(cfg.store)(network.model, layers={cell.first_block for cell in all_cells})
    for cell in all_cells:
        cell.store = store
    pairs, held_out = pairs_held_out(cfg, all_cells[0])
    options = evaluate_options(cfg)
    # Vanilla patching at every site, on validation.
    vanilla_rows = sweep(
        network,
        pairs,
        components=[cfg.site.component],
        layers=layers,
        heads=None if head is None else [head],
        positions=positions,
        variable=cfg.variable,
        store=store,
        **options,
    )
    rows: list[Row] = []
    fits = {}
    # {cell: (the name of its folder, its alignment on validation)}
    trained = {}
    skipped = []
    for layer in progress(layers, "Layer {}"):
        # {name of the cell's folder: (seed, cell)}
        running = {}
        for site, cells in cells_at.items():
            if site.layer != layer:
                continue
            at_site = where(vanilla_rows, layer=layer, position=site.position)
            vanilla = where(at_site, metric="iia", subset="changing")[0].value
            if screen is not None and vanilla < screen:
                skipped.append(str(site))
            else:
                running |= {_name(cell, seed): (seed, cell) for seed, cell in cells}
            for seed, cell in cells:
                intervention = cell.edits[cfg.variable].intervention
                # `sweep` knows sites only; these columns say that the row is the cell's control.
                columns = {
                    "method": intervention.name,
                    "rank": intervention.rank,
                    "seed": seed,
                    "control": "vanilla",
                }
                rows += [replace(row, **columns) for row in at_site]
        if not running:
            continue
        running_cells = {name: cell for name, (_, cell) in running.items()}
        fitted = fitting(cfg, running_cells, pairs, folder)
        fits |= fitted
        for name, (seed, cell) in running.items():
            scoring = Scoring(cell, pairs, "validation", seed=seed, **options)
            cell.rows = scored_rows(scoring, with_controls=False)
            cell.save_pretrained(folder / "cells" / name)
            trained[Cell.of(cell.rows[0])] = name, scoring
            rows += cell.rows
        # A name begins with its layer.
        figures = "; ".join(
            f"{name}: {fit.monitor} {fit.value:.3f}" for name, fit in fitted.items()
        )
        log.info("Layer %s", figures)
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
    # By validation alone: the test split is still closed.
    name, validation = trained[select(rows)]
    chosen = validation.alignment
    seed = chosen.rows[0].seed
    # From here on the pairs have their test split.
    pairs = held_out.opened(freeze_choice(folder, rows, chosen, fits[name]))
    trust = instantiate(cfg.trust)
    test = Scoring(
        chosen,
        pairs,
        "test",
        trust=trust,
        seed=seed or 0,
        refit=refit_as_configured(cfg, folder),
        **options,
    )
    rows += scored_rows(test)
    # The chosen cell's file also holds its controls' rows, which share its columns.
    chosen.rows = [row for row in rows if Cell.of(row) == Cell.of(chosen.rows[0])]
    chosen.save_pretrained(folder / "alignment")
    save_outcomes(folder, validation, test)
    save_figure(atlas_figure(rows), folder / "atlas", atlas_cells(rows))
    facts = {
        **facts_of(pairs, network),
        "fit": {name: fitted._asdict() for name, fitted in fits.items()},
        "verdict": verdict_facts(rows, trust),
        "screened": {"threshold": screen, "sites": skipped},
    }
    return rows, facts


def made_cell(
    cfg: DictConfig, network: Network, site: Site, rank: int | None, seed: int
) -> Alignment:
    """The config's alignment at this site, its weights drawn by the seed."""
    torch.manual_seed(seed)
    intervention = instantiate(cfg.intervention)
    if rank is not None:
        intervention = partial(intervention, rank=rank)
    return instantiate(cfg.alignment)(network=network, site=site, intervention=intervention)


def _name(cell: Alignment, seed: int) -> str:
    (edit,) = cell.edits.values()
    return (
        f"{edit.sites[0].layer} {edit.sites[0].position}, rank "
        f"{edit.intervention.rank}, seed {seed}"
    )
