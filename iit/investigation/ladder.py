"""The investigation `ladder`: accuracy by the capacity of the map, in the network and in
untrained ones.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from iit.alignment import Alignment, one
from iit.data import EncodedPairs, Pairs, freeze
from iit.evaluation import describe, fresh, outcomes
from iit.intervened import ActivationStore
from iit.intervention import LowRankRotatedSpaceIntervention, RevNetIntervention
from iit.investigation.ladder_report import ladder_figure, ladder_tables
from iit.job.declared import check_config
from iit.job.setup import alike, facts_of, frozen_network, pairs_held_out
from iit.network import untrained
from iit.report import save_figure
from iit.result import SCORE, Row, clustered_interval, where

log = logging.getLogger(__name__)
CONTROL = "untrained_network"
METRICS = ("iia", "iia_forced")


def ladder(
    cfg: DictConfig,
    folder: Path,
    loggers: list[Any],
    *,
    ranks: Sequence[int | str],
    depths: Sequence[int],
    depth_rank: int,
    hidden: int = 64,
    seeds: int = 1,
    metric: str = "iia",
    keep_ends: bool = False,
) -> tuple[list[Row], dict[str, Any]]:
    """Fit a subspace of each rank and a reversible map of each depth at `cfg.site`, in the network
    and in untrained ones of the same architecture; score them on training pairs (seen) and on test
    pairs (unseen).

    An expressive enough map reaches any accuracy in any network (arXiv 2507.08802): what counts is
    the accuracy above the untrained networks' (`METRIC_difference`, control `untrained_network`).
    They have the trained one's prompts; nothing is filtered for them.

    ranks: of linear subspaces; "full" for the site's width. depths: of reversible maps of which
    `depth_rank` coordinates are swapped, each coupling with `hidden` units.
    seeds: how many starts, each beside an untrained network of its own, on the same pairs.
        Intervals are then about other seeds, too.
    metric: "iia", or "iia_forced" (see `Outcomes.forced`), which an untrained language model can
        pass. Its chance is `no_intervention`, in the untrained networks
        `untrained_network/no_intervention`.
    keep_ends: untrained language models keep the trained embedding and head.

    Every rung is reported; which they are is frozen before test is opened. Writes the figure.
    Returns rows (validation, train, test) and the run's facts.
    """
    if cfg.ckpt_path is not None:
        raise ValueError("ckpt_path: a ladder has no checkpoint to go on from; run it afresh.")
    if metric not in METRICS or seeds < 1:
        raise ValueError(
            f"job: metric={metric!r} is one of {METRICS}, and seeds={seeds} at least 1."
        )
    check_config(cfg, trains_network=False)
    frozen = frozen_network(cfg)
    network = frozen.network
    site = instantiate(cfg.site)
    maps: dict[str, Callable[..., Any]] = {
        f"rank {rank}": partial(_frame, rank=rank) for rank in ranks
    }
    for depth in depths:
        maps[f"depth {depth}"] = partial(
            RevNetIntervention, rank=depth_rank, depth=depth, hidden=hidden
        )
    rungs: dict[str, list[Alignment]] = {name: [] for name in maps}
    for name, made in maps.items():
        for seed in range(cfg.seed, cfg.seed + seeds):
            torch.manual_seed(seed)
            rungs[name].append(one(network, cfg.variable, site, made))
    first = next(iter(rungs.values()))[0]
    pairs, held_out = pairs_held_out(cfg, first)
    train = alike(cfg, folder)
    trained = {
        f"{name}, {number}": rung
        for name, each in rungs.items()
        for number, rung in enumerate(each)
    }
    store = instantiate(cfg.store)(network.model)
    for rung in trained.values():
        rung.store = store
    train(trained, pairs, cfg.seed)
    beside: dict[str, list[Alignment]] = {name: [] for name in maps}
    for number in range(seeds):
        seed = cfg.seed + number
        other = untrained(network, seed, keep_ends=keep_ends)
        other_store = ActivationStore(other.model)
        alone = {name: fresh(each[number], seed, network=other) for name, each in rungs.items()}
        for name, rung in alone.items():
            rung.store = other_store
            beside[name].append(rung)
        train(alone, pairs, seed)
    score = partial(_scored, cfg, rungs, beside, metric)
    rows = score(pairs, "validation") + score(pairs, "train")
    validation = {row.method: row.value for row in where(rows, **{**SCORE, "metric": metric})}
    opened = held_out.opened(
        freeze(folder, {"reported": "every rung", f"validation_{metric}": validation})
    )
    rows += score(opened, "test")
    frozen.check()
    save_figure(ladder_figure(rows), folder / "ladder", rows)
    tables = [table.to_dict() for table in ladder_tables(rows)]
    return rows, facts_of(pairs, network) | {"tables": tables}


def _frame(width: int, rank: int | str) -> Any:
    return LowRankRotatedSpaceIntervention(width, width if rank == "full" else int(rank))


def _scored(
    cfg: DictConfig,
    rungs: Mapping[str, list[Alignment]],
    beside: Mapping[str, list[Alignment]],
    metric: str,
    pairs: Pairs,
    split: str,
) -> list[Row]:
    """Of each rung the figures in the network, in untrained ones, and their paired difference; its
    method is the rung's name.
    """
    rows: list[Row] = []
    network = next(iter(rungs.values()))[0].studied
    assert network is not None
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)

    def right(alignments: Sequence[Alignment], *, edited: bool = True) -> np.ndarray:
        """Float[n, seeds]; NaN where `iia_forced` does not count a pair."""
        size = cfg.trainer.eval_batch_size
        each = [outcomes(one_of, encoded, batch_size=size, edited=edited) for one_of in alignments]
        return np.stack(
            [o.right[None].astype(float) if metric == "iia" else o.forced for o in each], 1
        )

    chance = {}
    if metric == "iia_forced":
        chance = {
            name: right(each, edited=False) for name, each in _unedited(rungs, beside).items()
        }
    for name, each in rungs.items():
        arms = {None: right(each), CONTROL: right(beside[name])} | chance
        facts = describe(each[0], pairs, pairs.variables) | {
            "seed": cfg.seed,
            "split": split,
            "experiment": cfg.name,
        }
        facts["method"] += f", {name}"
        for subset in ("all", "changing"):
            counted = ~np.isnan(arms[None]).any(1) & (encoded.changing.numpy() | (subset == "all"))
            if not counted.any():
                continue
            interval = partial(
                clustered_interval, clusters=encoded.clusters[counted], over_draws=len(each) > 1
            )
            for control, values in arms.items():
                figure = interval(values[counted])
                rows.append(
                    Row(**facts, subset=subset, control=control, metric=metric, **figure._asdict())
                )
            gap = interval((arms[None] - arms[CONTROL])[counted], paired=True)
            rows.append(
                Row(
                    **facts,
                    subset=subset,
                    control=CONTROL,
                    metric=f"{metric}_difference",
                    **gap._asdict(),
                )
            )
        log.info(
            "%s, %s: %s",
            split,
            name,
            {k or "trained network": round(float(np.nanmean(v)), 3) for k, v in arms.items()},
        )
    return rows


def _unedited(*groups: Mapping[str, list[Alignment]]) -> dict[str, list[Alignment]]:
    """Control → the alignments of any rung: without edits they are networks, the trained one and
    the untrained ones.
    """
    names = ("no_intervention", f"{CONTROL}/no_intervention")
    return {name: next(iter(group.values())) for name, group in zip(names, groups, strict=True)}
