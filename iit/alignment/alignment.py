"""The alignment: which edit realises which variable."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from iit.intervened import Edit, IntervenedModel
from iit.intervention import Intervention
from iit.network import LanguageModel, Network
from iit.result import Row, correct
from iit.site import Site, resolve


class Alignment(IntervenedModel):
    """The claim {variable: Edit} that is trained, scored, saved and shared.

    Everything an `IntervenedModel` does; `iit.fit` trains its interventions, `iit.evaluate` scores them. Its saved folder has
    `alignment.json` beside an intervened model's files: the variables, and the rows it was last scored with.
    """

    rows: Sequence[Row] = ()

    @property
    def tokenizer(self) -> Any:
        """The network's tokenizer; None for a `Classifier`. Raises ValueError when the alignment was made without a language model."""
        return self._encoding().tokenizer

    def encode(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's own `encode`."""
        return self._encoding().encode(*args, **kwargs)

    def answers_right(self, texts: Sequence[Any], answers: Sequence[Any], *, batch_size: int = 64) -> np.ndarray:
        """bool[n]: does the network, unedited, give each answer? What these runs compute is kept in the `store`, if there is one.

        With this an alignment may stand for its network in `Pairs.sample`: a prompt is then run once for filtering, training
        and evaluation.
        """
        studied = self._encoding()
        if not isinstance(studied, LanguageModel):
            return studied.answers_right(texts, answers)
        encoded = self.encode(texts, answers=answers)
        right = np.zeros(len(texts), dtype=bool)
        inactive = dict.fromkeys(self.variables, False)
        for rows in encoded["attention_mask"].sum(1).argsort(stable=True).split(batch_size):
            longest = int(encoded["attention_mask"][rows].sum(1).max())
            batch = {key: encoded[key][rows, :longest] for key in ("input_ids", "attention_mask")} | {
                "answer": encoded["answer"][rows]
            }
            with torch.no_grad():
                logits = self.answer_logits(batch, active=inactive)
            right[rows.numpy()] = correct(logits.cpu(), batch["answer"]).numpy()
        return right

    def _encoding(self) -> Network:
        if self.studied is None:
            raise ValueError("Texts need a tokenizer: make the alignment with the LanguageModel from iit.load_network.")
        return self.studied

    def _record(self) -> dict[str, Any]:
        return {"variables": [str(v) for v in self.variables], "rows": [row.to_dict() for row in self.rows]}

    def _recall(self, record: dict[str, Any] | None) -> None:
        self.rows = [Row.from_dict(row) for row in record["rows"]] if record is not None else []


def one(network: Network | nn.Module, variable: str, site: Site, intervention: Callable[..., Intervention]) -> Alignment:
    """Align one variable with one site; the site's width completes the intervention.

    intervention: called as `intervention(width=…)`.
    Raises ValueError for a site whose width only a run can tell: pass a finished intervention to `Alignment` there.
    """
    width = resolve(network.model if isinstance(network, Network) else network, site).width
    if width is None:
        raise ValueError(f"The width of site {site} is known only when it runs; use Alignment(network, {{name: Edit(…)}}) there.")
    return Alignment(network, {variable: Edit([site], intervention(width=width))})


def none(network: Network | nn.Module) -> Alignment:
    """No claim at all: the network itself, which `IIT` then trains on the task alone."""
    return Alignment(network, {})
