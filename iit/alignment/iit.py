"""Interchange intervention training: the network itself is trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from iit.alignment.alignment import Alignment
from iit.alignment.cells import Cells, Optimizer, Scheduler, checked_weights, is_gated, of_gates
from iit.alignment.objective import CrossEntropy, Objective, Prediction
from iit.alignment.schedule import Number
from iit.batch import at_rows, stacked
from iit.intervened import Activations, IntervenedModel, capture
from iit.intervened.sources import variables_of
from iit.result import correct

FIGURES = {"interchange": "iia", "behaviour": "task_accuracy", "strict": "strict"}
"""{part of the loss: the validation accuracy that belongs to it}"""
WEIGHTS: dict[str, Number] = {"behaviour": 1.0, "interchange": 1.0, "strict": 0.0}
"""{part of the loss: its weight, where a user gives none}"""


class IIT(Cells):
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
    step is one run of the sources and one run of the bases, which are stacked once for each part.
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
        numbers = checked_weights(
            tuple(WEIGHTS),
            declared | ({} if alignment.edits else {"interchange": 0.0, "strict": 0.0}),
        )
        if numbers["strict"] != 0 and not alignment.inert:
            raise ValueError(
                "weights: a strict loss needs parts of the network that are declared not to "
                "matter, and the alignment declares none: give it `inert`, or leave the weight "
                "of strict at 0."
            )
        if trained is not None and not len(trained):
            raise ValueError(
                "trained=[] names no variable. Name some of "
                f"{list(map(str, alignment.variables))}, or None (null) for all; the behaviour "
                "alone is trained with weights.interchange=0."
            )
        unknown = sorted(set(trained or ()) - set(map(str, alignment.variables)))
        if unknown:
            raise ValueError(
                f"trained: the alignment has no variable {unknown}; it has "
                f"{list(map(str, alignment.variables))}."
            )
        gated = any(is_gated(i) for i in alignment.interventions)
        numbers |= of_gates(temperature, penalty, gated)
        compared = {"": alignment} if numbers["interchange"] != 0 else {}
        super().__init__(("",), optimizer or _adamw, scheduler, numbers, compared, trained)
        self.alignment = alignment
        self.network = alignment.network  # registered here: it is trained, and part of checkpoints
        logged = [f"val/{FIGURES[part]}" for part in FIGURES if numbers[part] != 0]
        if numbers["interchange"] != 0:
            logged = ["val/iia_changing", *logged]
        self.monitor, self.monitors = logged[0], ("val/loss", *logged)
        self._source_grad, self.objective = source_grad, objective or CrossEntropy()
        if self.objective.needs_natural:
            raise ValueError(
                f"objective: {type(self.objective).__name__} compares edited activations with "
                "natural ones of a frozen network; IIT trains the network. Choose another, such as "
                "objective=cross_entropy."
            )
        edits = {**alignment.edits, **alignment.inert}
        # The alignment with its inert parts as further edits; the weights are the alignment's. A
        # tuple keeps it from being registered a second time.
        self._edited = (IntervenedModel(alignment.studied or alignment.network, edits),)

    def weights_of(self, name: str) -> "IIT":
        """The network and the interventions."""
        return self

    def trainable(self) -> Iterable[Any]:
        """The network's and the interventions' parameters."""
        return (p for p in self.parameters() if p.requires_grad)

    def check(self, batch: Mapping[str, Any]) -> None:
        """Check a batch before the training.

        Raises ValueError for pairs without own answers where these are trained, and for pairs that
        lack what the objective reads.
        """
        if (
            self._numbers["behaviour"] != 0 or self._numbers["strict"] != 0
        ) and "base_answer" not in batch:
            raise ValueError(
                "The behaviour is trained by the bases' own answers: the pairs need the "
                "column base_answer."
            )
        if self._numbers["interchange"] != 0:
            self.objective.check(batch)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor | None:
        """The loss of one batch; None where no pair in it trains anything."""
        self.anneal(self.alignment.interventions)
        parts = {
            name: self._loss(name, prediction)
            for name, (prediction, _) in self._predictions(batch).items()
        }
        if not parts:
            # Lightning skips the step.
            return None
        loss = self._total(parts, self.now) + self.penalty(self.alignment.interventions)
        self.log_dict(
            {f"train/{name}": part for name, part in parts.items()}, batch_size=len(batch["row"])
        )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["row"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Count right answers, and pairs on which the edited network gives the label."""
        predictions = self._predictions(batch)
        if not predictions:
            return
        parts = {
            name: self._loss(name, prediction) for name, (prediction, _) in predictions.items()
        }
        total = self._total(parts, self.last)
        # A part is a mean over its rows, so each pair counts with the loss of its batch.
        self.count("loss", "", batch["row"], total.expand(len(batch["row"])))
        for part, (prediction, index) in predictions.items():
            right, rows = correct(prediction.logits, prediction.answer), batch["row"][index]
            self.count(FIGURES[part], "", rows, right)
            if part == "interchange":
                changing = batch["changing"][index]
                self.count("iia_changing", "", rows[changing], right[changing])

    def _loss(self, part: str, made: Prediction) -> Tensor:
        # Behaviour and strict are about the base's own answer.
        return (self.objective if part == "interchange" else self.objective.on_own_answer())(
            made
        ).mean()

    def _total(self, parts: Mapping[str, Tensor], weight: Callable[[str], float]) -> Tensor:
        return torch.stack([weight(name) * part for name, part in parts.items()]).sum()

    def _predictions(self, batch: dict[str, Any]) -> dict[str, tuple[Prediction, Tensor]]:
        """{part: (prediction, rows of the batch that it is about)} for each part that has a weight.

        All parts share one run of the network.
        """
        base, n = batch["base"], len(batch["row"])
        every = torch.arange(n)
        rows = {name: every for name in WEIGHTS if self._numbers[name] != 0}
        if "interchange" in rows and self.trained is not None:
            # A pair counts where all that it interchanges is trained.
            untrained = [v for v in batch["sources"] if v not in self.trained]
            flags = [_active(batch, v) for v in untrained]
            rows["interchange"] = every[~torch.stack(flags).any(0)] if flags else every
        rows = {name: index for name, index in rows.items() if len(index)}
        if not rows:
            return {}
        # Each part has its own copy of its bases, with the answer that the network is to give.
        answers = {
            name: base["answer"] if name == "interchange" else batch["base_answer"] for name in rows
        }
        runs = [at_rows(base | {"answer": answers[name]}, index) for name, index in rows.items()]
        (edited,) = self._edited
        # The flags are stacked in the same order as the runs: BoolTensor[sum of the parts' rows].
        active = {
            v: torch.cat([self._flags(v, name, batch)[index] for name, index in rows.items()])
            for v in edited.variables
        }
        sources = self._sources(batch, rows) if set(rows) - {"behaviour"} else None
        logits = edited.answer_logits(stacked(runs), sources, active)
        own_answers = batch.get("base_answer")
        predictions, start = {}, 0
        for (name, index), run in zip(rows.items(), runs, strict=True):
            # Stacked answers are padded to the widest part; each part is cut back to its own
            # answers.
            width = run["answer"].shape[1] if run["answer"].ndim == 2 else 1
            part = logits[start : start + len(index), :width]
            predictions[name] = (
                Prediction(
                    part, run["answer"], None if own_answers is None else own_answers[index]
                ),
                index,
            )
            start += len(index)
        return predictions

    def _flags(self, variable: Any, part: str, batch: dict[str, Any]) -> Tensor:
        """For which pairs a part of the loss edits a variable or inert part, BoolTensor[batch]."""
        n = len(batch["row"])
        if part == "interchange" and variable in batch["sources"]:
            return _active(batch, variable)
        if part == "strict" and variable in self.alignment.inert:
            # Seeded by the step: a resumed run draws what an uninterrupted one draws.
            drawn = torch.Generator().manual_seed(self.global_step)
            which = torch.randint(len(self.alignment.inert), (n,), generator=drawn)
            return which == list(self.alignment.inert).index(variable)
        return torch.zeros(n, dtype=torch.bool)

    def _sources(self, batch: dict[str, Any], rows: Mapping[str, Tensor]) -> dict[Any, Activations]:
        """{variable or inert part: what its edit reads}, for the rows of all parts.

        All sources that some row needs are run in one run, each once. Inert parts read the source
        of the pair's first variable.
        """
        n, sources = len(batch["row"]), batch["sources"]
        read = torch.zeros(n, dtype=torch.bool)
        # The behaviour reads no source.
        read[torch.cat([index for name, index in rows.items() if name != "behaviour"])] = True
        needed = {v: (_active(batch, v) & read).nonzero().flatten() for v in sources}
        stacked_rows = torch.cat(list(rows.values()))
        (edited,) = self._edited
        sites = list(
            dict.fromkeys(site for edit in edited.edits.values() for site in edit.source_sites)
        )
        run = stacked([at_rows(sources[v], index) for v, index in needed.items()])
        captured = capture(edited.studied or edited.network, run, sites, grad=self._source_grad)
        # Row of the batch → row of the run that holds its source, LongTensor[batch]. Where a pair
        # leaves the variable alone, the entry is a placeholder: the edit is not active there. Inert
        # parts have the source of the pair's first variable, −1 until it is known.
        rows_in_run: dict[Any, Tensor] = {}
        first, start = torch.full((n,), -1), 0
        for variable, index in needed.items():
            rows_in_run[variable] = torch.zeros(n, dtype=torch.long)
            rows_in_run[variable][index] = torch.arange(start, start + len(index))
            first[index] = torch.where(first[index] < 0, rows_in_run[variable][index], first[index])
            start += len(index)
        rows_in_run |= dict.fromkeys(self.alignment.inert, first)
        activations = {}
        for key, edit in edited.edits.items():
            for variable in variables_of(key, edit):
                row_in_run = rows_in_run.get(variable)
                if row_in_run is None or not edit.intervention.needs_source:
                    continue
                # From rows of the batch to rows of the stacked parts.
                index = row_in_run[stacked_rows]
                counts = {s: None if c is None else c[index] for s, c in captured.counts.items()}
                activations[variable] = Activations(
                    {site: captured[site][index] for site in edit.source_sites}, counts
                )
        return activations


def _active(batch: dict[str, Any], variable: str) -> Tensor:
    return batch["active"].get(variable, torch.ones(len(batch["row"]), dtype=torch.bool)).cpu()


def _adamw(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)
