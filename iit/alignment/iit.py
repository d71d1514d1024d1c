"""Interchange intervention training: the network itself is trained."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from iit.alignment.alignment import Alignment
from iit.alignment.cells import Cells
from iit.alignment.objective import Objective, cross_entropy
from iit.result import correct

Optimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
Scheduler = Callable[..., torch.optim.lr_scheduler.LRScheduler]
WEIGHTS = {"behaviour": 1.0, "interchange": 1.0}


class IIT(Cells):
    """Train a network to answer rightly, and to do so by the causal model (arXiv 2112.00826).

    Minimises Σ weight · loss of two parts over the network's and the interventions' parameters: `behaviour` is
    objective(network(base), the base's own answer), `interchange` is objective(edited(base, source), label). An alignment
    without edits leaves the behaviour: plain training of the task. Logs `train/loss` and its parts each step and, each epoch,
    `val/loss`, `val/task_accuracy` and, with edits, `val/iia` and `val/iia_changing`.

    optimizer: makes the optimizer from the parameters; AdamW with learning rate 1e-3 by default.
    scheduler: makes a learning rate schedule from the optimizer and `total_steps`; none by default.
    weights: of the parts. config: what identifies the run; a checkpoint of another one is refused.

    Raises ValueError for several alignments, unknown parts, negative weights, and where no part is left; when it runs, for pairs without the bases'
    own answers.
    """

    trains_network = True

    def __init__(
        self,
        alignment: Alignment | Mapping[str, Alignment],
        *,
        objective: Objective = cross_entropy,
        optimizer: Optimizer | None = None,
        scheduler: Scheduler | None = None,
        weights: Mapping[str, float] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__(("",), config)
        if isinstance(alignment, Mapping):
            raise ValueError("IIT trains the network, for one alignment; several cannot be trained side by side in it.")
        self.weights = WEIGHTS | dict(weights or {})
        unknown = sorted(set(self.weights) - set(WEIGHTS))
        if unknown:
            raise ValueError(f"weights: {unknown} are no parts of the loss; they are {list(WEIGHTS)}.")
        if not alignment.edits:
            self.weights["interchange"] = 0.0
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise ValueError(f"weights: none may be negative, and one part has to count; got {self.weights}.")
        self.alignment = alignment
        self.network = alignment.network  # registered here: it is trained, and part of checkpoints
        self.monitor = "val/iia_changing" if self.weights["interchange"] else "val/task_accuracy"
        self._objective, self._optimizer, self._scheduler = objective, optimizer or _adamw, scheduler
        self._means: Any = torch.nn.ModuleDict({name: MeanMetric() for name in ("loss", "task_accuracy", "iia", "iia_changing")})

    def weights_of(self, name: str) -> "IIT":
        """The network and the interventions."""
        return self

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of one batch."""
        parts = {name: self._objective(logits, answer) for name, (logits, answer) in self._runs(batch).items()}
        loss = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        self.log_dict({f"train/{name}": part for name, part in parts.items()}, batch_size=len(batch["row"]))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["row"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Count right answers, and pairs on which the edited network gives the label."""
        runs = self._runs(batch)
        losses = torch.stack([self.weights[name] * self._objective(*run) for name, run in runs.items()])
        self._means["loss"].update(losses.sum(), weight=len(batch["row"]))
        if "behaviour" in runs:
            self._means["task_accuracy"].update(correct(*runs["behaviour"]).float())
        if "interchange" in runs:
            right = correct(*runs["interchange"]).float()
            self._means["iia"].update(right)
            if bool(batch["changing"].any()):
                self._means["iia_changing"].update(right[batch["changing"]])
        for name, mean in self._means.items():
            if mean.update_called:
                self.log(f"val/{name}", mean, prog_bar=name != "loss")

    def _runs(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Part → (logits, answer), of the parts that have a weight."""
        found = {}
        base = batch["base"]
        if self.weights["behaviour"]:
            if "base_answer" not in batch:
                raise ValueError("The behaviour is trained by the bases' own answers: the pairs need the column base_answer.")
            own = base | {"answer": batch["base_answer"]}
            idle = dict.fromkeys(self.alignment.variables, False)
            found["behaviour"] = (self.alignment.answer_logits(own, active=idle), own["answer"])
        if self.weights["interchange"]:
            found["interchange"] = (self.alignment.answer_logits(base, batch["sources"], batch["active"]), base["answer"])
        return found

    def configure_optimizers(self) -> Any:
        """The optimizer over all trained parameters, and its schedule."""
        optimizer = self._optimizer(p for p in self.parameters() if p.requires_grad)
        if self._scheduler is None:
            return optimizer
        schedule = self._scheduler(optimizer, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _adamw(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)
