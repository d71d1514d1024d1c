"""The epoch that is kept: of those that validation cannot tell from the best, the one with the least loss."""

from collections.abc import Sequence
from math import inf, isnan
from typing import Any, NamedTuple

import lightning as L
from torch import Tensor

from iit.alignment.cells import Cells, of_cell

LOSS = "val/loss"


class Epoch(NamedTuple):
    """A cell's epoch (counted from 0): its accuracy, how high the accuracy's 95% interval reaches, its loss, and its weights then."""

    epoch: int
    value: float
    high: float
    loss: float
    weights: dict[str, Tensor]


class BestWeights(L.Callback):
    """Choose each cell's epoch by the module's `monitor`, and put its weights back at the end.

    The epochs whose 95% interval contains the highest accuracy count as equally good; of these the one with the least `val/loss` is kept, and
    of equal losses the earliest. A `monitor` that is a loss decides alone.

    What may still be kept is part of every checkpoint, so a resumed run chooses as an uninterrupted one does.
    """

    def __init__(self) -> None:
        self.highest: dict[str, float] = {}
        self.epochs: dict[str, list[Epoch]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the epoch just validated with those before."""
        assert isinstance(pl_module, Cells)
        if trainer.sanity_checking:
            return
        for name in pl_module.running:
            value, high, loss = figures(trainer, pl_module, name)
            state = pl_module.weights_of(name).state_dict()
            weights = {key: tensor.detach().clone() for key, tensor in state.items()}
            self.highest[name] = max(value, self.highest.get(name, -inf))
            epochs = [*self.epochs.get(name, ()), Epoch(trainer.current_epoch, value, high, loss, weights)]
            self.epochs[name] = in_question(epochs, self.highest[name])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the chosen weights back."""
        assert isinstance(pl_module, Cells)
        for name in self.epochs:
            pl_module.weights_of(name).load_state_dict(self.kept(name).weights)

    def kept(self, name: str) -> Epoch:
        """The epoch that is kept of a cell."""
        return self.epochs[name][-1]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {name: [self.highest[name], [epoch._asdict() for epoch in epochs]] for name, epochs in self.epochs.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over from a checkpoint."""
        self.highest = {name: highest for name, (highest, _) in state_dict.items()}
        self.epochs = {name: [Epoch(**epoch) for epoch in epochs] for name, (_, epochs) in state_dict.items()}


def in_question(epochs: Sequence[Epoch], highest: float) -> list[Epoch]:
    """The epochs that are kept, or may be once a higher accuracy comes, by falling loss: the last one is kept as things are.

    One whose interval does not reach the highest accuracy is out, and so is one that another beats both in loss and in reach.
    """
    found: list[Epoch] = []
    for epoch in sorted(epochs, key=lambda epoch: epoch.loss):  # which leaves equal ones in their order
        if epoch.high >= highest and all(epoch.high > better.high for better in found):
            found.append(epoch)
    return found[::-1]


def figures(trainer: L.Trainer, module: Cells, name: str) -> tuple[float, float, float]:
    """(accuracy, upper end of its interval, loss) of a cell in the epoch just validated; where the loss decides alone, no epoch is more
    accurate than another."""
    loss = validated(trainer, LOSS, name)
    loss = inf if isnan(loss) else loss
    if module.monitor == LOSS:
        return 0.0, 0.0, loss
    validated(trainer, module.monitor, name)
    interval = module.interval(module.monitor, name)
    return interval.value, max(interval.value, interval.high), loss


def validated(trainer: L.Trainer, metric: str, name: str) -> float:
    """A cell's validation metric of the epoch that has just been validated. Raises ValueError when nothing logs it."""
    logged = of_cell(metric, name)
    if logged not in trainer.callback_metrics:
        raise ValueError(f"Nothing logs {logged!r}; there is {sorted(trainer.callback_metrics)}.")
    return float(trainer.callback_metrics[logged])
