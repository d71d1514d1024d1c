"""Distributed alignment search: the network is frozen, the interventions are trained."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iit.alignment.alignment import Alignment
from iit.alignment.cells import (
    Cells,
    Optimizer,
    Scheduler,
    checked_weights,
    is_gated,
    of_cell,
    of_gates,
)
from iit.alignment.latents import latents
from iit.alignment.objective import CrossEntropy, Objective, Prediction
from iit.alignment.schedule import Number
from iit.intervened.passes import together
from iit.intervention import SoftGate
from iit.result import correct

KINDS = ("cause", "isolate")


class DAS(Cells):
    """Train the interventions of an alignment so that the edited network gives the label (arXiv
    2303.02536).

    Minimises the mean of objective(edited(base, source), label) over pairs, plus penalty · the
    share of coordinates that learned gates let through, over the interventions' parameters. Logs
    `train/loss` each step and, each epoch, `val/loss`, `val/iia` (all validation pairs),
    `val/iia_changing`, `val/disentangle` (the mean of the IIA on changing pairs and on the others)
    and, of learned gates, `val/rank`, the coordinates they let through. Where there is a logger,
    `val/vanilla/iia` and `val/random_subspace/iia` (`iia_changing`, too) are constant lines: the
    sites' whole vectors, and a random subspace of equal rank.

    alignments: one, or {name: alignment} of several that are trained side by side on the same
        pairs: sites × ranks × seeds. Each has its own weights, optimizer state, metrics
        (`val/iia/NAME`; the plain names are means over those that are trained) and is stopped by
        itself; where their passes over the network coincide, they share them.
    objective: the cross-entropy by default.
    weights: {"cause": …, "isolate": …}: instead of the mean over pairs, the sum of the weighted
        means over changing pairs (the edit has to cause the label) and over the others (it must
        leave the answer alone): MDAS (arXiv 2402.17700). Either may be a schedule, and 0 leaves its
        pairs out. Those that are not to change are minimised by `objective.on_own_answer()`. Logged
        as `train/cause` and `train/isolate`. `val/loss` is weighted likewise, by what schedules end
        with. Where both count, the disentangle score chooses the epoch.
    temperature: of learned gates, as a multiple of what each was made with; constant by default.
    penalty: weight of the share that learned gates let through (arXiv 2305.08809); none by default.
    optimizer: makes the optimizer from the parameters; Adam with learning rate 5e-3 by default. Of
        several alignments each is a group of parameters. gate_lr: the learning rate of learned
        gates; the optimizer's by default. scheduler: makes a learning rate schedule from it and
        `total_steps`; none by default.
    config: what identifies the run; a checkpoint of another one is refused.

    Raises ValueError when there is nothing to train, when alignments share weights or differ in
    network, and for weights that are unknown, negative, or all 0, a negative penalty, and a
    temperature that is not above 0.
    """

    monitors = ("val/loss", "val/iia", "val/iia_changing", "val/disentangle")

    def __init__(
        self,
        alignments: Alignment | Mapping[str, Alignment],
        *,
        objective: Objective | None = None,
        weights: Mapping[str, Number] | None = None,
        temperature: Number = 1.0,
        penalty: Number = 0.0,
        optimizer: Optimizer | None = None,
        scheduler: Scheduler | None = None,
        gate_lr: float | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        cells = dict(alignments) if isinstance(alignments, Mapping) else {"": alignments}
        self._kinds = weights is not None
        numbers = checked_weights(KINDS, weights or dict.fromkeys(KINDS, 1.0))
        gated = any(is_gated(i) for cell in cells.values() for i in cell.interventions)
        numbers |= of_gates(temperature, penalty, gated)
        if gate_lr is not None and not gated:
            raise ValueError(
                f"gate_lr={gate_lr}: no intervention has a learned gate. Leave it out."
            )
        super().__init__(tuple(cells), optimizer or _adam, scheduler, numbers, config, cells)
        _check(cells)
        self._gate_lr = gate_lr
        self.alignments: Any = nn.ModuleList(cells.values())
        self.objective = objective or CrossEntropy()
        if self._kinds and all(numbers[kind] != 0 for kind in KINDS):
            self.monitor = "val/disentangle"

    def weights_of(self, name: str) -> Alignment:
        """The cell's alignment."""
        return self.alignments[self.names.index(name)]

    def trainable(self) -> Iterable[Any]:
        """The interventions' parameters: groups for several cells, and for gates with a rate of
        their own.
        """
        groups: list[dict[str, Any]] = []
        for cell in self.alignments:
            gates = [module for module in cell.modules() if isinstance(module, SoftGate)]
            weights = list(nn.ModuleList(gates).parameters()) if self._gate_lr is not None else []
            apart = set(weights)
            groups.append(
                {"params": [p for p in cell.parameters() if p.requires_grad and p not in apart]}
            )
            if weights:
                groups.append({"params": weights, "lr": self._gate_lr})
        return groups[0]["params"] if len(groups) == 1 else groups

    def check(self, batch: Mapping[str, Any]) -> None:
        """Raises ValueError for pairs that lack what the objective reads."""
        self.objective.check(batch)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of one batch of pairs, the sum over cells: their gradients are independent."""
        n = len(batch["row"])
        self.anneal(i for cell in self.alignments for i in cell.interventions)
        losses = []
        for name, made in zip(self.running, self._predictions(batch), strict=True):
            loss = self._weighed(self._losses(made, batch["changing"]), batch["changing"], name)
            loss = loss + self.penalty(self.weights_of(name).interventions, name)
            losses.append(loss)
            self.log(of_cell("train/loss", name), loss, prog_bar=not name, batch_size=n)
        total = torch.stack(losses).sum()
        if len(self.names) > 1:
            self.log("train/loss", total / len(losses), prog_bar=True, batch_size=n)
        return total

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Count the pairs on which the edited network gives the label."""
        rows, changing = batch["row"], batch["changing"]
        for name, made in zip(self.running, self._predictions(batch), strict=True):
            right, losses = correct(made.logits, made.answer), self._losses(made, changing)
            if self._kinds:
                # The mean over all pairs is then the sum of the weighted means over the kinds.
                share = self.data.validation.changing.float().mean()
                cause, isolate = self.last("cause") / share, self.last("isolate") / (1 - share)
                losses = losses * torch.where(changing.cpu(), cause, isolate).to(losses.device)
            self.count("loss", name, rows, losses)
            self.count("iia", name, rows, right)
            self.count("iia_changing", name, rows[changing], right[changing])
            self.count("disentangle", name, rows, right)

    def on_validation_epoch_end(self) -> None:
        """Log the figures, and how many coordinates learned gates let through."""
        super().on_validation_epoch_end()
        for name in self.running:
            interventions: Any = self.weights_of(name).interventions
            gated = list(filter(is_gated, interventions))
            if gated:
                self.log(
                    of_cell("val/rank", name),
                    float(sum(intervention.learned_rank() for intervention in gated)),
                )

    def _losses(self, made: Prediction, changing: Tensor) -> Tensor:
        """The objective of each pair; where the kinds have weights, what stands for it of pairs
        that are not to change.
        """
        losses, kept = self.objective(made), self.objective.on_own_answer()
        return (
            losses
            if not self._kinds or kept is self.objective
            else torch.where(changing.to(losses.device), losses, kept(made))
        )

    def _weighed(self, losses: Tensor, changing: Tensor, name: str) -> Tensor:
        """The mean over pairs, or the weighted means over their kinds."""
        if not self._kinds:
            return losses.mean()
        total = losses.sum() * 0.0  # also of a batch in which nothing counts
        for kind, chosen in zip(KINDS, (changing, ~changing), strict=True):
            if bool(chosen.any()) and self.now(kind):
                mean = losses[chosen].mean()
                self.log(of_cell(f"train/{kind}", name), mean, batch_size=int(chosen.sum()))
                total = total + self.now(kind) * mean
        return total

    def _predictions(self, batch: dict[str, Any]) -> list[Prediction]:
        cells = [self.weights_of(name) for name in self.running]
        found = together(cells, batch["base"], batch["sources"], batch["active"])
        near = "natural" in batch
        return [
            Prediction(
                logits,
                batch["base"]["answer"],
                batch.get("base_answer"),
                partial(latents, cell, batch) if near else None,
            )
            for cell, logits in zip(cells, found, strict=True)
        ]


def _check(cells: Mapping[str, Alignment]) -> None:
    if not cells:
        raise ValueError("There is nothing to train: no alignment was given.")
    seen: dict[nn.Parameter, str] = {}
    first = next(iter(cells.values()))
    for name, cell in cells.items():
        trained = [p for p in cell.parameters() if p.requires_grad]
        told = f" ({name})" if name else ""
        if not trained:
            names = [type(edit.intervention).__name__ for edit in cell.edits.values()]
            raise ValueError(
                f"There is nothing to train{told}: {', '.join(names)} has no parameters. "
                "Evaluate it as it is."
            )
        shared = next((seen[p] for p in trained if p in seen), None)
        if shared is not None:
            raise ValueError(
                f"The alignments {shared!r} and {name!r} share weights; each needs interventions "
                "of its own."
            )
        seen |= dict.fromkeys(trained, name)
        if cell.network is not first.network:
            raise ValueError(
                f"The alignment {name!r} is of another network; alignments trained side by side "
                "share one."
            )


def _adam(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)
