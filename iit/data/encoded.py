"""Pairs as tensors: a split is encoded once, and batches are cut from it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from iit.batch import IGNORED, at_rows, narrowed, trimmed
from iit.data.table import SOURCE, names_of, source_column

Cost = Callable[[Any, Any], Tensor | None]
"""(base, active) → what each example costs to run, LongTensor[batch]; None where it is unknown.

A cost is a number of positions. A batch of examples of equal cost holds the least padding.
"""


@runtime_checkable
class Encoder(Protocol):
    """What encoding asks of a network."""

    def encode(
        self, inputs: Sequence[Any], /, positions: Any = None, answers: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """A batch of the network's inputs, with positions and answers."""
        ...


class EncodedPairs(torch.utils.data.Dataset[int]):
    """A split of pairs, encoded: `batch(rows)` gives tensors.

    A batch has these entries:

    - "base": {the network's inputs, positions, answer}. The answer is the pair's label.
    - "sources": {variable: {the inputs, positions}}. Where answers are longer than one token, a
        source has its own answer, too.
    - "active": {variable: BoolTensor[batch]}, only for variables that some pairs leave alone. Where
        it is False, the base stands in for the source.
    - "changing": BoolTensor[batch].
    - "row": LongTensor[batch], rows of this split.
    - "base_answer": LongTensor[batch, n], where the pairs know it.
    - "natural": {the inputs, positions} of the natural counterparts, where the pairs have such a
        column. Where answers are longer than one token, the label is their answer.
    - "has_natural": BoolTensor[batch], beside "natural".

    Arguments:
        pairs: the split's table.
        variables: those whose values are interchanged.
        network: encodes prompts, roles and answers.

    Attributes:
        interchanged: the variables that each pair swaps.
        labels, kinds, asked: the columns `label`, `kind` and `asked` (see `COLUMNS`). The last two
            are None where the pairs have no such column.
        alternatives: {name: LongTensor[n, n_answer]}, answers to the base other than the label, as
            far as the pairs know them. "base" is its own answer, "source/VARIABLE" the source's,
            "rival/NAME" what a rival answers. In a pair without such an answer the label stands in.
        speaks: {rival: BoolTensor[n]}, whether the rival has a label for the pair.
        clusters: int[n], equal for pairs of one template where the pairs know it, else of one base.
    """

    def __init__(self, pairs: Dataset, variables: str | Sequence[str], network: Encoder):
        columns: Any = pairs[:]
        # Tensors are read as NumPy arrays, not as nested lists.
        if not isinstance(columns["base"][0], str):
            columns |= pairs.select_columns(
                [c for c in columns if c.partition("[")[0] in ("base", "source", "natural")]
            ).with_format("numpy")[:]
        self.variables = names_of(variables)
        n = len(pairs)
        swapped_names = columns.get("interchanged")
        self.interchanged = (
            [self.variables] * n
            if swapped_names is None
            else [tuple(names) for names in swapped_names]
        )
        self._base = _encode(network, columns["base"], columns.get("base_roles"), columns["label"])
        self._sources: dict[str, dict[str, Any]] = {}
        self._active: dict[str, Tensor] = {}
        self.alternatives: dict[str, Tensor] = {}
        for variable in self.variables:
            swapped = [variable in names for names in self.interchanged]
            # Where a pair leaves the variable alone, its base and label stand in.
            parts = []
            for name, stand_in in zip(SOURCE, ("base", "label", "base_roles"), strict=True):
                part = columns.get(source_column(name, variable, self.variables))
                if part is not None:
                    part = [
                        (part if is_swapped else columns[stand_in])[i]
                        for i, is_swapped in enumerate(swapped)
                    ]
                parts.append(part)
            prompts, answers, roles = parts
            if None in (answers or ()):
                answers = None
            source = self._sources[variable] = _encode(network, prompts, roles, answers)
            if answers is not None:
                self.alternatives[f"source/{variable}"] = source["answer"]
                # A source's answer is read only by sites at the answer's own tokens. An answer of
                # one token has none: it is predicted, and never an input.
                if self._base["answer"].shape[1] == 1:
                    del source["answer"]
            if not all(swapped):
                self._active[variable] = torch.tensor(swapped)
        self._base_answer = None
        base_answers = columns.get("base_answer", [None])
        # If one base lacks its own answer, the split has none.
        if None not in base_answers:
            self._base_answer = _answers(network, columns["base"], base_answers)
        self._natural = None
        if "natural" in columns:
            # A natural counterpart has the answer that the interchange asks for.
            answers = None if self._base["answer"].shape[1] == 1 else columns["label"]
            roles = columns.get("natural_roles")
            self._natural = _encode(network, columns["natural"], roles, answers)
        self._has_natural = torch.tensor(columns.get("has_natural") or [True] * n)
        rivals = columns.get("rival_labels") or [{}]
        # A rival that lacks a variable says nothing of some pairs: there the label stands in, and
        # `speaks` is False.
        self.speaks: dict[str, Tensor] = {}
        for name in rivals[0]:
            answers = [row[name] for row in rivals]
            self.speaks[name] = torch.tensor([answer is not None for answer in answers])
            # A rival without any label here has no alternative answers.
            if bool(self.speaks[name].any()):
                rows = zip(answers, columns["label"], strict=True)
                filled = [label if answer is None else answer for answer, label in rows]
                self.alternatives[f"rival/{name}"] = _answers(network, columns["base"], filled)
        self.changing = torch.tensor([bool(changing) for changing in columns["changing"]])
        # Answers that are written in different ways may be the same tokens.
        if self._base_answer is not None:
            self.alternatives["base"] = self._base_answer
            self.changing &= torch.tensor(differ(self._base["answer"], self._base_answer))
        self.labels, self.kinds, self.asked = (
            columns["label"],
            columns.get("kind"),
            columns.get("asked"),
        )
        self.bases = [base if isinstance(base, str) else base.tobytes() for base in columns["base"]]
        # Numbers in place of templates or bases: pairs with the same number belong together.
        self.clusters = np.unique(columns.get("template") or self.bases, return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self.bases)

    def __getitem__(self, index: int) -> int:
        """The row number itself; a loader's `collate_fn` is `batch`."""
        return index

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """The pairs of these rows, padded to the longest prompt among them."""
        index = torch.as_tensor(list(rows))
        batch = {
            "base": trimmed(at_rows(self._base, index)),
            "sources": {
                name: trimmed(at_rows(source, index)) for name, source in self._sources.items()
            },
            "active": {variable: active[index] for variable, active in self._active.items()},
            "changing": self.changing[index],
            "row": index,
        }
        if self._natural is not None:
            batch |= {
                "natural": trimmed(at_rows(self._natural, index)),
                "has_natural": self._has_natural[index],
            }
        if self._base_answer is not None:
            batch["base_answer"] = narrowed(self._base_answer[index])
        return batch

    def costs(self, cost: Cost | None) -> Tensor:
        """The cost of running each pair, LongTensor[n]; pairs of equal cost should share a batch.

        Arguments:
            cost: says the cost from bases and `active`. Where it is None or says nothing, prompts
                cost their lengths.
        """
        lengths = torch.zeros(len(self), dtype=torch.long)
        for encoded in (self._base, *self._sources.values()):
            if "attention_mask" in encoded:
                # Base and source lengths in one number, as digits to the base 10,000: rows of equal
                # lengths sort together.
                lengths = lengths * 10_000 + encoded["attention_mask"].sum(1)
        if cost is None:
            return lengths
        whole = self.batch(range(len(self)))
        costs = cost(whole["base"], whole["active"])
        return lengths if costs is None else costs.cpu()

    def batches(
        self, size: int, cost: Cost | None = None, *, apart: bool = False
    ) -> Iterator[dict[str, Any]]:
        """All pairs in batches of about equal cost; the batches' `row` says which pairs they hold.

        Arguments:
            size: pairs a batch.
            cost: as in `costs`.
            apart: whether a batch holds only pairs that interchange the same variables. A single
                pair that would be left over joins the others, if there are any.
        """
        order = self.costs(cost).argsort(stable=True).tolist()
        for variables in dict.fromkeys(self.interchanged) if apart else (None,):
            rows = [row for row in order if variables in (None, self.interchanged[row])]
            # One more a batch, where the last batch would hold a single pair.
            n = size + int(apart and len(rows) % size == 1)
            for start in range(0, len(rows), n):
                yield self.batch(rows[start : start + n])


def _encode(
    network: Encoder, given: Any, roles: Any, answers: Sequence[Any] | None
) -> dict[str, Any]:
    positions = None
    if roles is not None:
        names = dict.fromkeys(name for row in roles for name in row)
        spans = {name: [row.get(name) for row in roles] for name in names}
        positions = {
            name: [None if span is None else slice(*span) for span in column]
            for name, column in spans.items()
        }
    return network.encode(list(given), positions=positions, answers=answers)


def _answers(network: Encoder, given: Any, answers: Sequence[Any]) -> Tensor:
    return network.encode(list(given), answers=answers)["answer"]


def differ(answers: Tensor, others: Tensor) -> list[bool]:
    """Whether each answer has other tokens than its counterpart.

    Where several tokens are right, their order does not matter.
    """

    def said(answer: Tensor) -> list[list[int]]:
        rows = [[token for token in row if token != IGNORED] for row in answer.flatten(1).tolist()]
        # [batch, 1, n_right] holds a set of right tokens, [batch, n_answer] a sequence.
        return [sorted(set(row)) for row in rows] if answer.ndim == 3 else rows

    return [one != other for one, other in zip(said(answers), said(others), strict=True)]
