"""Early stopping, of each cell by itself."""

from math import inf
from typing import Any

import lightning as L

from iit.alignment.best import LOSS, validated
from iit.alignment.cells import Cells


class EarlyStopping(L.Callback):
    """Stop training a cell when neither the accuracy that the module's `monitor` names nor `val/loss` has improved for `patience` epochs; the
    last one ends the training. A `monitor` that is a loss decides alone.

    Lightning's own stops all cells at once.
    """

    def __init__(self, patience: int = 3):
        self.patience = patience
        self._best: dict[str, dict[str, float]] = {}
        self._waited: dict[str, int] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the epochs that were no better."""
        assert isinstance(pl_module, Cells)
        if trainer.sanity_checking:
            return
        for name in pl_module.running:
            best = self._best.setdefault(name, {})
            improved = False
            for metric in {pl_module.monitor, LOSS}:
                value = validated(trainer, metric, name)
                better = value < best.get(metric, inf) if metric == LOSS else value > best.get(metric, -inf)
                if better:
                    best[metric] = value
                    improved = True
            self._waited[name] = 0 if improved else self._waited.get(name, 0) + 1
            if self._waited[name] >= self.patience:
                pl_module.stopped[name] = trainer.current_epoch + 1
        if not pl_module.running:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over from a checkpoint."""
        self._best, self._waited = dict(state_dict["best"]), dict(state_dict["waited"])
