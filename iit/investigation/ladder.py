"""The investigation `ladder`: accuracy by the capacity of the map.

It is measured in the network and in untrained ones.
"""

import logging
from collections.abc import Mapping, Sequence
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
from iit.job.setup import facts_of, frozen_network, pairs_held_out, refit_as_configured
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
    """Fit maps of growing capacity at `cfg.site`, in the network and in untrained ones.

    A rung is a linear subspace of some rank, or a reversible map of some depth. It is fitted in the
    network and in untrained networks of the same architecture. It is scored on training pairs
    (seen) and on test pairs (unseen).

    An expressive enough map reaches any accuracy in any network. So what counts is the accuracy
    above that of the untrained networks: `METRIC_difference`, with control `untrained_network`. The
    untrained networks get the trained one's prompts; nothing is filtered for them.

    Every rung is reported. The validation figures of all rungs are frozen in `choice.json` before
    test is opened. The job writes the figure.

    Arguments:
        folder: the run's folder.
        ranks: of linear subspaces; "full" is the site's width.
        depths: of reversible maps, in coupling blocks.
        depth_rank: how many coordinates of a reversible map are swapped.
        hidden: hidden units of each coupling block.
        seeds: how many starts a rung has, on the same pairs. Each is beside an untrained network of
            its own. With several, intervals are about other seeds, too.
        metric: "iia" or "iia_forced" (see `Outcomes.forced`). An untrained language model can pass
            the latter. Its chance is given as `no_intervention`, and for the untrained networks as
            `untrained_network/no_intervention`.
        keep_ends: whether untrained language models keep the trained embedding and head.

    Returns:
        The rows (validation, train, test), and the run's facts.

    Raises:
        ValueError: for `ckpt_path`, as there is no checkpoint to go on from; for any other metric;
            for less than one seed; and for what `check_config` and `pairs_held_out` refuse.

    References:
        arXiv 2507.08802.
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
    # {rung: what makes its intervention from the site's width}
    maps = {}
    for rank in ranks:
        maps[f"rank {rank}"] = partial(_frame, rank=rank)
    for depth in depths:
        maps[f"depth {depth}"] = partial(
            RevNetIntervention, rank=depth_rank, depth=depth, hidden=hidden
        )
    # {rung: an alignment for each seed}
    rungs: dict[str, list[Alignment]] = {name: [] for name in maps}
    for name, make in maps.items():
        for seed in range(cfg.seed, cfg.seed + seeds):
            # The seed draws the weights.
            torch.manual_seed(seed)
            rungs[name].append(one(network, cfg.variable, site, make))
    first = next(iter(rungs.values()))[0]
    pairs, held_out = pairs_held_out(cfg, first)
    train = refit_as_configured(cfg, folder)
    # All rungs and seeds of the trained network are fitted side by side.
    store = instantiate(cfg.store)(network.model)
    trained = {}
    for name, alignments in rungs.items():
        for number, rung in enumerate(alignments):
            rung.store = store
            trained[f"{name}, {number}"] = rung
    train(trained, pairs, cfg.seed)
    # The same in the untrained networks; a seed has a network of its own.
    untrained_rungs: dict[str, list[Alignment]] = {name: [] for name in maps}
    for number in range(seeds):
        seed = cfg.seed + number
        other = untrained(network, seed, keep_ends=keep_ends)
        # A store is of one network.
        other_store = ActivationStore(other.model)
        side_by_side = {}
        for name, alignments in rungs.items():
            rung = side_by_side[name] = fresh(alignments[number], seed, network=other)
            rung.store = other_store
            untrained_rungs[name].append(rung)
        train(side_by_side, pairs, seed)
    score = partial(_scored, cfg, rungs, untrained_rungs, metric)
    rows = score(pairs, "validation") + score(pairs, "train")
    validation_rows = where(rows, **{**SCORE, "metric": metric})
    validation = {row.method: row.value for row in validation_rows}
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
    """The rows of each rung on one split: in the network, in untrained ones, and the difference.

    The difference is paired: it is taken pair by pair and seed by seed. A row's method ends with
    the rung's name.

    Arguments:
        rungs: {rung: an alignment for each seed}, in the network.
        beside: likewise, in the untrained networks.
    """
    rows: list[Row] = []
    network = next(iter(rungs.values()))[0].studied
    assert network is not None
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)

    def right(alignments: Sequence[Alignment], *, edited: bool = True) -> np.ndarray:
        """Float[n, seeds]; NaN where `iia_forced` does not count a pair."""
        size = cfg.trainer.eval_batch_size
        by_seed = []
        for alignment in alignments:
            scored = outcomes(alignment, encoded, batch_size=size, edited=edited)
            by_seed.append(scored.right[None].astype(float) if metric == "iia" else scored.forced)
        return np.stack(by_seed, 1)

    # Without an edit all rungs are the same network, so the chance is measured once.
    chance = {}
    if metric == "iia_forced":
        for control, by_name in {"": rungs, f"{CONTROL}/": beside}.items():
            some_rung = next(iter(by_name.values()))
            chance[f"{control}no_intervention"] = right(some_rung, edited=False)
    for name, by_seed in rungs.items():
        # {control: Float[n, seeds]}
        arms = {None: right(by_seed), CONTROL: right(beside[name])} | chance
        facts = describe(by_seed[0], pairs, pairs.variables) | {
            "seed": cfg.seed,
            "split": split,
            "experiment": cfg.name,
        }
        facts["method"] += f", {name}"
        for subset in ("all", "changing"):
            # bool[n]: pairs of the subset that have a figure.
            has_figure = ~np.isnan(arms[None]).any(1)
            in_subset = encoded.changing.numpy() | (subset == "all")
            counted = has_figure & in_subset
            if not counted.any():
                continue
            # With several seeds these are resampled, too.
            interval = partial(
                clustered_interval,
                clusters=encoded.clusters[counted],
                over_draws=len(by_seed) > 1,
            )
            figures = {}
            for control, values in arms.items():
                figures[control, metric] = interval(values[counted])
            # [n, seeds]: each seed minus the untrained network beside it.
            gap = (arms[None] - arms[CONTROL])[counted]
            figures[CONTROL, f"{metric}_difference"] = interval(gap, paired=True)
            for (control, measure), figure in figures.items():
                line = {"subset": subset, "control": control, "metric": measure}
                rows.append(Row(**facts, **line, **figure._asdict()))
        log.info(
            "%s, %s: %s",
            split,
            name,
            {k or "trained network": round(float(np.nanmean(v)), 3) for k, v in arms.items()},
        )
    return rows
