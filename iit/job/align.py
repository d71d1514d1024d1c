"""The job `align`: train an alignment, and score it beside its controls."""

import hashlib
import logging
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf

from iit.alignment import Alignment, Fitted, fit, initialise
from iit.alignment.labels import check_labels
from iit.causal.figure import figure
from iit.data import Choice, EncodedPairs, Pairs, freeze, hold_out
from iit.evaluation import Trust, evaluate, train_alike, verdict
from iit.evaluation.trust import Refit
from iit.job.declared import check_config, training
from iit.network import Network, fingerprint
from iit.report import save_figure, training_curve
from iit.result import SCORE, Cell, Row, select, where

log = logging.getLogger(__name__)

# What may differ between a run and the run it resumes.
_FREE = ("ckpt_path", "paths", "logger", "callbacks", "trainer", "job", "trust", "store", "name")
# What may not, of Lightning's trainer: what decides a step.
_BOUND = (
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
    "precision",
    "limit_train_batches",
)


def align(cfg: DictConfig, folder: Path, loggers: list[Any]) -> tuple[list[Row], dict[str, Any]]:
    """Fit `cfg.alignment` on `cfg.data` and score validation, then, the choice being frozen in
    `choice.json`, test.

    Writes the alignment, the checkpoints, the training curve and a picture of the causal model to
    `folder`. Returns the rows and the facts of the run.
    """
    check_config(cfg, trains_network=False)
    network = instantiate(cfg.network)
    alignment = instantiate(cfg.alignment)(network=network)
    before = fingerprint(network.model)
    alignment.store = instantiate(cfg.store)(network.model)
    pairs, held_out = hold_out(pairs_of(cfg, alignment))
    log.info("%s", _told(pairs.facts))
    if pairs.facts.get("separating"):
        log.info("%s", _told_rivals(pairs))
    if any(p.requires_grad for p in alignment.parameters()):
        fitted = _fitted(cfg, alignment, pairs, folder, loggers)
    else:  # scored as it is
        initialise(alignment, pairs)
        fitted = None
    trust = instantiate(cfg.trust)
    common = {
        "trust": trust,
        "seed": cfg.seed,
        "experiment": cfg.name,
        "batch_size": cfg.trainer.eval_batch_size,
    }
    rows = evaluate(alignment, pairs, split="validation", **common)
    pairs = held_out.opened(frozen(folder, rows, alignment, fitted))
    rows += evaluate(alignment, pairs, split="test", refit=alike(cfg, folder), **common)
    assert fingerprint(network.model) == before, "the frozen network has changed"
    alignment.rows = rows
    alignment.save_pretrained(folder / "alignment")
    if pairs.task is not None:
        save_figure(figure(pairs.task.model, alignment.places()), folder / "causal_model")
    curves = folder / "csv" / "metrics.csv"
    if curves.is_file():
        save_figure(training_curve(curves), folder / "training_curve")
    facts = {
        **facts_of(pairs, network),
        "fit": fitted._asdict() if fitted is not None else None,
        "verdict": judged(rows, trust),
    }
    return rows, facts


def facts_of(pairs: Pairs, network: Network) -> dict[str, Any]:
    """What a run reports of its pairs and of its network."""
    return {
        "data": {
            **pairs.facts,
            "fingerprint": pairs.fingerprint,
            "causal_model": pairs.task is not None,
        },
        "network": {
            "name": network.name,
            "revision": network.revision,
            "fingerprint": fingerprint(network.model),
        },
    }


def frozen(folder: Path, rows: list[Row], alignment: Alignment, fitted: Fitted | None) -> Choice:
    """Record the choice that validation has made: the cell of each of the alignment's variables,
    its figure, the epoch, how many alignments
    were compared, and the weights."""
    figures = {Cell.of(row): row for row in where(rows, **SCORE)}
    cells = list(figures) if len(alignment.variables) > 1 else [select(rows)]
    digest = hashlib.sha256()
    for name, tensor in alignment.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes())
    choice = {
        "cells": [cell._asdict() for cell in cells],
        "epoch": None if fitted is None else fitted.epoch,
        "validation_iia": [
            {
                "subset": "changing",
                **{name: getattr(figures[cell], name) for name in ("value", "low", "high", "n")},
            }
            for cell in cells
        ],
        "compared": len(figures) // len(cells),
        "weights": digest.hexdigest(),
    }
    return freeze(folder, choice)


