"""Interchange intervention training: the network itself is trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from iit.alignment.alignment import Alignment
from iit.alignment.objective import Objective, PairsBatch, Prediction
from iit.alignment.processes import gathered, share
from iit.alignment.schedule import Number
from iit.alignment.side_by_side import Optimizer, Scheduler, SideBySide, checked_weights
from iit.batch import at_rows, stacked
from iit.intervened import Activations, IntervenedModel, capture
from iit.intervened.edit import variables_of
from iit.result import correct

FIGURES = {"interchange": "iia", "behaviour": "task_accuracy", "strict": "strict"}
"""{part of the loss: the validation accuracy that belongs to it}"""
WEIGHTS: dict[str, Number] = {"behaviour": 1.0, "interchange": 1.0, "strict": 0.0}
"""{part of the loss: its weight, where a user gives none}"""


class IIT(SideBySide):
    """Train a network to answer rightly, and to do so as the causal model does.

    It minimises Σ weight · loss over the network's and the interventions' parameters. The loss has
    three parts:

    - `behaviour`: the unedited network should give the base's own answer. The loss is
      `unchanged(network(base), the base's own answer)`.
    - `interchange`: the edited network should give the label. The loss is
      `objective(edited(base, source), label)`.
    - `strict`: the base's own answer should stay where an inert part takes its activation from the
      source. The loss is `unchanged(that run, the base's own answer)`. Each pair draws one inert
      part.

    Here `unchanged` is `objective.on_own_answer()`, for most objectives the objective itself. A
    step is one pass over the sources and one over the bases, which are stacked once for each part.
    An alignment without edits leaves only the behaviour: plain training on the task.

    It logs `train/loss` and its parts in each step. In each epoch it logs `val/loss`,
    `val/task_accuracy` and, with edits, `val/iia`, `val/iia_changing` and `val/strict`, the share
    of bases that keep their answer. `val/loss` is weighted by the last values of schedules.

    Where there is a logger, `val/vanilla/iia` and `val/random_subspace/iia` (and `iia_changing`)
    are references in that epoch's network: the sites' whole vectors, and a random subspace of equal
    rank.

    Arguments:
        alignment: one alignment, with or without edits.
        objective: the loss of a pair; cross-entropy by default.
        weights: {part: weight}; each may be a schedule. Defaults: behaviour 1, interchange 1,
            strict 0.
        trained: the variables whose interchanges are trained; all by default. Pairs of other
            variables train the behaviour only.
        source_grad: let gradients flow through the source runs, too.
        temperature, penalty: as in `DAS`, for learned gates of the interventions, which are trained
            with the network.
        optimizer: makes the optimizer from the parameters; AdamW with learning rate 1e-3 by
            default.
        scheduler: makes a learning rate schedule from the optimizer and `total_steps`; none by
            default.

    Raises:
        ValueError: several alignments; an unknown part or variable; no variable in `trained`; a
            negative weight; no part with a weight; a strict weight without inert parts; a negative
            penalty; a temperature that is not above 0; an objective that needs natural
            counterparts. When it is checked: pairs that lack the bases' own answers.

    References:
        arXiv 2112.00826 (IIT), 2407.14494 (the strict part).
    """

    trains_network = True
    monitors = ("val/loss", "val/task_accuracy", "val/iia", "val/iia_changing", "val/strict")

    def __init__(
        self,
        alignment: Alignment | Mapping[str, Alignment],
        *,
        objective: Objective | None = None,
        weights: Mapping[str, Number] | None = None,
        trained: Sequence[str] | None = None,
        source_grad: bool = False,
        temperature: Number = 1.0,
        penalty: Number = 0.0,
        optimizer: Optimizer | None = None,
        scheduler: Scheduler | None = None,
    ):
        if isinstance(alignment, Mapping):
            raise ValueError(
                "IIT trains the network, for one alignment; several cannot be trained side "
                "by side in it."
            )
        declared = WEIGHTS | dict(weights or {})
        if not alignment.edits:
            declared |= {"interchange": 0.0, "strict": 0.0}
        numbers = checked_weights(tuple(WEIGHTS), declared)
        if numbers["strict"] != 0 and not alignment.inert:
            raise ValueError(
                "weights: a strict loss needs parts of the network that are declared not to "
                "matter, and the alignment declares none: give it `inert`, or leave the weight "
                "of strict at 0."
            )
        variables = list(map(str, alignment.variables))
        if trained is not None and not len(trained):
            raise ValueError(
                f"trained=[] names no variable. Name some of {variables}, or None (null) for all; "
                "the behaviour alone is trained with weights.interchange=0."
            )
        unknown = sorted(set(trained or ()) - set(variables))
        if unknown:
            raise ValueError(
                f"trained: the alignment has no variable {unknown}; it has {variables}."
            )
        members, optimizer = {"": alignment}, optimizer or partial(torch.optim.AdamW, lr=1e-3)
        super().__init__(
            members, objective, optimizer, scheduler, numbers, temperature, penalty, trained
        )
        self.alignment = alignment
        self.network = alignment.network  # registered here: it is trained, and part of checkpoints
        logged = [f"val/{FIGURES[part]}" for part in FIGURES if numbers[part] != 0]
        if numbers["interchange"] != 0:
            logged = ["val/iia_changing", *logged]
        else:
            self.compared = {}
        self.monitor, self.monitors = logged[0], ("val/loss", *logged)
        self._source_grad = source_grad
        if self.objective.needs_natural:
            raise ValueError(
                f"objective: {type(self.objective).__name__} compares edited activations with "
                "natural ones of a frozen network; IIT trains the network. Choose another, such as "
                "objective=cross_entropy."
            )
        edits = {**alignment.edits, **alignment.inert}
        # The alignment with its inert parts as further edits; the weights are the alignment's. In a
        # tuple it is not registered a second time.
        self._edited = (IntervenedModel(alignment.studied or alignment.network, edits),)

    def module_of(self, name: str) -> "IIT":
        """The network and the interventions."""
        return self

    def trainable(self) -> Iterable[Any]:
        """The network's and the interventions' parameters."""
        return (p for p in self.parameters() if p.requires_grad)

    def check(self, batch: PairsBatch) -> None:
        """Check a batch before the training.

        Raises ValueError for pairs without own answers where these are trained, and for pairs that
        lack what the objective reads.
        """
        if "base_answer" not in batch and {"behaviour", "strict"} & set(self._parts):
            raise ValueError(
                "The behaviour is trained by the bases' own answers: the pairs need the "
                "column base_answer."
            )
        if "interchange" in self._parts:
            super().check(batch)

    def training_step(self, batch: PairsBatch, batch_index: int) -> Tensor:
        """The loss of one batch; 0 where no pair in it trains anything."""
        self.anneal()
        losses, n = self._losses(self._predictions(batch)), len(batch["row"])
        if not losses:
            # No parameter has a gradient, so the optimizer changes none.
            return torch.zeros((), requires_grad=True)
        total = _weighed(losses, self.now) + self.penalty_term("")
        self.log_dict({f"train/{part}": loss for part, loss in losses.items()}, batch_size=n)
        self.log("train/loss", total, prog_bar=True, batch_size=n)
        return total

    def validation_step(self, batch: PairsBatch, batch_index: int) -> None:
        """Count right answers, and pairs on which the edited network gives the label."""
        predictions = self._predictions(batch)
        if not predictions:
            return
        total = _weighed(self._losses(predictions), self.last)
        # A part is a mean over its rows, so each pair counts with the loss of its batch.
        self.count("loss", "", batch["row"], total.expand(len(batch["row"])))
        for part, (prediction, index) in predictions.items():
            right, rows = correct(prediction.logits, prediction.answer), batch["row"][index]
            self.count(FIGURES[part], "", rows, right)
            if part == "interchange":
                changing = batch["changing"][index]
                self.count("iia_changing", "", rows[changing], right[changing])

    def _losses(self, predictions: Mapping[str, tuple[Prediction, Tensor]]) -> dict[str, Tensor]:
        """{part: its mean loss}. Behaviour and strict are about the base's own answer."""
        losses = {}
        for part, (prediction, _) in predictions.items():
            objective = self.objective
            if part != "interchange":
                objective = objective.on_own_answer()
            losses[part] = objective(prediction).mean()
        return losses

    @property
    def _parts(self) -> list[str]:
        """The parts of the loss that have a weight."""
        return [part for part in WEIGHTS if self._numbers[part] != 0]

    def _predictions(self, batch: PairsBatch) -> dict[str, tuple[Prediction, Tensor]]:
        """{part: (prediction, rows of the batch that it is about)} for each part that has a weight.

        All parts share one pass over the network.
        """
        base, base_answers = batch["base"], batch.get("base_answer")
        rows = dict.fromkeys(self._parts, torch.arange(len(batch["row"])))
        if "interchange" in rows and self.trained is not None:
            # A pair counts where all that it interchanges is trained.
            index = rows["interchange"]
            for variable in set(batch["sources"]) - set(self.trained):
                index = index[~_active(batch, variable)[index]]
            rows["interchange"] = index
            if not len(index):
                del rows["interchange"]
        if not rows:
            return {}
        # This process runs its share of each part's rows.
        run_rows = {part: index[share(len(index))] for part, index in rows.items()}
        # Each part has its own copy of its bases, with the answer that the network is to give.
        answers: Any = dict.fromkeys(rows, base_answers) | {"interchange": base["answer"]}
        copies = []
        for part, index in run_rows.items():
            copies.append(at_rows(base | {"answer": answers[part]}, index))
        # The flags are stacked in the order of the copies: BoolTensor[sum of the parts' rows].
        active = {}
        flags = {part: self._flags(part, batch) for part in rows}
        idle = torch.zeros(len(batch["row"]), dtype=torch.bool)
        (edited,) = self._edited
        for variable in edited.variables:
            parts = [flags[part].get(variable, idle)[index] for part, index in run_rows.items()]
            active[variable] = torch.cat(parts)
        sources = self._sources(batch, run_rows) if set(rows) - {"behaviour"} else None
        logits = edited.answer_logits(stacked(copies), sources, active)
        predictions = {}
        by_part = logits.split(list(map(len, run_rows.values())))
        for (part, index), part_logits in zip(rows.items(), by_part, strict=True):
            # Stacked answers are padded to the widest part; each part is cut back to its own
            # answers.
            answer = answers[part][index]
            width = answer.shape[1] if answer.ndim == 2 else 1
            base_answer = None if base_answers is None else base_answers[index]
            part_logits = gathered(part_logits[:, :width], len(index))
            prediction = Prediction(part_logits, answer, base_answer)
            predictions[part] = prediction, index
        return predictions

    def _flags(self, part: str, batch: PairsBatch) -> dict[Any, Tensor]:
        """{variable or inert part that a part of the loss edits: for which pairs}."""
        if part == "interchange":
            return {variable: _active(batch, variable) for variable in batch["sources"]}
        if part == "behaviour":
            return {}
        # Seeded by the step: a continued training draws what an uninterrupted one draws.
        generator = torch.Generator().manual_seed(self.global_step)
        inert = self.alignment.inert
        drawn = torch.randint(len(inert), (len(batch["row"]),), generator=generator)
        return {name: drawn == number for number, name in enumerate(inert)}

    def _sources(self, batch: PairsBatch, rows: Mapping[str, Tensor]) -> dict[Any, Activations]:
        """{variable or inert part: what its edit reads}, for the rows of all parts.

        All sources that some pair needs are run in one pass, each once. Inert parts read the source
        of the pair's first variable.
        """
        (edited,), sources = self._edited, batch["sources"]
        is_read = torch.zeros(len(batch["row"]), dtype=torch.bool)
        for part, index in rows.items():
            # The behaviour reads no source.
            if part != "behaviour":
                is_read[index] = True
        # BoolTensor[variable, pair]: which sources are run. They are stacked variable by variable.
        needed = torch.stack([_active(batch, v) & is_read for v in sources])
        needed_sources = list(map(at_rows, sources.values(), needed))
        sites = {}
        for edit in edited.edits.values():
            sites |= dict.fromkeys(edit.source_sites)
        captured = capture(
            edited.studied or edited.network,
            stacked(needed_sources),
            list(sites),
            grad=self._source_grad,
        )
        # LongTensor[variable, pair]: the row of each source among those that are run. The rows of
        # `needed` [[1, 0], [1, 1]] are [[0, 0], [1, 2]]. A source that is not run repeats the row
        # before it, or has row 0; no active edit reads it.
        rows_before = needed.flatten().cumsum(0) - 1
        row_of_source = rows_before.clamp(min=0).view_as(needed)
        # LongTensor[pair]: the source of the first variable that the pair interchanges.
        first_variable = needed.int().argmax(0, keepdim=True)
        row_of_first = row_of_source.gather(0, first_variable).squeeze(0)
        by_variable = dict(zip(sources, row_of_source, strict=True))
        by_variable |= dict.fromkeys(self.alignment.inert, row_of_first)
        # The parts of the loss are stacked, too: the pair of each of their rows.
        stacked_rows = torch.cat(list(rows.values()))
        activations = {}
        for key, edit in edited.edits.items():
            for variable in variables_of(key, edit):
                if variable in by_variable and edit.intervention.needs_source:
                    index = by_variable[variable][stacked_rows]
                    tensors = {site: captured[site][index] for site in edit.source_sites}
                    activations[variable] = Activations(tensors, at_rows(captured.counts, index))
        return activations


def _weighed(losses: Mapping[str, Tensor], weight: Callable[[str], float]) -> Tensor:
    """The sum of the losses, each times the weight of its part."""
    return torch.stack([weight(part) * loss for part, loss in losses.items()]).sum()


def _active(batch: PairsBatch, variable: str) -> Tensor:
    everywhere = torch.ones(len(batch["row"]), dtype=torch.bool)
    return batch["active"].get(variable, everywhere).cpu()
