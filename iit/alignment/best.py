"""Keeping the best weights by validation."""

from typing import Any, NamedTuple

import lightning as L
from torch import Tensor

from iit.alignment.cells import Cells, of_cell


class Best(NamedTuple):
    """A cell's best epoch (counted from 0), its validation metric, and its weights then."""

    epoch: int
    value: float
    weights: dict[str, Tensor]


class BestWeights(L.Callback):
    """Keep each cell's weights of the epoch with the best validation metric (the lowest loss, else the highest), and put them back at
    the end.

    They are part of every checkpoint, so a resumed run knows the best epoch of the run that it resumes. Equal values keep
    the earlier epoch.
    """

    def __init__(self, monitor: str = "val/iia_changing"):
        self.monitor = monitor
        self.best: dict[str, Best] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the epoch just validated with the best so far. Raises ValueError when nothing logs the metric."""
        assert isinstance(pl_module, Cells)
        if trainer.sanity_checking:
            return
        for name in pl_module.running:
            value = validated(trainer, self.monitor, name)
            if name not in self.best or better(self.monitor, value, self.best[name].value):
                state = pl_module.weights_of(name).state_dict()
                weights = {key: tensor.detach().clone() for key, tensor in state.items()}
                self.best[name] = Best(trainer.current_epoch, value, weights)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best weights back."""
        assert isinstance(pl_module, Cells)
        for name, best in self.best.items():
            pl_module.weights_of(name).load_state_dict(best.weights)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {name: best._asdict() for name, best in self.best.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over from a checkpoint."""
        self.best = {name: Best(**best) for name, best in state_dict.items()}


def better(metric: str, value: float, than: float) -> bool:
    """Whether a validation metric has improved: a loss by falling, any other by rising."""
    return value < than if metric.rpartition("/")[2] == "loss" else value > than


def validated(trainer: L.Trainer, metric: str, name: str) -> float:
    """A cell's validation metric of the epoch that has just been validated. Raises ValueError when nothing logs it."""
    logged = of_cell(metric, name)
    if logged not in trainer.callback_metrics:
        raise ValueError(f"Nothing logs {logged!r}; there is {sorted(trainer.callback_metrics)}.")
    return float(trainer.callback_metrics[logged])
