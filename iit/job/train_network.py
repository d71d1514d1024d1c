"""The job `train_network`: train a small network on a task, to study it afterwards."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf

from iit.data import freeze, hold_out
from iit.evaluation import Scoring, scored_rows
from iit.job.declared import check_config, composed
from iit.job.outcome_file import save_outcomes
from iit.job.setup import evaluate_options, facts_of, fitting, save_training_curve, verdict_facts
from iit.network import Network, fingerprint, load_network, save_network
from iit.network.cache import cache_folder, is_whole, made_once
from iit.result import Row, where

log = logging.getLogger(__name__)

# A network that another run asks for is trained without checkpoints and without early stopping.
OVERRIDES = ("callbacks=none",)
# The keys of the config that the trained weights depend on.
_DECIDES = (
    "causal",
    "data",
    "network",
    "alignment",
    "objective",
    "module",
    "trainer",
    "callbacks",
    "seed",
    "start",
    "monitor",
)


def train_network(
    cfg: DictConfig, folder: Path, loggers: list[Any]
) -> tuple[list[Row], dict[str, Any]]:
    """Train the untrained `cfg.network` on `cfg.causal`, and measure its accuracy.

    The accuracy is measured on inputs that were held out. If the alignment has edits, their
    interchanges are trained, too (`module=iit`), and scored beside their controls. If the trained
    network answers too few prompts, the task accuracy is all that is reported.

    The job writes the network to `folder / "network"`, where `load_network` reads it, and to the
    cache of `trained_network`. It writes the training curve to `folder`. An alignment that has
    edits goes to `folder / "alignment"`.

    Arguments:
        folder: the run's folder.
        loggers: where the training curves go.

    Returns:
        The rows, and the facts of the run. The rows have the task accuracy on validation and on
        test. The choice is frozen in `choice.json` before test is opened.

    Raises:
        ValueError: for `trust=full`, whose controls are trained in a frozen network, and for what
            `check_config` refuses.
    """
    check_config(cfg, trains_network=True)
    trust = instantiate(cfg.trust)
    if trust.full:
        raise ValueError(
            "trust=full trains controls in a frozen network as the alignment was trained; this job "
            "trains the network itself. Run it with trust=quick, then job=align on network=trained "
            "with trust=full."
        )
    task, network = instantiate(cfg.causal), untrained_network(cfg)
    alignment = instantiate(cfg.alignment)(network=network)
    sample = partial(instantiate(cfg.data), task=task, network=network)
    pairs, held_out = hold_out(sample())
    # Counts of drawn prompts are there if prompts were filtered by the network's answers.
    is_filtered = bool(pairs.facts["drawn"])
    fitted = fitting(cfg, alignment, pairs, folder, loggers=loggers, config=decisive(cfg))
    network.name = cfg.name
    save_network(network, folder / "network")
    is_answered = True
    if is_filtered:
        # The pairs so far were filtered by what the network answered before it was trained. The
        # test split was closed until now, and still is.
        try:
            pairs, held_out = hold_out(sample())
        except ValueError as error:
            # Too few right answers for pairs: how few they are is a result all the same.
            log.warning("%s Only the task accuracy is reported, of all prompts.", error)
            is_answered = False
            pairs, held_out = hold_out(
                instantiate(cfg.data, right_only=False)(task=task, network=network)
            )
    options = {"trust": trust, "seed": cfg.seed, **evaluate_options(cfg)}
    alignment.store = instantiate(cfg.store)(network.model)
    validation = Scoring(alignment, pairs, "validation", **options)
    rows = scored_rows(validation)
    choice = {
        "epoch": fitted.epoch,
        "validation": {fitted.monitor: fitted.value},
        "weights": fingerprint(network.model),
    }
    # From here on the pairs have their test split.
    pairs = held_out.opened(freeze(folder, choice))
    test = Scoring(alignment, pairs, "test", **options)
    rows += scored_rows(test)
    if not is_answered:
        # An interchange is scored only on prompts that the network answers rightly.
        rows = where(rows, metric="task_accuracy")
    if alignment.edits:
        alignment.rows = rows
        alignment.save_pretrained(folder / "alignment")
        if is_answered:
            save_outcomes(folder, validation, test)
    save_training_curve(folder)
    made_once(
        _cached(cfg),
        lambda cached: save_network(network, cached),
        f"Keeping the network of {cfg.name}",
    )
    facts = {
        **facts_of(pairs, network),
        "fit": fitted._asdict(),
        "verdict": verdict_facts(rows, trust),
    }
    return rows, facts


def untrained_network(cfg: DictConfig) -> Network:
    """The network that is to be trained."""
    if "vocabulary" not in cfg.network:
        return instantiate(cfg.network)
    # A small language model has a token for each word of the task.
    return instantiate(cfg.network, vocabulary=list(instantiate(cfg.causal).vocabulary))


def trained_network(
    experiment: str, device: str = "cpu", dtype: str = "fp32", weights: bool = True
) -> Network:
    """The network of a `train_network` experiment, from the user's cache or trained first.

    The key in the cache is made from the part of the experiment's config that decides the weights,
    and from this package's version.

    Arguments:
        experiment: the name of a file in `conf/experiment`, such as "train_equality".
        device, dtype: as `load_network` takes them.
        weights: False gives the network as it is before the training.

    Returns:
        The network, frozen; its name is the experiment's, its revision the key in the cache.

    Raises:
        ValueError: for an experiment that trains no network.
    """
    cfg = composed([f"+experiment={experiment}", *OVERRIDES])
    if cfg.job._target_ != "iit.job.train_network":
        raise ValueError(
            f"The experiment {experiment!r} trains no network: its job is {cfg.job._target_}."
        )
    if not weights:
        return untrained_network(cfg)
    if not is_whole(_cached(cfg)):
        log.info("Training the network of %s first (once; some minutes)", experiment)
        # It leaves the random generators and torch's algorithms as they were.
        with tempfile.TemporaryDirectory() as run, isolate_rng(), _same_algorithms():
            L.seed_everything(cfg.seed, verbose=False)
            rows, _ = train_network(cfg, Path(run), [])
        for row in rows:
            log.info("%s: %s accuracy %.4f (n = %d)", experiment, row.split, row.value, row.n)
    network = load_network(str(_cached(cfg)), device=device, dtype=dtype)
    network.name, network.revision = experiment, _cached(cfg).name
    return network


@contextmanager
def _same_algorithms() -> Iterator[None]:
    """Put back the kind of torch's algorithms, which Lightning chooses for the whole process.

    A run then goes on as if the network had been in the cache.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)


def _cached(cfg: DictConfig) -> Path:
    """The network's folder in the cache, which is named by what decides the weights."""
    key = json.dumps([decisive(cfg), version("iit")], sort_keys=True)
    return cache_folder() / "trained" / hashlib.sha256(key.encode()).hexdigest()[:32]


def decisive(cfg: DictConfig) -> dict[str, Any]:
    """The part of the config that the trained weights depend on, resolved, as plain dicts."""
    deciding = {}
    for key in _DECIDES:
        value: Any = cfg[key]
        if isinstance(value, DictConfig):
            value = OmegaConf.to_container(value, resolve=True)
        deciding[key] = value
    return deciding
