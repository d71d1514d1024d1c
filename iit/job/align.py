"""The job `align`: train an alignment, and score it beside its controls."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from iit.alignment import Alignment, Fitted, initialise
from iit.data import Choice, Pairs, freeze
from iit.evaluation import Scoring, scored_rows
from iit.job.declared import check_config
from iit.job.outcome_file import save_outcomes
from iit.job.setup import (
    evaluate_options,
    facts_of,
    fitting,
    frozen_network,
    pairs_held_out,
    refit_as_configured,
    save_training_curve,
    verdict_facts,
)
from iit.result import SCORE, Cell, Row, select, where

log = logging.getLogger(__name__)

# Keys of the config that may differ between a training and the one that it continues.
_FREE = (
    "ckpt_path",
    "paths",
    "logger",
    "callbacks",
    "trainer",
    "job",
    "trust",
    "store",
    "name",
    "dry_run",
)
# Options of Lightning's trainer that may not differ: they decide what an optimizer step does.
_BOUND = (
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
    "precision",
    "limit_train_batches",
)


def align(cfg: DictConfig, folder: Path, loggers: list[Any]) -> tuple[list[Row], dict[str, Any]]:
    """Fit `cfg.alignment` on `cfg.data`, and score it on validation and test pairs.

    Validation is scored first. Then the choice is frozen in `choice.json`, and the test split is
    opened. An alignment with nothing to train is scored as it is.

    The job writes the alignment, the checkpoints, the outcome of each pair, the training curve and
    a picture of the causal model to `folder`.

    Arguments:
        folder: the run's folder.
        loggers: where the training curves go.

    Returns:
        The rows, and the facts of the run.

    Raises:
        ValueError: for what `check_config` and `pairs_held_out` refuse.
    """
    check_config(cfg, trains_network=False)
    frozen = frozen_network(cfg)
    alignment = instantiate(cfg.alignment)(network=frozen.network)
    score = instantiate(cfg.score)
    score.check(alignment)
    alignment.store = instantiate(cfg.store)(frozen.network.model)
    pairs, held_out = pairs_held_out(cfg, alignment)
    log.info("%s", _answered_text(pairs.facts))
    if pairs.facts.get("separating"):
        log.info("%s", _separating_text(pairs))
    fitted = None
    if any(p.requires_grad for p in alignment.parameters()):
        # Checkpoints carry it: only a training of this config, on these pairs, may continue them.
        identity = _identity(cfg) | {"data_fingerprint": pairs.fingerprint}
        fitted = fitting(cfg, alignment, pairs, folder, loggers=loggers, config=identity)
    else:
        # Principal components are computed from activations, not trained.
        initialise(alignment, pairs)
    trust = instantiate(cfg.trust)
    options = {"trust": trust, "seed": cfg.seed, "score": score, **evaluate_options(cfg)}
    validation = Scoring(alignment, pairs, "validation", **options)
    rows = scored_rows(validation)
    # From here on the pairs have their test split.
    pairs = held_out.opened(freeze_choice(folder, rows, alignment, fitted))
    test = Scoring(alignment, pairs, "test", refit=refit_as_configured(cfg, folder), **options)
    rows += scored_rows(test)
    frozen.check()
    alignment.rows = rows
    alignment.save_pretrained(folder / "alignment")
    save_outcomes(folder, validation, test)
    save_training_curve(folder)
    facts = {
        **facts_of(pairs, frozen.network),
        "fit": fitted._asdict() if fitted is not None else None,
        "verdict": verdict_facts(rows, trust, score.metric),
    }
    return rows, facts


def freeze_choice(
    folder: Path, rows: list[Row], alignment: Alignment, fitted: Fitted | None
) -> Choice:
    """Record the choice that validation has made, in `choice.json`.

    The file holds the epoch, how many alignments were compared, and a sha256 of the weights. It
    also holds the cell of each of the alignment's variables, with its validation IIA on changing
    pairs.

    Arguments:
        folder: the run's folder.
        rows: the rows of all alignments that were compared.
        alignment: the chosen one.
        fitted: how its fit went; None where nothing was trained.

    Returns:
        What opens the test split.
    """
    figures = {Cell.of(row): row for row in where(rows, **SCORE)}
    # An alignment of several variables has a cell for each, and is not compared with others.
    cells = list(figures) if len(alignment.variables) > 1 else [select(rows)]
    validation_iia = []
    for cell in cells:
        figure = {"subset": "changing"}
        for name in ("value", "low", "high", "n"):
            figure[name] = getattr(figures[cell], name)
        validation_iia.append(figure)
    digest = hashlib.sha256()
    for name, tensor in alignment.state_dict().items():
        # NumPy has no bfloat16, so every tensor is read as float32.
        numbers = tensor.detach().cpu().contiguous().float().numpy()
        digest.update(name.encode() + numbers.tobytes())
    choice = {
        "cells": [cell._asdict() for cell in cells],
        "epoch": None if fitted is None else fitted.epoch,
        "validation_iia": validation_iia,
        "compared": len(figures) // len(cells),
        "weights": digest.hexdigest(),
    }
    return freeze(folder, choice)


def _identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of the config that a training shares with the one that it continues."""
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    identity = {key: value for key, value in resolved.items() if key not in _FREE}
    # The rest of the group may differ, `max_epochs` for one: a continued training may take longer.
    group = resolved["trainer"]
    steps = {key: value for key, value in group["trainer"].items() if key in _BOUND}
    identity["trainer"] = steps | {"batch_size": group["batch_size"]}
    return identity


def _answered_text(facts: Any) -> str:
    """How many of the drawn prompts the network answers rightly in each split, in words."""
    shares = ", ".join(
        f"{split} {facts['right'][split]}/{drawn}"
        for split, drawn in facts.get("drawn", {}).items()
    )
    return (
        "prompts the network answers rightly: "
        f"{shares or 'not known (the pairs have no base_answer)'}"
    )


def _separating_text(pairs: Pairs) -> str:
    """The share of validation pairs on which each rival has another label, in words."""
    n = len(pairs.split("validation"))
    shares = ", ".join(
        f"{name} {differ / n:.0%}"
        for name, differ in pairs.facts["separating"]["validation"].items()
    )
    return (
        "validation pairs that tell the hypothesis from its rivals: "
        f"{shares or 'there are no rivals'}"
    )
