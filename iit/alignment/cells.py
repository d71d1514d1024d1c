"""What the Lightning modules have in common: named cells, each with weights and a validation metric of its own."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from math import inf, isfinite
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from iit.alignment import identity
from iit.alignment.schedule import Number, Schedule, ends
from iit.intervention import SoftGate

Optimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]
Scheduler = Callable[..., torch.optim.lr_scheduler.LRScheduler]


class Cells(L.LightningModule):
    """A module that trains named cells side by side; a single one has the empty name.

    trains_network: whether the network itself is trained. monitor: the validation metric that chooses a cell's epoch.
    stopped: cell → how many epochs it was trained, of cells that are no longer.
    optimizer: makes the optimizer from the parameters. scheduler: makes a learning rate schedule from it and `total_steps`.
    numbers: those that may be schedules, by name; what a schedule says is logged as `schedule/NAME`.
    config: what identifies the run; a checkpoint of another one is refused.
    """

    trains_network = False
    monitor = "val/iia_changing"

    def __init__(
        self,
        names: tuple[str, ...],
        optimizer: Optimizer,
        scheduler: Scheduler | None,
        numbers: Mapping[str, Number],
        config: Mapping[str, Any] | None,
    ):
        super().__init__()
        self.names = names
        self.stopped: dict[str, int] = {}
        self._optimizer, self._scheduler = optimizer, scheduler
        self._numbers, self._config = dict(numbers), dict(config or {})

    @abstractmethod
    def weights_of(self, name: str) -> nn.Module:
        """What is trained, checked on validation, and put back of one cell."""

    @abstractmethod
    def trainable(self) -> Iterable[Any]:
        """Parameters, or groups of them, for the optimizer."""

    def check(self, batch: Mapping[str, Any]) -> None:
        """Before anything is trained: raises ValueError for a batch of pairs that lacks what the loss reads."""

    def now(self, number: str) -> float:
        """A declared number at this optimizer step."""
        found = self._numbers[number]
        return found.at(self.global_step, self.trainer.estimated_stepping_batches) if isinstance(found, Schedule) else found

    def on_fit_start(self) -> None:
        """Raises ValueError for a schedule over a training that has no end."""
        for name, found in self._numbers.items():
            if isinstance(found, Schedule) and found.steps is None and not isfinite(self.trainer.estimated_stepping_batches):
                key = f"module.{name if name in ('temperature', 'penalty') else f'weights.{name}'}.steps"
                raise ValueError(
                    f"The schedule of {name} goes by the length of the training, which has none: set its steps ({key}), or max_epochs."
                )

    def anneal(self, interventions: Iterable[Any]) -> None:
        """Set the temperature of learned gates to what is declared for this step."""
        for intervention in filter(is_gated, interventions):
            intervention.anneal(self.now("temperature"))

    def penalty(self, interventions: Iterable[Any], name: str = "") -> Tensor | float:
        """The declared weight times the share of coordinates that learned gates let through; logged, unweighted, as `train/penalty`."""
        gated = list(filter(is_gated, interventions))
        if not gated or not self.now("penalty"):
            return 0.0
        found = torch.stack([intervention.penalty() for intervention in gated]).sum()
        self.log(of_cell("train/penalty", name), found)
        return self.now("penalty") * found

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Log what the schedules say."""
        told = {f"schedule/{name}": self.now(name) for name, found in self._numbers.items() if isinstance(found, Schedule)}
        if told:
            self.log_dict(told)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule."""
        optimizer = self._optimizer(self.trainable())
        if self._scheduler is None:
            return optimizer
        schedule = self._scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

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


def is_gated(intervention: Any) -> bool:
    """Whether it learns which coordinates to let through."""
    return isinstance(intervention.gate, SoftGate)


def of_cell(metric: str, name: str) -> str:
    """What a cell's metric is logged as."""
    return f"{metric}/{name}" if name else metric


def checked_weights(parts: tuple[str, ...], weights: Mapping[str, Number]) -> dict[str, Number]:
    """The weights of a loss's parts, 0 where none is given. Raises ValueError for unknown parts, negative weights, and where all are 0."""
    unknown = sorted(set(weights) - set(parts))
    if unknown:
        raise ValueError(f"weights: {unknown} are no parts of the loss; they are {list(parts)}.")
    told = {name: ends(w) for name, w in weights.items()}
    if not all(0 <= end < inf for both in told.values() for end in both) or not max(map(max, told.values()), default=0):
        raise ValueError(f"weights: none may be negative, and one part has to count; got {dict(weights)}.")
    return dict.fromkeys(parts, 0.0) | dict(weights)


def of_gates(temperature: Number, penalty: Number, gated: bool) -> dict[str, Number]:
    """The numbers of learned gates, those of no effect where there is none. Raises ValueError for a temperature that is not above 0, and a
    negative penalty."""
    if not all(0 < end < inf for end in ends(temperature)):
        raise ValueError(f"temperature={temperature}: it multiplies the gates' own, and stays above 0.")
    if not all(0 <= end < inf for end in ends(penalty)):
        raise ValueError(f"penalty={penalty}: it weighs what gates let through, and cannot be negative; 0 is none.")
    return {"temperature": temperature, "penalty": penalty} if gated else {"temperature": 1.0, "penalty": 0.0}
