"""Pairs as tensors: a split is encoded once, and batches are cut from it."""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import chain
from operator import ne
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from iit.batch import IGNORED, at_rows, narrowed, trimmed
from iit.data.prompts import key_of, pictured
from iit.data.table import SOURCE, names_of, source_column
from iit.progress import progress

Cost = Callable[[Any, Any], Tensor | None]
"""(base, active) → what each example costs to run, LongTensor[batch]; None where it is unknown.

Costs are only compared: a batch of examples of equal cost holds the least padding.
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
        table: the split's table.
        labels, kinds, asked: the columns `label`, `kind` and `asked` (see `COLUMNS`). The last two
            are None where the pairs have no such column.
        alternatives: {name: LongTensor[n, n_answer]}, answers to the base other than the label, as
            far as the pairs know them. "base" is its own answer, "source/VARIABLE" the source's,
            "rival/NAME" what a rival answers. In a pair without such an answer the label stands in.
            Where one of several right answers has several tokens, the first one is the answer;
            NAME#1 and so on are the others, with #1 for the label.
        speaks: {rival: BoolTensor[n]}, whether the rival has a label for the pair.
        clusters: int[n], equal for pairs of one case where the pairs know it, else of one base.
    """

    def __init__(self, pairs: Dataset, variables: str | Sequence[str], network: Encoder):
        columns: Any = pairs[:]
        # Tensors are read as NumPy arrays, not as nested lists.
        if not isinstance(columns["base"][0], str):
            tensors = [c for c in columns if c.partition("[")[0] in ("base", "source", "natural")]
            columns |= pairs.select_columns(tensors).with_format("numpy")[:]
        base = columns["base"]
        if "base_image" in columns:
            base = list(map(pictured, base, columns["base_image"]))
        self.variables = names_of(variables)
        self.interchanged = list(
            map(tuple, columns.get("interchanged", [self.variables] * len(pairs)))
        )
        self.table, self.labels = pairs, columns["label"]
        self.kinds = columns.get("kind")
        self.asked = columns.get("asked")
        self.alternatives: dict[str, Tensor] = {}

        def encoded(name: str, prompts: Any, answers: Any, roles: Any = None) -> dict[str, Any]:
            """Encode prompts, and keep their further right answers under numbered names."""
            if answers is None or isinstance(answers[0], str | int):
                return _encode(network, prompts, answers, roles)
            # Each right answer by itself; a prompt with fewer of them repeats its last one.
            batches = []
            for number in range(max(map(len, answers))):
                column = [row[min(number, len(row) - 1)] for row in answers]
                batches.append(_encode(network, prompts, column, roles))
            if all(batch["answer"].shape[1] == 1 for batch in batches):
                return _encode(network, prompts, answers, roles)
            for number, batch in enumerate(batches[1:], 1):
                self.alternatives[f"{name}#{number}"] = batch["answer"]
            return batches[0]

        self._base = encoded("", base, self.labels, columns.get("base_roles"))
        # An answer of one token is predicted, and never an input.
        is_read = self._base["answer"].shape[1] > 1
        self._sources: dict[str, dict[str, Any]] = {}
        self._active: dict[str, Tensor] = {}
        for variable in self.variables:
            swapped = [variable in names for names in self.interchanged]
            source_columns = []
            for name, stand_in in SOURCE.items():
                column = columns.get(source_column(name, variable, self.variables))
                source_columns.append(_filled(column, columns.get(stand_in), swapped))
            prompts, answers, roles, images = source_columns
            if images is not None:
                prompts = list(map(pictured, prompts, images))
            if answers is not None and None in answers:
                answers = None
            name = f"source/{variable}"
            source = self._sources[variable] = encoded(name, prompts, answers, roles)
            if answers is not None:
                self.alternatives[name] = source["answer"]
                # Only sites at the answer's own tokens read a source's answer.
                if not is_read:
                    del source["answer"]
            if not all(swapped):
                self._active[variable] = torch.tensor(swapped)
        self._natural: dict[str, Any] | None = None
        if "natural" in columns:
            # A natural counterpart has the answer that the interchange asks for.
            answers, roles = None, columns.get("natural_roles")
            if is_read:
                answers = self.labels
            self._natural = encoded("", columns["natural"], answers, roles)
            self._has_natural = torch.tensor(columns.get("has_natural", [True] * len(pairs)))
        rivals = columns.get("rival_labels", [{}])
        # A rival that lacks a variable says nothing of some pairs: there the label stands in, and
        # `speaks` is False.
        self.speaks: dict[str, Tensor] = {}
        for name in rivals[0]:
            answers = [row[name] for row in rivals]
            speaks = [answer is not None for answer in answers]
            self.speaks[name] = torch.tensor(speaks)
            # A rival without any label here has no alternative answers.
            if any(speaks):
                answers = _filled(answers, self.labels, speaks)
                name = f"rival/{name}"
                self.alternatives[name] = encoded(name, base, answers)["answer"]
        self.changing = torch.tensor(columns["changing"], dtype=torch.bool)
        base_answers = columns.get("base_answer", [None])
        # If one base lacks its own answer, the split has none.
        if None not in base_answers:
            answer = encoded("base", base, base_answers)["answer"]
            self.alternatives["base"] = answer
            # Answers that are written in different ways may be the same tokens.
            self.changing &= torch.tensor(differ(self._base["answer"], answer))
        self.bases = list(map(key_of, base))
        # Numbers in place of cases or bases: pairs with the same number belong together.
        self.clusters = np.unique(
            columns.get("case", columns.get("template", self.bases)), return_inverse=True
        )[1]

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
            "active": at_rows(self._active, index),
            "changing": self.changing[index],
            "row": index,
        }
        if self._natural is not None:
            batch["natural"] = trimmed(at_rows(self._natural, index))
            batch["has_natural"] = self._has_natural[index]
        if "base" in self.alternatives:
            batch["base_answer"] = narrowed(self.alternatives["base"][index])
        return batch

    def with_sources(self, names: Sequence[str], rows: np.ndarray) -> "EncodedPairs":
        """The same pairs, in which the bases of other rows are sources under further names.

        Arguments:
            rows: int[n], whose base is the source of each pair.
        """
        pairs = copy(self)
        pairs._sources = self._sources | dict.fromkeys(names, at_rows(self._base, rows))
        return pairs

    def costs(self, cost: Cost | None) -> Tensor:
        """The cost of running each pair, LongTensor[n]; pairs of equal cost should share a batch.

        Arguments:
            cost: says the cost from bases and `active`. Where it is None or says nothing, prompts
                cost their lengths.
        """
        if cost is not None:
            whole = self.batch(range(len(self)))
            costs = cost(whole["base"], whole["active"])
            if costs is not None:
                return costs.cpu()
        lengths = [torch.zeros(len(self), dtype=torch.long)]
        for encoded in (self._base, *self._sources.values()):
            if "attention_mask" in encoded:
                lengths.append(encoded["attention_mask"].sum(1))
        # LongTensor[n, prompts]. The cost is the place of a row of lengths among all such rows in
        # lexicographic order: pairs of equal lengths cost the same.
        return torch.stack(lengths, 1).unique(dim=0, return_inverse=True)[1]

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
        groups: Any = [None]
        if apart:
            groups = dict.fromkeys(self.interchanged)
        for variables in groups:
            rows = [row for row in order if variables in (None, self.interchanged[row])]
            # A control gives each pair what was read of its neighbour, so no pair may be alone.
            # Batches get one pair more where the last one would hold a single pair.
            n = size + int(apart and len(rows) % size == 1)
            for start in progress(range(0, len(rows), n), "Running pairs"):
                yield self.batch(rows[start : start + n])


