"""A network fed with tensors that answers with a class."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import nn

from iit.network.answering import IGNORED
from iit.network.language_model import LanguageModel
from iit.result import correct


@final
class Classifier:
    """A network under study, frozen and in eval mode: Tensor[batch, …] → Tensor[batch, classes].

    The counterpart of `LanguageModel` for networks without tokens.
    """

    tokenizer = None

    def __init__(self, model: nn.Module, name: str | None = None, revision: str | None = None):
        self.model = model.eval().requires_grad_(False)
        self.name = name or type(model).__name__
        self.revision = revision

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return next(self.model.parameters()).dtype

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        return f"Classifier({self.name}, {type(self.model).__name__}, {n:,} parameters, {self.dtype}, {self.device})"

    def encode(self, inputs: Any, /, positions: Any = None, answers: Sequence[int | None] | None = None) -> dict[str, Any]:
        """`{"x": Tensor[batch, …], "answer": LongTensor[batch, 1]}` (the answer where it is given).

        inputs: tensors of one shape, or numbers from which they are made.
        Raises ValueError for roles, which tensors do not have, for no inputs, and for numbers that do not fit.
        """
        if positions:
            raise ValueError(f"Tensors have no roles; got {sorted(positions)}. Name positions by number.")
        if not len(inputs):
            raise ValueError("There are no inputs to encode.")
        batch: dict[str, Any] = {"x": torch.as_tensor(np.stack([np.asarray(x, dtype=np.float32) for x in inputs])).to(self.dtype)}
        if answers is not None:
            if len(answers) != len(inputs):
                raise ValueError(f"{len(inputs)} inputs need as many answers; got {len(answers)}.")
            batch["answer"] = torch.as_tensor([IGNORED if a is None else int(a) for a in answers]).unsqueeze(1)
        return batch

    def answers_right(self, inputs: Any, answers: Sequence[int], *, batch_size: int = 1024) -> np.ndarray:
        """bool[n]: is each answer the class with the highest logit?"""
        batch = self.encode(inputs, answers=answers)
        with torch.no_grad():
            logits = [self.model(x.to(self.device)).cpu() for x in batch["x"].split(batch_size)]
        return correct(torch.cat(logits).unsqueeze(1), batch["answer"]).numpy()


Network = LanguageModel | Classifier
"""A network under study, with what encodes its inputs and asks for its answers."""
