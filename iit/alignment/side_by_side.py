"""What the Lightning modules share: named members, each with its own weights and metrics.

A member is an alignment (for `IIT` also its network) that is trained beside others. `fit` gives a
single alignment the empty name.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from math import inf, isfinite
from statistics import fmean
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from iit.alignment import identity
from iit.alignment.alignment import Alignment
from iit.alignment.objective import CrossEntropy, Objective, PairsBatch
from iit.alignment.references import reference_iia
from iit.alignment.schedule import Number, Schedule, ends
from iit.data import PairsDataModule
from iit.intervention import Frame, SoftGate
from iit.result.interval import Interval, clustered_interval

Optimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]
Scheduler = Callable[..., torch.optim.lr_scheduler.LRScheduler]


class SideBySide(L.LightningModule):
    """A module that trains named members side by side; a single one has the empty name.

    Attributes:
        trains_network: whether the network itself is trained.
        monitors: the validation metrics that may choose a member's epoch.
        monitor: the one that does.
        config: identifies the training; a checkpoint of another one is refused.
        stopped: {member: number of epochs} for members that are no longer trained.
        compared: {name: alignment}, whose references are logged (see `iit.alignment.references`).

    Arguments:
        members: {name: alignment}.
        objective: the loss of a pair; cross-entropy by default.
        optimizer: makes the optimizer from the parameters.
        scheduler: makes a learning rate schedule from the optimizer and `total_steps`.
        weights: {part of the loss: number or schedule}. A schedule's value is logged as
            `schedule/NAME`.
        temperature, penalty: factors of the gates' own temperature, and of the share of coordinates
            that they let through (see `DAS`). Without a learned gate they have no effect.
        trained: the variables whose interchanges are trained (see `IIT`).

    Raises ValueError for a temperature that is not above 0, and for a negative penalty.
    """

    trains_network = False
    monitors: tuple[str, ...] = ()
    monitor = "val/iia_changing"

    def __init__(
        self,
        members: Mapping[str, Alignment],
        objective: Objective | None,
        optimizer: Optimizer,
        scheduler: Scheduler | None,
        weights: Mapping[str, Number],
        temperature: Number,
        penalty: Number,
        trained: Sequence[str] | None = None,
    ):
        super().__init__()
        if not all(0 < end < inf for end in ends(temperature)):
            raise ValueError(
                f"temperature={temperature}: it multiplies the gates' own, and stays above 0."
            )
        if not all(0 <= end < inf for end in ends(penalty)):
            raise ValueError(
                f"penalty={penalty}: it weighs what gates let through, and cannot be negative; "
                "0 is none."
            )
        # Plain dicts do not register what they hold.
        self.members = dict(members)
        self.compared = dict(members)
        self.objective = objective or CrossEntropy()
        self.trained = trained
        self.config: Mapping[str, Any] = {}
        self.stopped: dict[str, int] = {}
        self._optimizer, self._scheduler = optimizer, scheduler
        self._numbers = dict(weights)
        if self.gated():
            self._numbers |= {"temperature": temperature, "penalty": penalty}
        self._schedules = {k: v for k, v in self._numbers.items() if isinstance(v, Schedule)}
        # {(metric, member): [(rows, values)]} of the epoch that is validated.
        self._counted: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
        self._references: dict[str, float] = {}

    @abstractmethod
    def module_of(self, name: str) -> nn.Module:
        """The module of a member that is trained, validated, and gets its best weights back."""

    @abstractmethod
    def trainable(self) -> Iterable[Any]:
        """The parameters, or groups of them, for the optimizer."""

    def check(self, batch: PairsBatch) -> None:
        """Check a batch before the training.

        Raises ValueError for pairs that lack what the objective reads.
        """
        self.objective.check(batch)

    def gated(self, name: str | None = None) -> list[Any]:
        """The interventions that learn which coordinates to let through: of a member, or of all."""
        members = self.members.values() if name is None else [self.members[name]]
        gated = []
        for member in members:
            for intervention in member.interventions:
                if isinstance(intervention.gate, SoftGate):
                    gated.append(intervention)
        return gated

    def now(self, number: str) -> float:
        """The value of one of `numbers` at this optimizer step."""
        value = self._numbers[number]
        if isinstance(value, Schedule):
            return value.at(self.global_step, self.trainer.estimated_stepping_batches)
        return value

    def last(self, number: str) -> float:
        """The value of one of `numbers` at the end of its schedule.

        Validation uses it, so that the losses of all epochs can be compared.
        """
        return ends(self._numbers[number])[1]

    @property
    def data(self) -> PairsDataModule:
        """The data module of this fit."""
        trainer: Any = self.trainer
        return trainer.datamodule

    def on_validation_epoch_start(self) -> None:
        """Forget the figures of the epoch before."""
        self._counted = {}

    def count(self, metric: str, name: str, rows: Tensor, values: Tensor) -> None:
        """Note a member's figure for some validation pairs.

        Arguments:
            rows: LongTensor[n], the pairs' rows in the validation split.
            values: Tensor[n], the figure of each.
        """
        if len(rows):
            counted = self._counted.setdefault((metric, name), [])
            counted.append((rows.cpu(), values.detach().float().cpu()))

    def interval(self, monitor: str, name: str, resamples: int = 500) -> Interval:
        """A member's accuracy in the epoch just validated, with its interval over base prompts."""
        metric = monitor.removeprefix("val/")
        rows, values = map(torch.cat, zip(*self._counted[metric, name], strict=True))
        bases = np.array(self.data.validation.bases)[rows.numpy()]
        # The disentangle score is the mean of two means, over changing and over other pairs.
        groups = self.data.validation.changing[rows] if metric == "disentangle" else None
        return clustered_interval(values, bases, groups=groups, resamples=resamples)

    def on_validation_epoch_end(self) -> None:
        """Log the mean of each figure that was counted, and the references.

        With several members, the metrics without a member's name are means over the members.
        """
        over_members: dict[str, list[float]] = {}
        for (metric, name), counted in self._counted.items():
            # A loss is a mean over pairs. The disentangle score is a mean of two means (see
            # `interval`).
            if metric == "loss":
                _, losses = map(torch.cat, zip(*counted, strict=True))
                mean = float(losses.mean())
            else:
                # The resamples would only give the interval, which nobody reads here.
                mean = self.interval(metric, name, resamples=1).value
            shown = not name and metric != "loss"
            self.log(of_member(f"val/{metric}", name), mean, prog_bar=shown, sync_dist=True)
            over_members.setdefault(f"val/{metric}", []).append(mean)
        if len(self.members) > 1:
            means = {k: fmean(means) for k, means in over_members.items()}
            self.log_dict(means, prog_bar=True, sync_dist=True)
        # Nothing about a frozen network changes from epoch to epoch.
        if self.trainer.loggers and (self.trains_network or not self._references):
            self._references = reference_iia(
                self.compared, self.data.validation, self.data.eval_batch_size, self.trained
            )
        self.log_dict(self._references, sync_dist=True)

    def on_fit_start(self) -> None:
        """Raises ValueError for a schedule that takes as long as a training without end."""
        for name, schedule in self._schedules.items():
            if schedule.steps is None and not isfinite(self.trainer.estimated_stepping_batches):
                path = name if name in ("temperature", "penalty") else f"weights.{name}"
                raise ValueError(
                    f"The schedule of {name} goes by the length of the training, which has none: "
                    f"set its steps (module.{path}.steps), or max_epochs."
                )

    def anneal(self) -> None:
        """Set the temperature of learned gates to that of this step."""
        for intervention in self.gated():
            intervention.anneal(self.now("temperature"))

    def penalty_term(self, name: str) -> Tensor | float:
        """The term that the penalty adds to a member's loss: weight · share.

        The share is that of the coordinates let through, summed over the learned gates. It is
        logged as `train/penalty`, without the weight.
        """
        gated = self.gated(name)
        if not gated or not self.now("penalty"):
            return 0.0
        # The edits may lie on several devices.
        penalties = [intervention.penalty().to(self.device) for intervention in gated]
        share = torch.stack(penalties).sum()
        self.log(of_member("train/penalty", name), share)
        return self.now("penalty") * share

    def on_train_start(self) -> None:
        """Take what the optimizers remember to the weights: Lightning puts it on one device."""
        for optimizer in self.trainer.optimizers:
            optimizer.load_state_dict(optimizer.state_dict())

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Log the values of schedules."""
        self.log_dict({f"schedule/{name}": self.now(name) for name in self._schedules})

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule."""
        optimizer = self._optimizer(self.trainable())
        if self._scheduler is None:
            return optimizer
        schedule = self._scheduler(
            optimizer, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def running(self) -> tuple[str, ...]:
        """The members that are still in training."""
        return tuple(name for name in self.members if name not in self.stopped)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, behind which no frame is bent far (see `Frame.straighten`)."""
        super().optimizer_step(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Frame) and module.weight.requires_grad:
                module.straighten()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each member's gradient by itself."""
        if not gradient_clip_val:
            return
        clip = nn.utils.clip_grad_norm_
        if gradient_clip_algorithm == "value":
            clip = nn.utils.clip_grad_value_
        # One norm over all members would let one member's gradient shrink another's.
        for name in self.running:
            clip(self.module_of(name).parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what identifies the training, which members have stopped, and the references."""
        identity.mark(checkpoint, self.config)
        # References of a frozen network are measured once: a continued training takes them over.
        checkpoint["stopped"], checkpoint["references"] = self.stopped, self._references

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises ValueError, naming what differs, for a checkpoint of another training.
        """
        identity.check(checkpoint, self.config)
        self.stopped, self._references = dict(checkpoint["stopped"]), dict(checkpoint["references"])


def of_member(metric: str, name: str) -> str:
    """The name under which a member's metric is logged."""
    return f"{metric}/{name}" if name else metric


def checked_monitor(monitor: str, monitors: Sequence[str]) -> str:
    """The metric that chooses the epoch. Raises ValueError for one that is not logged."""
    if monitor not in monitors:
        raise ValueError(
            f"monitor={monitor!r} is no figure that this training logs on validation; choose one "
            f"of {', '.join(monitors)}."
        )
    return monitor


def checked_weights(parts: tuple[str, ...], weights: Mapping[str, Number]) -> dict[str, Number]:
    """The weights of a loss's parts, 0 where none is given.

    Raises ValueError for unknown parts, negative or infinite weights, and where all are 0.
    """
    unknown = sorted(set(weights) - set(parts))
    if unknown:
        raise ValueError(f"weights: {unknown} are no parts of the loss; they are {list(parts)}.")
    # A schedule stays between its ends: checking both checks all its values.
    values = list(chain.from_iterable(map(ends, weights.values())))
    if not all(0 <= value < inf for value in values) or not any(values):
        raise ValueError(
            f"weights: none may be negative, and one part has to count; got {dict(weights)}."
        )
    return dict.fromkeys(parts, 0.0) | dict(weights)