def _encode(
    network: Encoder, prompts: Any, answers: Sequence[Any] | None, roles: Any = None
) -> dict[str, Any]:
    positions = None
    if roles is not None:
        positions = {}
        for name in dict.fromkeys(chain.from_iterable(roles)):
            positions[name] = [slice(*row[name]) if row.get(name) else None for row in roles]
    return network.encode(list(prompts), positions=positions, answers=answers)


def _filled(column: Any, stand_ins: Any, present: Sequence[bool]) -> Any:
    """The column with stand-ins in the rows that have no value; None where there is no column."""
    if column is None or all(present):
        return column
    filled = list(stand_ins)
    for row in np.flatnonzero(present):
        filled[row] = column[row]
    return filled


def differ(answers: Tensor, others: Tensor) -> list[bool]:
    """Whether each answer has other tokens than its counterpart.

    Where several tokens are right, their order does not matter.
    """
    return list(map(ne, _comparable_tokens(answers), _comparable_tokens(others)))


def _comparable_tokens(answers: Tensor) -> list[list[int]]:
    rows = []
    for row in answers.flatten(1).tolist():
        tokens = [token for token in row if token != IGNORED]
        # [batch, 1, n_alternatives] holds a set of right tokens, [batch, n_answer] a sequence.
        if answers.ndim == 3:
            tokens = sorted(set(tokens))
        rows.append(tokens)
    return rows
