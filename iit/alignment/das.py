"""Distributed alignment search: the network is frozen, the interventions are trained."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from iit.alignment import identity
from iit.alignment.alignment import Alignment
from iit.alignment.objective import Objective, cross_entropy
from iit.result import correct

Optimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class DAS(L.LightningModule):
    """Train an alignment's interventions so that the edited network gives the label (arXiv 2303.02536).

    Minimises objective(edited(base, source), label) over the interventions' parameters. Logs `train/loss` each step and, each
    epoch, `val/loss`, `val/iia` (all validation pairs) and `val/iia_changing`.

    optimizer: makes the optimizer from the parameters; Adam with learning rate 5e-3 by default.
    config: what identifies the run; a checkpoint of another one is refused.

    Raises ValueError when there is nothing to train.
    """

    trains_network = False
    monitor = "val/iia_changing"

    def __init__(
        self,
        alignment: Alignment,
        *,
        objective: Objective = cross_entropy,
        optimizer: Optimizer | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if not any(p.requires_grad for p in alignment.parameters()):
            names = [type(edit.intervention).__name__ for edit in alignment.edits.values()]
            raise ValueError(f"There is nothing to train: {', '.join(names)} has no parameters. Evaluate it as it is.")
        self.alignment = alignment
        self._objective = objective
        self._optimizer = optimizer or _adam
        self._config = dict(config or {})
        self._val_loss, self._iia, self._iia_changing = MeanMetric(), MeanMetric(), MeanMetric()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of one batch of pairs."""
        logits = self._logits(batch)
        loss = self._objective(logits, batch["base"]["answer"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(logits))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Count the pairs on which the edited network gives the label."""
        logits, answer = self._logits(batch), batch["base"]["answer"]
        right = correct(logits, answer).float()
        self._val_loss.update(self._objective(logits, answer), weight=len(logits))
        self._iia.update(right)
        if bool(batch["changing"].any()):
            self._iia_changing.update(right[batch["changing"]])
        self.log("val/loss", self._val_loss)
        self.log("val/iia", self._iia, prog_bar=True)
        self.log("val/iia_changing", self._iia_changing, prog_bar=True)

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        return self.alignment.answer_logits(batch["base"], batch["sources"], batch["active"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over the interventions' parameters."""
        return self._optimizer(p for p in self.alignment.parameters() if p.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what identifies the run."""
        identity.mark(checkpoint, self._config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from another run. Raises ValueError naming what differs."""
        identity.check(checkpoint, self._config)


def _adam(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)
