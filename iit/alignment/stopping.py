"""Early stopping, of each cell by itself."""

from typing import Any

import lightning as L

from iit.alignment.best import better, validated
from iit.alignment.cells import Cells


class EarlyStopping(L.Callback):
    """Stop training a cell whose validation metric has not improved for `patience` epochs (a loss by falling, any other by rising); the last
    one ends the training.

    Lightning's own stops all cells at once. monitor: the metric, by default the module's own.
    """

    def __init__(self, patience: int = 3, monitor: str | None = None):
        self.patience, self.monitor = patience, monitor
        self._best: dict[str, float] = {}
        self._waited: dict[str, int] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the epochs that were no better."""
        assert isinstance(pl_module, Cells)
        if trainer.sanity_checking:
            return
        for name in pl_module.running:
            metric = self.monitor or pl_module.monitor
            value = validated(trainer, metric, name)
            improved = name not in self._best or better(metric, value, self._best[name])
            self._waited[name] = 0 if improved else self._waited[name] + 1
            self._best[name] = value if improved else self._best[name]
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
