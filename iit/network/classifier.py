"""A network without tokens: it gets tensors, and answers with a class."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import signature
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from iit.batch import IGNORED, at_rows
from iit.network.answering import logits_at
from iit.network.dimensions import device_of, dtype_of
from iit.network.fingerprint import fingerprint
from iit.network.inputs import prepare
from iit.network.language_model import LanguageModel
from iit.result import correct


@final
class Classifier:
    """A network under study, frozen and in eval mode: Tensor[batch, …] → Tensor[batch, classes].

    It is the counterpart of `LanguageModel` for networks without tokens.

    Arguments:
        model: any module whose output is, or holds, Tensor[batch, classes] (see `logits_of`).
        name: by default the name of the module's class.
        revision: of a network that was loaded.
    """

    tokenizer = None
    classifies = True

    def __init__(self, model: nn.Module, name: str | None = None, revision: str | None = None):
        self.model = model.eval().requires_grad_(False)
        self.name = name or type(model).__name__
        self.revision = revision
        # Whether integer inputs stay integers; None until `encode` has tried.
        self._takes_integers: bool | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights. Quantised weights, which are integers, do not count."""
        return dtype_of(self.model)

    def fingerprint(self) -> str:
        """A text that tells these weights from others (see `iit.network.fingerprint`)."""
        return fingerprint(self.model)

    def __repr__(self) -> str:
        n = sum(map(Tensor.numel, self.model.parameters()))
        return (
            f"Classifier({self.name}, {type(self.model).__name__}, {n:,} parameters, {self.dtype}, "
            f"{self.device})"
        )

    def encode(
        self, inputs: Any, /, positions: Any = None, answers: Sequence[int | None] | None = None
    ) -> dict[str, Any]:
        """Stack inputs into a batch.

        Arguments:
            inputs: one for each example: a tensor, or numbers that make one, all of one shape. A
                network with several inputs takes {name of the input: tensor} for each example.
                Integers stay integers where the network runs on them.
            positions: roles, which tensors do not have.
            answers: a class for each example; None where there is none.

        Returns:
            {name of the network's input: Tensor[batch, …]}, with "answer": LongTensor[batch, 1]
            where answers are given (−100 for None).

        Raises:
            ValueError: for roles, for no inputs, for examples whose inputs differ in names or
                shapes, and for another number of answers than of inputs.
        """
        if positions:
            raise ValueError(
                f"Tensors have no roles; got {sorted(positions)}. Name positions by number."
            )
        if not len(inputs):
            raise ValueError("There are no inputs to encode.")
        named: list[dict[str, Any]] = []
        for number, example in enumerate(inputs):
            row = dict(example) if isinstance(example, Mapping) else {self.input_name: example}
            named.append(row)
            if row.keys() != named[0].keys():
                raise ValueError(
                    f"Example {number} has the inputs {sorted(row)}; example 0 has "
                    f"{sorted(named[0])}."
                )
        # {name of the input: Tensor[batch, …]}
        batch: dict[str, Any] = {}
        for name in named[0]:
            batch[name] = self._stacked([row[name] for row in named])
        all_floats = all(value.is_floating_point() for value in batch.values())
        if self._takes_integers is None and not all_floats:
            first = at_rows(batch, slice(1))
            # Where neither runs, the inputs are at fault, and the run itself says so.
            if self._runs(first):
                self._takes_integers = True
            elif self._runs(self._as_floats(first)):
                self._takes_integers = False
        if self._takes_integers is False:
            batch = self._as_floats(batch)
        if answers is not None:
            if len(answers) != len(inputs):
                raise ValueError(f"{len(inputs)} inputs need as many answers; got {len(answers)}.")
            classes = [[IGNORED if answer is None else int(answer)] for answer in answers]
            batch["answer"] = torch.tensor(classes)
        return batch

    def answers_right(
        self, inputs: Any, answers: Sequence[int], *, batch_size: int = 1024
    ) -> np.ndarray:
        """Whether each answer is the class with the highest logit: bool[n].

        Arguments:
            batch_size: examples a run.
        """
        batch = self.encode(inputs, answers=answers)
        answer = batch.pop("answer")
        right = []
        for rows in torch.arange(len(answer)).split(batch_size):
            inputs = prepare(self.model, at_rows(batch, rows))
            with torch.no_grad():
                logits = logits_at(inputs.through(self.model), None, gathered=False)
            right.append(correct(logits.cpu(), answer[rows]))
        return torch.cat(right).numpy()

    @cached_property
    def input_name(self) -> str:
        """The name of the network's first input.

        Raises ValueError for a network whose forward names none.
        """
        parameters = signature(self.model.forward).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                return parameter.name
        raise ValueError(
            f"{type(self.model).__name__}.forward names no input; give it one by name: "
            "forward(self, x)."
        )

    def _stacked(self, values: Sequence[Any]) -> Tensor:
        stacked = torch.as_tensor(np.stack(list(map(np.asarray, values))))
        if stacked.is_floating_point():
            return stacked.to(self.dtype)
        return stacked if stacked.dtype == torch.bool else stacked.long()

    def _as_floats(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.dtype) for name, value in inputs.items()}

    def _runs(self, inputs: Mapping[str, Tensor]) -> bool:
        try:
            with torch.no_grad():
                on_device = {name: value.to(self.device) for name, value in inputs.items()}
                self.model(**on_device)
        except (RuntimeError, IndexError):
            return False
        return True


Network = LanguageModel | Classifier
"""A network under study, with the methods that encode its inputs and ask for its answers."""
