"""What jobs have in common: network, pairs held out, options of training and scoring, facts."""

import json
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
from iit.causal.figure import figure, graph
from iit.data import EncodedPairs, HeldOut, Pairs, hold_out
from iit.evaluation import Trust, train_alike, verdict
from iit.evaluation.outcomes import asking
from iit.evaluation.trust import Refit
from iit.job.folders import last_checkpoint
from iit.network import Network, fingerprint
from iit.report import save_figure, training_curve
from iit.result import Row, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frozen:
    """A network that a job studies, and must not change.

    Arguments:
        network: the network.
        fingerprint: that of its weights before the job.
    """

    network: Network
    fingerprint: str

    def check(self) -> None:
        """Raise RuntimeError where the network is not as it was before the job."""
        if fingerprint(self.network.model) != self.fingerprint:
            raise RuntimeError(
                f"The job has changed the weights of {self.network.name}, which it should only "
                "study: its figures are of no one network. Please report this."
            )


def frozen_network(cfg: DictConfig) -> Frozen:
    """Load `cfg.network`, and take its fingerprint."""
    network = instantiate(cfg.network)
    return Frozen(network, fingerprint(network.model))


def pairs_held_out(cfg: DictConfig, network: Alignment | Network) -> tuple[Pairs, HeldOut]:
    """The pairs of the config without their test split, and what opens that split.

    It takes and raises what `pairs_of` does.
    """
    return hold_out(pairs_of(cfg, network))


def pairs_of(cfg: DictConfig, network: Any) -> Pairs:
    """The pairs of the config, all splits.

    The pairs are sampled from the causal model. One's own pairs come from a file (`data.path`) and
    need no causal model.

    Arguments:
        network: answers the prompts. An alignment stands for its network, and its store holds what
            was run.

    Raises:
        ValueError: for options that one's own pairs do not take; and for a label among these pairs,
            in any split, that is none of the network's answers.
    """
    make, score = instantiate(cfg.data), instantiate(cfg.score)
    if "path" not in cfg.data:
        task = instantiate(cfg.causal)
        return make(task=task, network=asking(network, score, task.alternatives))
    # `make` is a partial of `Pairs.load`. An experiment may have left options of sampling in it.
    surplus = sorted(set(make.keywords) - set(signature(Pairs.load).parameters))
    if surplus:
        raise ValueError(
            f"data=file reads pairs as they are, and takes no data.{surplus[0]} (set by an "
            f"experiment?): leave it out, {' '.join(f'~data.{key}' for key in surplus)}."
        )
    pairs = make(network=asking(network, score))
    studied = network if isinstance(network, Network) else network.studied
    if studied is not None:
        # Labels are checked in every split, also in test: that needs no run.
        for split in dict.fromkeys(pairs.dataset["split"]):
            check_labels(studied, EncodedPairs(pairs.split(split), pairs.variables, studied), split)
    return pairs


def trainer_options(cfg: DictConfig) -> dict[str, Any]:
    """The options of `fit` that hold for any module: the trainer, batch sizes, epochs, monitor."""
    settings = cfg.trainer
    # `trainer` is a partial: `fit` calls it with what it decides itself.
    return {
        "trainer": instantiate(settings.trainer),
        "batch_size": settings.batch_size,
        "eval_batch_size": settings.eval_batch_size,
        "max_epochs": settings.max_epochs,
        "monitor": cfg.monitor,
    }


def fit_options(cfg: DictConfig) -> dict[str, Any]:
    """All options of `fit` that say how `cfg.module` is trained."""
    # Callbacks have names in the config, so that one of them can be changed or left out.
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
    """Call `fit` as the config says; the log says which epoch was kept.

    With `cfg.ckpt_path` the training goes on from that checkpoint. Without, it goes on where an
    interruption left it, if a checkpoint says which training it is of.

    Arguments:
        alignment: one, or {name: alignment} for several that are trained side by side.
        folder: the run's folder.
        options: of `fit`, those that only some jobs give.

    Returns:
        A `Fitted`, or {name: Fitted} for several alignments.
    """
    # Only with its config, a training is identified in its checkpoints.
    checkpoint = last_checkpoint(folder) if "config" in options else None
    fitted = fit(
        alignment,
        pairs,
        seed=cfg.seed,
        folder=folder,
        ckpt_path=checkpoint or cfg.ckpt_path,
        **fit_options(cfg),
        **options,
    )
    if isinstance(fitted, Fitted):
        # Epochs are counted from 0 in files, and from 1 in the log.
        figures = fitted.epoch + 1, fitted.n_epochs, fitted.monitor, fitted.value
        log.info("Kept epoch %d of %d: %s %.4f", *figures)
    return fitted


def refit_as_configured(cfg: DictConfig, folder: Path) -> Refit:
    """A function that trains controls as the config trains the alignment.

    It writes no checkpoints and no curves.

    Arguments:
        folder: the run's folder.
    """

    def refit(alignments: Mapping[str, Alignment], pairs: Pairs, seed: int) -> None:
        options = fit_options(cfg)
        # A control's checkpoint would overwrite the alignment's.
        options["callbacks"] = [
            callback for callback in options["callbacks"] if not isinstance(callback, Checkpoint)
        ]
        log.info("Training for comparison: %s", ", ".join(alignments))
        train_alike(alignments, pairs, seed, folder=folder, **options)

    return refit


def evaluate_options(cfg: DictConfig) -> dict[str, Any]:
    """The options of `evaluate` and `sweep` that every job gives."""
    return {"experiment": cfg.name, "batch_size": cfg.trainer.eval_batch_size}


def verdict_facts(rows: list[Row], trust: Trust, metric: str = "iia") -> list[dict[str, Any]]:
    """The verdicts as facts of the run; the log has a line for each."""
    verdicts = verdict(rows, trust.thresholds, metric)
    for outcome in verdicts:
        # The table at the end has the reasons.
        log.info("%s criteria pass", outcome.line().partition(" criteria")[0])
    return [outcome.to_dict() for outcome in verdicts]


def facts_of(pairs: Pairs, network: Network) -> dict[str, Any]:
    """What a run reports about its pairs and its network."""
    return {
        "data": {
            **pairs.facts,
            "fingerprint": pairs.fingerprint,
            "causal_model": pairs.task is not None,
        },
        "meanings": pairs.task.meanings if pairs.task else {},
        "network": network_facts(network),
    }


def network_facts(network: Network) -> dict[str, Any]:
    """What a run reports about its network."""
    return {
        "name": network.name,
        "revision": network.revision,
        "fingerprint": fingerprint(network.model),
    }


def save_training_curve(folder: Path) -> None:
    """Draw the curves that the CSV logger has written; without that logger there is no figure."""
    curves = folder / "csv" / "metrics.csv"
    if curves.is_file():
        save_figure(training_curve(curves), folder / "training_curve")


def save_causal_model(folder: Path, pairs: Pairs, places: Mapping[str, str]) -> None:
    """Draw the causal model of the pairs, and write its graph; pairs from a file have none.

    Arguments:
        places: {variable: where it is aligned, in words}.
    """
    if pairs.task is not None:
        model = pairs.task.model
        save_figure(figure(model, places), folder / "causal_model")
        drawn = graph(model)
        nodes = [{"name": name, "place": places.get(name), **drawn.nodes[name]} for name in drawn]
        content = {"name": drawn.name, "nodes": nodes, "edges": list(drawn.edges)}
        write_text(folder / "causal_model.json", json.dumps(content))
