"""Keeping the best weights by validation."""

from typing import Any

import lightning as L
from torch import Tensor


class BestWeights(L.Callback):
    """Keep the interventions' weights of the epoch with the highest validation metric, and put them back at the end.

    They are part of every checkpoint, so a resumed run knows the best epoch of the run that it resumes. Equal values keep
    the earlier epoch.
    """

    def __init__(self, monitor: str = "val/iia_changing"):
        self.monitor = monitor
        self.value: float | None = None
        self.epoch: int | None = None
        self._weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the epoch just validated with the best so far."""
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(f"Nothing logs {self.monitor!r}; there is {sorted(trainer.callback_metrics)}.")
        value = float(trainer.callback_metrics[self.monitor])
        if self.value is None or value > self.value:
            self.value, self.epoch = value, trainer.current_epoch
            self._weights = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best weights back."""
        if self._weights:
            pl_module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"value": self.value, "epoch": self.epoch, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over from a checkpoint."""
        self.value, self.epoch, self._weights = state_dict["value"], state_dict["epoch"], dict(state_dict["weights"])
