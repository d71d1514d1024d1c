"""Distributed alignment search: the network is frozen, the interventions are trained."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from iit.alignment.alignment import Alignment
from iit.alignment.cells import Cells, of_cell
from iit.alignment.objective import Objective, cross_entropy
from iit.intervened import together
from iit.result import correct

Optimizer = Callable[[Iterable[Any]], torch.optim.Optimizer]


class DAS(Cells):
    """Train the interventions of an alignment so that the edited network gives the label (arXiv 2303.02536).

    Minimises objective(edited(base, source), label) over the interventions' parameters. Logs `train/loss` each step and, each
    epoch, `val/loss`, `val/iia` (all validation pairs) and `val/iia_changing`.

    alignments: one, or {name: alignment} of several that are trained side by side on the same pairs: sites × ranks × seeds. Each
        has its own weights, optimizer state, metrics (`val/iia/NAME`; the plain names are means over those that are trained) and
        is stopped by itself; where their passes over the network coincide, they share them.
    optimizer: makes the optimizer from the parameters; Adam with learning rate 5e-3 by default. Of several alignments each is a
        group of parameters.
    config: what identifies the run; a checkpoint of another one is refused.

    Raises ValueError when there is nothing to train, and when alignments share weights or differ in network.
    """

    def __init__(
        self,
        alignments: Alignment | Mapping[str, Alignment],
        *,
        objective: Objective = cross_entropy,
        optimizer: Optimizer | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        cells = dict(alignments) if isinstance(alignments, Mapping) else {"": alignments}
        super().__init__(tuple(cells), config)
        _check(cells)
        self.alignments: Any = nn.ModuleList(cells.values())
        self._objective = objective
        self._optimizer = optimizer or _adam
        # Of several cells there are means over all, too, under the plain names.
        self._logged = self.names if len(self.names) == 1 else (*self.names, "")
        self._means: Any = nn.ModuleList(
            nn.ModuleDict({metric: MeanMetric() for metric in ("loss", "iia", "iia_changing")}) for _ in self._logged
        )

    def weights_of(self, name: str) -> Alignment:
        """The cell's alignment."""
        return self.alignments[self.names.index(name)]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of one batch of pairs, the sum over cells: their gradients are independent."""
        answer = batch["base"]["answer"]
        losses = [self._objective(logits, answer) for logits in self._logits(batch)]
        for name, loss in zip(self.running, losses, strict=True):
            self.log(of_cell("train/loss", name), loss, prog_bar=not name, batch_size=len(answer))
        total = torch.stack(losses).sum()
        if len(self.names) > 1:
            self.log("train/loss", total / len(losses), prog_bar=True, batch_size=len(answer))
        return total

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Count the pairs on which the edited network gives the label."""
        answer, changing = batch["base"]["answer"], batch["changing"]
        for name, logits in zip(self.running, self._logits(batch), strict=True):
            right, loss = correct(logits, answer).float(), self._objective(logits, answer)
            for logged in {name, self._logged[-1]}:
                means = self._means[self._logged.index(logged)]
                means["loss"].update(loss, weight=len(right))
                means["iia"].update(right)
                if bool(changing.any()):
                    means["iia_changing"].update(right[changing])
        for logged, means in zip(self._logged, self._means, strict=True):
            for metric, mean in means.items():
                if mean.update_called:
                    self.log(of_cell(f"val/{metric}", logged), mean, prog_bar=not logged and metric != "loss")

    def _logits(self, batch: dict[str, Any]) -> list[Tensor]:
        cells = [self.weights_of(name) for name in self.running]
        return together(cells, batch["base"], batch["sources"], batch["active"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over the interventions' parameters."""
        trained = [[p for p in cell.parameters() if p.requires_grad] for cell in self.alignments]
        return self._optimizer(trained[0] if len(trained) == 1 else [{"params": parameters} for parameters in trained])


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
            raise ValueError(f"There is nothing to train{told}: {', '.join(names)} has no parameters. Evaluate it as it is.")
        shared = next((seen[p] for p in trained if p in seen), None)
        if shared is not None:
            raise ValueError(f"The alignments {shared!r} and {name!r} share weights; each needs interventions of its own.")
        seen |= dict.fromkeys(trained, name)
        if cell.network is not first.network:
            raise ValueError(f"The alignment {name!r} is of another network; alignments trained side by side share one.")


def _adam(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=5e-3)