def judged(rows: list[Row], trust: Trust) -> list[dict[str, Any]]:
    """The verdicts, also told in the log."""
    verdicts = verdict(rows, trust.thresholds)
    for found in verdicts:
        log.info("%s", found.line())
    return [found.to_dict() for found in verdicts]


def alike(cfg: DictConfig, folder: Path) -> Refit:
    """Trains controls as the alignment is trained, but for checkpoints and loggers."""

    def refit(alignments: Mapping[str, Alignment], pairs: Pairs, seed: int) -> None:
        options = training(cfg)
        options["callbacks"] = [
            each for each in options["callbacks"] if not isinstance(each, Checkpoint)
        ]
        log.info("Training for comparison: %s", ", ".join(alignments))
        train_alike(alignments, pairs, seed, folder=folder, **options)

    return refit


def _fitted(
    cfg: DictConfig, alignment: Alignment, pairs: Pairs, folder: Path, loggers: list[Any]
) -> Fitted:
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    identity = {key: value for key, value in resolved.items() if key not in _FREE}
    steps = {key: value for key, value in resolved["trainer"]["trainer"].items() if key in _BOUND}
    identity["trainer"] = steps | {"batch_size": resolved["trainer"]["batch_size"]}
    fitted = fit(
        alignment,
        pairs,
        loggers=loggers,
        seed=cfg.seed,
        folder=folder,
        ckpt_path=cfg.ckpt_path,
        config=identity | {"data_fingerprint": pairs.fingerprint},
        **training(cfg),
    )
    log.info(
        "Kept epoch %d of %d: %s %.3f",
        fitted.epoch + 1,
        fitted.n_epochs,
        fitted.monitor,
        fitted.value,
    )
    return fitted


def pairs_of(cfg: DictConfig, network: Alignment | Network) -> Pairs:
    """Pairs sampled from the causal model; one's own need none. An alignment answers for its
    network and keeps what it ran.

    Raises ValueError for what one's own pairs do not take, and for a label among them that is none
    of the network's answers, of whichever split: no run is needed to see it.
    """
    make = instantiate(cfg.data)
    if "path" not in cfg.data:
        return make(task=instantiate(cfg.causal), network=network)
    more = sorted(set(make.keywords) - set(signature(Pairs.load).parameters))
    if more:
        raise ValueError(
            f"data=file reads pairs as they are, and takes no data.{more[0]} (set by an "
            "experiment?): leave it out, "
            f"{' '.join(f'~data.{key}' for key in more)}."
        )
    pairs = make(network=network)
    studied = network if isinstance(network, Network) else network.studied
    if studied is not None:
        for split in dict.fromkeys(pairs.dataset["split"]):
            check_labels(studied, EncodedPairs(pairs.split(split), pairs.variables, studied), split)
    return pairs


def _told(facts: Any) -> str:
    """The share of prompts that were kept, in words."""
    shares = ", ".join(
        f"{split} {facts['right'][split]}/{drawn}"
        for split, drawn in facts.get("drawn", {}).items()
    )
    return (
        "prompts the network answers rightly: "
        f"{shares or 'not known (the pairs have no base_answer)'}"
    )


def _told_rivals(pairs: Pairs) -> str:
    """On which share of the validation pairs each rival says something else."""
    n = len(pairs.split("validation"))
    shares = ", ".join(
        f"{name} {differ / n:.0%}"
        for name, differ in pairs.facts["separating"]["validation"].items()
    )
    return (
        "validation pairs that tell the hypothesis from its rivals: "
        f"{shares or 'there are no rivals'}"
    )
