"""Distributed alignment search: the network is frozen, the interventions are trained."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iit.alignment.alignment import Alignment
from iit.alignment.latents import latents
from iit.alignment.objective import Objective, Prediction
from iit.alignment.processes import gathered, share
from iit.alignment.schedule import Number
from iit.alignment.side_by_side import Optimizer, Scheduler, SideBySide, checked_weights, of_member
from iit.batch import at_rows
from iit.intervened.passes import together
from iit.result import correct

PARTS = ("cause", "isolate")
"""The parts of the loss that `weights` names: of changing pairs, and of the others."""


class DAS(SideBySide):
    """Train an alignment's interventions so that the edited network gives the label.

    It minimises over the interventions' parameters

        mean over pairs of objective(edited(base, source), label) + penalty · share,

    where share is the share of coordinates that a learned gate lets through, summed over the gates.

    It logs `train/loss` in each step. In each epoch it logs `val/loss`, `val/iia` (all validation
    pairs), `val/iia_changing`, and `val/disentangle`, the mean of the IIA on changing pairs and on
    the others. For learned gates it logs `val/rank`, the coordinates that they let through. Where
    there is a logger, `val/vanilla/iia` and `val/random_subspace/iia` (and `iia_changing`) are
    constant lines: the sites' whole vectors, and a random subspace of equal rank.

    Arguments:
        alignments: an alignment, or {name: alignment} for several that are trained side by side on
            the same pairs (sites × ranks × seeds). Each has its own weights, optimizer state and
            metrics: `val/iia/NAME`, while the plain names are means over those still in training.
            Each is stopped by itself. Where their passes over the network coincide, they share
            them.
        objective: the loss of a pair; cross-entropy by default.
        weights: {"cause": …, "isolate": …}, as in MDAS (multi-task DAS). The loss is then a
            weighted sum of two means, in place of the mean over pairs. "cause" weighs changing
            pairs, where the edit has to cause the label. "isolate" weighs the others, where it must
            leave the answer alone; their loss is `objective.on_own_answer()`. Either may be a
            schedule, and 0 leaves its pairs out. The two means are logged as `train/cause` and
            `train/isolate`. `val/loss` is weighted likewise, by the last values of schedules. Where
            both weights count, `val/disentangle` chooses the epoch.
        temperature: of learned gates, as a multiple of the temperature that each was made with; 1
            by default. It may be a schedule.
        penalty: the weight of the share above; 0 by default. It may be a schedule.
        optimizer: makes the optimizer from the parameters; Adam with learning rate 5e-3 by default.
            Each of several alignments is a group of parameters.
        scheduler: makes a learning rate schedule from the optimizer and `total_steps`; none by
            default.
        gate_lr: the learning rate of learned gates; the optimizer's by default.

    Raises:
        ValueError: there is nothing to train; alignments share weights, or are of different
            networks; a weight is unknown or negative, or all are 0; the penalty is negative; the
            temperature is not above 0; `gate_lr` is given without a learned gate.

    References:
        arXiv 2303.02536 (DAS), 2305.08809 (learned boundaries and their penalty), 2402.17700
        (MDAS).
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
    ):
        members = dict(alignments) if isinstance(alignments, Mapping) else {"": alignments}
        # MDAS: changing pairs and the others are parts of the loss, each with a weight.
        self._weighs_parts = weights is not None
        numbers = checked_weights(PARTS, weights or dict.fromkeys(PARTS, 1.0))
        optimizer = optimizer or partial(torch.optim.Adam, lr=5e-3)
        super().__init__(members, objective, optimizer, scheduler, numbers, temperature, penalty)
        if gate_lr is not None and not self.gated():
            raise ValueError(
                f"gate_lr={gate_lr}: no intervention has a learned gate. Leave it out."
            )
        _check(members)
        self._gate_lr = gate_lr
        # Registered here, so that checkpoints hold their weights. An alignment does not register
        # its network.
        self.alignments = nn.ModuleList(members.values())
        if self._weighs_parts and all(numbers[part] != 0 for part in PARTS):
            self.monitor = "val/disentangle"

    def module_of(self, name: str) -> Alignment:
        """The member's alignment."""
        return self.members[name]

    def trainable(self) -> Iterable[Any]:
        """The interventions' parameters in groups: a member, or gates of a rate of their own."""
        groups: list[dict[str, Any]] = []
        for name, member in self.members.items():
            group = {"params": [p for p in member.parameters() if p.requires_grad]}
            groups.append(group)
            gates = nn.ModuleList([intervention.gate for intervention in self.gated(name)])
            if self._gate_lr is not None and gates:
                # Gates with a learning rate of their own leave their member's group for another.
                of_gates = set(gates.parameters())
                group["params"] = [p for p in group["params"] if p not in of_gates]
                groups.append({"params": list(gates.parameters()), "lr": self._gate_lr})
        return groups

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """The loss of one batch: the sum over members, whose gradients are independent."""
        changing, n = batch["changing"], len(batch["row"])
        self.anneal()
        losses = []
        for name, prediction in self._predictions(batch).items():
            loss = self._weighed(self._losses(prediction, changing), changing, name)
            loss = loss + self.penalty_term(name)
            losses.append(loss)
            # The progress bar shows the loss of a single member (its name is empty), or the mean
            # below.
            self.log(of_member("train/loss", name), loss, prog_bar=not name, batch_size=n)
        total = torch.stack(losses).sum()
        if len(self.members) > 1:
            self.log("train/loss", total / len(losses), prog_bar=True, batch_size=n)
        return total

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Count the loss, and the pairs on which the edited network gives the label."""
        rows, changing = batch["row"], batch["changing"]
        for name, prediction in self._predictions(batch).items():
            # Whether each pair is right, and its loss: Tensor[batch] each.
            right = correct(prediction.logits, prediction.answer)
            losses = self._losses(prediction, changing)
            if self._weighs_parts:
                # Each pair is weighed by the inverse share of its part. The mean over all pairs is
                # then the weighted sum of the means over the two parts.
                share = self.data.validation.changing.float().mean()
                cause, isolate = self.last("cause") / share, self.last("isolate") / (1 - share)
                weights = torch.where(changing.cpu(), cause, isolate).to(losses.device)
                # A pair that does not count may have an infinite loss.
                losses = torch.where(weights == 0, 0.0, losses * weights)
            self.count("loss", name, rows, losses)
            self.count("iia", name, rows, right)
            self.count("iia_changing", name, rows[changing], right[changing])
            self.count("disentangle", name, rows, right)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's figures, and the number of coordinates that learned gates let through."""
        super().on_validation_epoch_end()
        for name in self.running:
            ranks = [intervention.learned_rank() for intervention in self.gated(name)]
            if ranks:
                self.log(of_member("val/rank", name), float(sum(ranks)), sync_dist=True)

    def _losses(self, prediction: Prediction, changing: Tensor) -> Tensor:
        """The loss of each pair, Tensor[batch].

        With `weights`, pairs that are not to change have the loss `objective.on_own_answer()`.
        """
        losses, on_own_answer = self.objective(prediction), self.objective.on_own_answer()
        if not self._weighs_parts or on_own_answer is self.objective:
            return losses
        return torch.where(changing.to(losses.device), losses, on_own_answer(prediction))

    def _weighed(self, losses: Tensor, changing: Tensor, name: str) -> Tensor:
        """The mean over pairs, or the weighted sum of the means over changing and other pairs."""
        if not self._weighs_parts:
            return losses.mean()
        weighed = []
        for part, is_in_part in zip(PARTS, (changing, ~changing), strict=True):
            weight = self.now(part)
            if bool(is_in_part.any()) and weight:
                mean = losses[is_in_part].mean()
                self.log(of_member(f"train/{part}", name), mean, batch_size=int(is_in_part.sum()))
                weighed.append(weight * mean)
        if not weighed:
            # No pair counts: the loss is zero, but with a graph.
            return losses.sum() * 0.0
        return torch.stack(weighed).sum()

    def _predictions(self, batch: dict[str, Any]) -> dict[str, Prediction]:
        """{member that is still in training: what it makes of a batch}."""
        base, base_answer = batch["base"], batch.get("base_answer")
        members, n = [self.members[name] for name in self.running], len(batch["row"])
        part = at_rows(batch, share(n))
        all_logits = together(members, part["base"], part["sources"], part["active"])
        predictions = {}
        for name, member, logits in zip(self.running, members, all_logits, strict=True):
            # An objective that compares activations calls this; the others save the reads.
            read = partial(latents, member, batch) if "natural" in batch else None
            logits = gathered(logits, n)
            predictions[name] = Prediction(logits, base["answer"], base_answer, read)
        return predictions


def _check(members: Mapping[str, Alignment]) -> None:
    if not members:
        raise ValueError("There is nothing to train: no alignment was given.")
    owners: dict[nn.Parameter, str] = {}
    first = next(iter(members.values()))
    for name, member in members.items():
        trained = [p for p in member.parameters() if p.requires_grad]
        shown_name = f" ({name})" if name else ""
        if not trained:
            names = [type(edit.intervention).__name__ for edit in member.edits.values()]
            raise ValueError(
                f"There is nothing to train{shown_name}: {', '.join(names)} has no parameters. "
                "Evaluate it as it is."
            )
        # One step of one member would change the other member, too.
        for parameter in owners.keys() & trained:
            raise ValueError(
                f"The alignments {owners[parameter]!r} and {name!r} share weights; each needs "
                "interventions of its own."
            )
        owners |= dict.fromkeys(trained, name)
        if member.network is not first.network:
            raise ValueError(
                f"The alignment {name!r} is of another network; alignments trained side by "
                "side share one."
            )
