"""What a config declares, checked before weights load."""

from collections.abc import Callable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from iit.alignment import several
from iit.alignment.cells import checked_monitor
from iit.alignment.initial import STARTS
from iit.alignment.overlap import check_declared

_WHOLE = "rank trainer.max_epochs trainer.batch_size trainer.eval_batch_size data.n_train data.n_val data.n_test".split()


def training(cfg: DictConfig) -> dict[str, Any]:
    """What a config says of any training, as `fit` takes it."""
    settings = cfg.trainer
    return {
        "module": instantiate(cfg.module),
        "trainer": instantiate(settings.trainer),
        "callbacks": list(instantiate(cfg.callbacks).values()) if cfg.callbacks else [],
        "batch_size": settings.batch_size,
        "eval_batch_size": settings.eval_batch_size,
        "max_epochs": settings.max_epochs,
        "start": cfg.start,
        "monitor": cfg.monitor,
    }


def check_config(cfg: DictConfig, *, trains_network: bool) -> None:
    """Raises ValueError (Hydra's InstantiationException, from within a `_target_`) for what cannot be, whatever the network: sites,
    objective, schedules, trust, a start, a monitor, a number of epochs, units that overlap, and a module that trains what the job does not.

    trains_network: whether the job trains the network, and not an alignment on a frozen one.
    """
    for key in _WHOLE:
        value = OmegaConf.select(cfg, key)
        if value is not None and type(value) is not int:
            raise ValueError(f"{key}={value} has to be a whole number.")
    instantiate(cfg.site)
    instantiate(cfg.trust)
    module: Any = instantiate(cfg.module)
    kind = getattr(module, "func", module)
    if getattr(kind, "trains_network", trains_network) != trains_network:
        job, other = ("train_network", "iit") if trains_network else (cfg.job._target_.rpartition(".")[2], "das")
        trains = "the network" if trains_network else "interventions on a frozen network"
        raise ValueError(
            f"job={job} trains {trains}, module._target_={cfg.module._target_} does not: choose module={other}, or "
            f"job={'align' if trains_network else 'train_network'}."
        )
    if cfg.monitor is not None:
        checked_monitor(cfg.monitor, getattr(kind, "monitors", (cfg.monitor,)))
    if cfg.start not in STARTS:
        raise ValueError(f"start={cfg.start!r} is none of {list(STARTS)}.")
    epochs = cfg.trainer.max_epochs
    if epochs < 1 and epochs != -1:
        raise ValueError(f"trainer.max_epochs={epochs}: training needs an epoch at least (-1: no end).")
    declared: Callable[..., Any] = instantiate(cfg.alignment)
    if getattr(declared, "func", None) is several:
        told: Any = declared
        check_declared(told.keywords["edits"], told.keywords.get("inert"))
