"""Early stopping for each alignment by itself."""

from math import inf
from typing import Any

import lightning as L

from iit.alignment.best import LOSS, validated


class EarlyStopping(L.Callback):
    """Stop training an alignment when nothing has improved for some epochs.

    The accuracy that the module's `monitor` names may improve, or `val/loss`. A `monitor` that is
    the loss decides alone. The last one that stops ends the training; Lightning's own callback
    stops all of them at once.

    Arguments:
        patience: how many epochs an alignment may go without an improvement.
    """

    def __init__(self, patience: int = 3):
        self.patience = patience
        self._best: dict[str, dict[str, float]] = {}
        self._waited: dict[str, int] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Count the epochs without an improvement, and stop the members that waited too long."""
        for name in pl_module.running:
            best = self._best.setdefault(name, {})
            self._waited[name] = self._waited.get(name, 0) + 1
            # One metric where the monitor is the loss itself.
            for metric in {pl_module.monitor, LOSS}:
                value = validated(trainer, metric, name)
                sign = -1 if metric == LOSS else 1
                if sign * value > sign * best.get(metric, -sign * inf):
                    best[metric] = value
                    self._waited[name] = 0
            if self._waited[name] >= self.patience:
                # Epochs count from 0, and this one has been trained.
                pl_module.stopped[name] = trainer.current_epoch + 1
        if not pl_module.running:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over from a checkpoint."""
        self._best, self._waited = dict(state_dict["best"]), dict(state_dict["waited"])
