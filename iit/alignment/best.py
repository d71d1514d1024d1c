"""The epoch that is chosen: the one with the least loss among those as accurate as the best."""

from collections.abc import Sequence
from math import inf, isnan
from typing import Any, NamedTuple

import lightning as L
from torch import Tensor

from iit.alignment.side_by_side import of_member

LOSS = "val/loss"


class Epoch(NamedTuple):
    """One epoch of a member (see `side_by_side`).

    Arguments:
        epoch: its number, from 0.
        value: the member's accuracy in it.
        high: the upper end of the accuracy's 95% interval.
        loss: the validation loss.
        weights: the member's weights, {name: tensor}.
    """

    epoch: int
    value: float
    high: float
    loss: float
    weights: dict[str, Tensor]


class BestWeights(L.Callback):
    """Choose each alignment's epoch by the module's `monitor`, and put its weights back at the end.

    The epochs whose 95% interval contains the highest accuracy count as equally good. The one with
    the least `val/loss` among them is chosen, and among equal losses the earliest. A `monitor` that
    is the loss decides alone.

    A checkpoint holds every epoch that may still be chosen. A training that is continued from it
    therefore chooses as an uninterrupted one does.
    """

    def __init__(self) -> None:
        self.highest: dict[str, float] = {}
        self.epochs: dict[str, list[Epoch]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Compare the epoch just validated with those before."""
        for name in pl_module.stopped:
            # No later epoch can raise the highest accuracy: the choice is made.
            self.epochs[name] = self.epochs[name][:1]
        for name in pl_module.running:
            # A NaN would break the order of the epochs.
            loss = validated(trainer, LOSS, name)
            if isnan(loss):
                loss = inf
            # Where the loss decides alone, no epoch is more accurate than another.
            value = high = 0.0
            if pl_module.monitor != LOSS:
                validated(trainer, pl_module.monitor, name)  # raises where it is not logged
                interval = pl_module.interval(pl_module.monitor, name)
                # Plain floats: checkpoints hold no others.
                value, high = interval.value, float(max(interval.value, interval.high))
            # A copy: the optimizer goes on to change the weights in place.
            state = pl_module.module_of(name).state_dict()
            weights = {key: tensor.detach().clone() for key, tensor in state.items()}
            epoch = Epoch(trainer.current_epoch, value, high, loss, weights)
            self.highest[name] = max(value, self.highest.get(name, -inf))
            epochs = [*self.epochs.get(name, ()), epoch]
            self.epochs[name] = in_question(epochs, self.highest[name])

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Put the chosen weights back."""
        for name in self.epochs:
            pl_module.module_of(name).load_state_dict(self.kept(name).weights)

    def kept(self, name: str) -> Epoch:
        """The epoch that is chosen for a member."""
        return self.epochs[name][0]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        epochs = {}
        for name, epochs_of_member in self.epochs.items():
            epochs[name] = list(map(Epoch._asdict, epochs_of_member))
        return {"highest": self.highest, "epochs": epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over from a checkpoint."""
        self.highest = dict(state_dict["highest"])
        for name, epochs in state_dict["epochs"].items():
            self.epochs[name] = [Epoch(**epoch) for epoch in epochs]


def in_question(epochs: Sequence[Epoch], highest: float) -> list[Epoch]:
    """The epochs that may still be chosen, by rising loss. For now the first one is the choice.

    An epoch is out where its interval does not reach the highest accuracy. It is also out where the
    interval of an epoch with a lower loss reaches as high. Whatever accuracy comes later, that
    other epoch is chosen before it.

    All others stay: the interval of each reaches higher than those of all epochs with a lower loss.
    A later epoch may raise the highest accuracy above these intervals, but not above the one that
    stays. Then the epoch that stays is chosen.
    """
    candidates: list[Epoch] = []
    for epoch in sorted(epochs, key=lambda epoch: epoch.loss):  # equal losses stay in their order
        reaches_further = not candidates or epoch.high > candidates[-1].high
        if epoch.high >= highest and reaches_further:
            candidates.append(epoch)
    return candidates


def validated(trainer: L.Trainer, metric: str, name: str) -> float:
    """A member's validation metric in the epoch just validated.

    Raises ValueError where it is not logged.
    """
    logged = of_member(metric, name)
    if logged not in trainer.callback_metrics:
        raise ValueError(f"Nothing logs {logged!r}; there is {sorted(trainer.callback_metrics)}.")
    return float(trainer.callback_metrics[logged])
