"""What jobs have in common: network, pairs held out, training and scoring as configured, facts."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig

from iit.alignment import Alignment, Fitted, fit
from iit.alignment.labels import check_labels
from iit.causal.figure import figure
from iit.data import EncodedPairs, HeldOut, Pairs, hold_out
from iit.evaluation import Trust, train_alike, verdict
from iit.evaluation.trust import Refit
from iit.network import Network, fingerprint
from iit.report import save_figure, training_curve
from iit.result import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frozen:
    """The network of a job that leaves it as it is, and its fingerprint before the job."""

    network: Network
    fingerprint: str

    def check(self) -> None:
        """No job that studies a network changes it."""
        assert fingerprint(self.network.model) == self.fingerprint, "the frozen network has changed"


def frozen_network(cfg: DictConfig) -> Frozen:
    """Load `cfg.network`."""
    network = instantiate(cfg.network)
    return Frozen(network, fingerprint(network.model))


def pairs_held_out(cfg: DictConfig, network: Alignment | Network) -> tuple[Pairs, HeldOut]:
    """The pairs of the config without their test split, and that split, still closed.

    The pairs are sampled from the causal model; one's own need none. An alignment answers for its
    network and keeps what it ran.

    Raises ValueError for what one's own pairs do not take, and for a label among them that is none
    of the network's answers, of whichever split: no run is needed to see it.
    """
    make = instantiate(cfg.data)
    if "path" not in cfg.data:
        return hold_out(make(task=instantiate(cfg.causal), network=network))
    more = sorted(set(make.keywords) - set(signature(Pairs.load).parameters))
    if more:
        raise ValueError(
            f"data=file reads pairs as they are, and takes no data.{more[0]} (set by an "
            f"experiment?): leave it out, {' '.join(f'~data.{key}' for key in more)}."
        )
    pairs = make(network=network)
    studied = network if isinstance(network, Network) else network.studied
    if studied is not None:
        for split in dict.fromkeys(pairs.dataset["split"]):
            check_labels(studied, EncodedPairs(pairs.split(split), pairs.variables, studied), split)
    return hold_out(pairs)


def trainer_options(cfg: DictConfig) -> dict[str, Any]:
    """The options of `fit` that hold for any module: the trainer, batch sizes, epochs, monitor."""
    settings = cfg.trainer
    return {
        "trainer": instantiate(settings.trainer),
        "batch_size": settings.batch_size,
        "eval_batch_size": settings.eval_batch_size,
        "max_epochs": settings.max_epochs,
        "monitor": cfg.monitor,
    }


def training(cfg: DictConfig) -> dict[str, Any]:
    """All options of `fit` that say how `cfg.module` is trained."""
    return {
        "module": instantiate(cfg.module),
        "callbacks": list(instantiate(cfg.callbacks).values()) if cfg.callbacks else [],
        "start": cfg.start,
        **trainer_options(cfg),
    }


def fitting(
    cfg: DictConfig,
    alignment: Alignment | Mapping[str, Alignment],
    pairs: Pairs,
    folder: Path,
    **options: Any,
) -> Any:
    """`fit` as the config says, from `cfg.ckpt_path` on; which epoch is kept stands in the log.

    options: of `fit`, those that only some jobs give.
    """
    fitted = fit(
        alignment,
        pairs,
        seed=cfg.seed,
        folder=folder,
        ckpt_path=cfg.ckpt_path,
        **training(cfg),
        **options,
    )
    if isinstance(fitted, Fitted):
        kept = fitted.epoch + 1, fitted.n_epochs, fitted.monitor, fitted.value
        log.info("Kept epoch %d of %d: %s %.4f", *kept)
    return fitted


def alike(cfg: DictConfig, folder: Path) -> Refit:
    """Trains controls as the alignment is trained, but for checkpoints and loggers."""

    def refit(alignments: Mapping[str, Alignment], pairs: Pairs, seed: int) -> None:
        options = training(cfg)
        options["callbacks"] = [
            callback for callback in options["callbacks"] if not isinstance(callback, Checkpoint)
        ]
        log.info("Training for comparison: %s", ", ".join(alignments))
        train_alike(alignments, pairs, seed, folder=folder, **options)

    return refit


def scoring(cfg: DictConfig) -> dict[str, Any]:
    """The options of `evaluate` and `sweep` that every job gives."""
    return {"experiment": cfg.name, "batch_size": cfg.trainer.eval_batch_size}


def judged(rows: list[Row], trust: Trust) -> list[dict[str, Any]]:
    """The verdicts as facts of the run; a line of each stands in the log."""
    verdicts = verdict(rows, trust.thresholds)
    for outcome in verdicts:
        log.info("%s", outcome.line())
    return [outcome.to_dict() for outcome in verdicts]


def facts_of(pairs: Pairs, network: Network) -> dict[str, Any]:
    """What a run reports of its pairs and of its network."""
    return {
        "data": {
            **pairs.facts,
            "fingerprint": pairs.fingerprint,
            "causal_model": pairs.task is not None,
        },
        "network": network_facts(network),
    }


def network_facts(network: Network) -> dict[str, Any]:
    """What a run reports of its network."""
    return {
        "name": network.name,
        "revision": network.revision,
        "fingerprint": fingerprint(network.model),
    }


def save_training_curve(folder: Path) -> None:
    """Draw what the CSV logger has kept, where there is one."""
    curves = folder / "csv" / "metrics.csv"
    if curves.is_file():
        save_figure(training_curve(curves), folder / "training_curve")


def save_causal_model(folder: Path, pairs: Pairs, places: Mapping[str, str] | None = None) -> None:
    """Draw the causal model; pairs from a file have none.

    places: {variable: where it is aligned}.
    """
    if pairs.task is not None:
        save_figure(figure(pairs.task.model, places), folder / "causal_model")
