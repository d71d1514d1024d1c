"""What the Lightning modules have in common: named cells, each with weights and a validation metric of its own."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import nn

from iit.alignment import identity


class Cells(L.LightningModule):
    """A module that trains named cells side by side; a single one has the empty name.

    trains_network: whether the network itself is trained. monitor: the validation metric that chooses a cell's epoch.
    stopped: cell → how many epochs it was trained, of cells that are no longer.
    config: what identifies the run; a checkpoint of another one is refused.
    """

    trains_network = False
    monitor = "val/iia_changing"

    def __init__(self, names: tuple[str, ...], config: Mapping[str, Any] | None):
        super().__init__()
        self.names = names
        self.stopped: dict[str, int] = {}
        self._config = dict(config or {})

    @abstractmethod
    def weights_of(self, name: str) -> nn.Module:
        """What is trained, checked on validation, and put back of one cell."""

    @property
    def running(self) -> tuple[str, ...]:
        """The cells that are still trained."""
        return tuple(name for name in self.names if name not in self.stopped)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each cell's gradient by itself."""
        if not gradient_clip_val:
            return
        clip = torch.nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else torch.nn.utils.clip_grad_norm_
        for name in self.running:
            clip(self.weights_of(name).parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what identifies the run, and which cells have stopped."""
        identity.mark(checkpoint, self._config)
        checkpoint["stopped"] = self.stopped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from another run. Raises ValueError naming what differs."""
        identity.check(checkpoint, self._config)
        self.stopped = dict(checkpoint["stopped"])


def of_cell(metric: str, name: str) -> str:
    """What a cell's metric is logged as."""
    return f"{metric}/{name}" if name else metric
