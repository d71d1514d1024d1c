"""The job `ladder`: how accuracy grows with the capacity of the map, in the network and in an untrained one."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from iit.alignment import Alignment, one
from iit.data import EncodedPairs, Pairs, freeze, hold_out
from iit.evaluation import describe, fresh, outcomes
from iit.evaluation.rows import scores
from iit.intervened import ActivationStore
from iit.intervention import LowRankRotatedSpaceIntervention, RevNetIntervention
from iit.job.align import alike, facts_of, pairs_of
from iit.job.declared import check_config
from iit.network import fingerprint, untrained
from iit.report import save_figure
from iit.report.ladder import ladder_figure
from iit.result import SCORE, Row, where
from iit.result.vocabulary import KIND

log = logging.getLogger(__name__)
CONTROL = "untrained_network"


def ladder(
    cfg: DictConfig,
    folder: Path,
    loggers: list[Any],
    *,
    ranks: Sequence[int | str],
    depths: Sequence[int],
    depth_rank: int,
    hidden: int = 64,
) -> tuple[list[Row], dict[str, Any]]:
    """Fit a subspace of each rank and a reversible map of each depth at `cfg.site`, in the network and in an untrained one of the same
    architecture; score them on training pairs (names and templates that were seen) and on test pairs (unseen).

    An expressive enough map reaches any accuracy in any network (arXiv 2507.08802): what counts is the accuracy above the untrained
    network's (`iia_difference`, control `untrained_network`). That network has the trained one's prompts; nothing is filtered for it.

    ranks: of linear subspaces; "full" for the site's width. depths: of reversible maps of which `depth_rank` coordinates are swapped,
    each coupling with `hidden` units.

    Every rung is reported; which they are is frozen before test is opened. Writes the figure. Returns rows (validation, train, test) and
    the run's facts.
    """
    if cfg.ckpt_path is not None:
        raise ValueError("ckpt_path: a ladder has no checkpoint to go on from; run it afresh.")
    check_config(cfg, trains_network=False)
    network = instantiate(cfg.network)
    before = fingerprint(network.model)
    site = instantiate(cfg.site)
    rungs: dict[str, Alignment] = {}
    for rank in ranks:
        torch.manual_seed(cfg.seed)
        rungs[f"rank {rank}"] = one(network, cfg.variable, site, partial(_frame, rank=rank))
    for depth in depths:
        torch.manual_seed(cfg.seed)
        curved = partial(RevNetIntervention, rank=depth_rank, depth=depth, hidden=hidden)
        rungs[f"depth {depth}"] = one(network, cfg.variable, site, curved)
    store = instantiate(cfg.store)(network.model)
    for rung in rungs.values():
        rung.store = store
    pairs, held_out = hold_out(pairs_of(cfg, next(iter(rungs.values()))))
    other = untrained(network, cfg.seed)
    beside = {name: fresh(rung, cfg.seed, network=other) for name, rung in rungs.items()}
    other_store = ActivationStore(other.model)
    for rung in beside.values():
        rung.store = other_store
    train = alike(cfg, folder)
    train(rungs, pairs, cfg.seed)
    train(beside, pairs, cfg.seed)
    rows = _scored(cfg, rungs, beside, pairs, "validation") + _scored(cfg, rungs, beside, pairs, "train")
    found = {row.method: row.value for row in where(rows, **SCORE)}
    opened = held_out.opened(freeze(folder, {"reported": "every rung", "validation_iia": found}))
    rows += _scored(cfg, rungs, beside, opened, "test")
    assert fingerprint(network.model) == before, "the frozen network has changed"
    save_figure(ladder_figure(rows), folder / "ladder", rows)
    return rows, facts_of(pairs, network)


def _frame(width: int, rank: int | str) -> Any:
    return LowRankRotatedSpaceIntervention(width, width if rank == "full" else int(rank))


def _scored(cfg: DictConfig, rungs: dict[str, Alignment], beside: dict[str, Alignment], pairs: Pairs, split: str) -> list[Row]:
    """Of each rung the figures in the network, in the untrained one, and their paired difference; its method is the rung's name."""
    rows = []
    network = next(iter(rungs.values())).studied
    assert network is not None
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
    every = np.ones(len(encoded), dtype=bool)
    size = cfg.trainer.eval_batch_size
    for name, rung in rungs.items():
        arms: dict[str | None, np.ndarray] = {
            None: outcomes(rung, encoded, batch_size=size).right[None],
            CONTROL: outcomes(beside[name], encoded, batch_size=size).right[None],
        }
        facts = describe(rung, pairs, pairs.variables) | {"seed": cfg.seed, "split": split, "experiment": cfg.name}
        made = scores(arms, encoded, every, facts, resamples=2000)
        rows += [replace(row, method=f"{row.method}, {name}") for row in made if not row.subset.startswith(KIND)]
        log.info("%s, %s: %s", split, name, {k or "trained network": round(float(v.mean()), 3) for k, v in arms.items()})
    return rows
