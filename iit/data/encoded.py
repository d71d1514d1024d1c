"""Pairs as tensors: each split is tokenized once, batches are cut from it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from datasets import Dataset
from torch import Tensor

IGNORED = -100


@runtime_checkable
class Encoder(Protocol):
    """What encoding asks of a network: `LanguageModel.encode`."""

    def encode(self, texts: Sequence[str], positions: Any = None, answers: Sequence[str] | None = None) -> dict[str, Any]:
        """Token batch with roles and answers."""
        ...


class EncodedPairs(torch.utils.data.Dataset[int]):
    """A split of pairs, tokenized: `batch(rows)` gives tensors.

    A batch is `{"base": {input_ids, attention_mask, positions, answer}, "sources": {variable: {…}}, "changing": BoolTensor[batch],
    "row": LongTensor[batch]}`; the base's answer is the pair's label.
    """

    def __init__(self, pairs: Dataset, variable: str, network: Encoder):
        rows = pairs.to_list()
        self.variable = variable
        self._base = _encode(network, rows, "base", [row["label"] for row in rows])
        self._source = _encode(network, rows, "source", None)
        self.changing = torch.tensor([row["changing"] for row in rows])
        self.bases = [row["base"] for row in rows]

    def __len__(self) -> int:
        return len(self.bases)

    def __getitem__(self, index: int) -> int:
        """The row number itself: a loader's `collate_fn` is `batch`."""
        return index

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """The pairs of these rows, padded to the longest among them."""
        index = torch.as_tensor(list(rows))
        return {
            "base": _cut(self._base, index),
            "sources": {self.variable: _cut(self._source, index)},
            "changing": self.changing[index],
            "row": index,
        }

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        """All pairs in batches of similar length; `row` tells which they are."""
        lengths = self._base["attention_mask"].sum(1) * 10_000 + self._source["attention_mask"].sum(1)
        for chunk in lengths.argsort(stable=True).split(size):
            yield self.batch(chunk.tolist())


def _encode(network: Encoder, rows: Sequence[Mapping[str, Any]], side: str, answers: Sequence[str] | None) -> dict[str, Any]:
    names = rows[0][f"{side}_roles"].keys()
    spans = {name: [row[f"{side}_roles"][name] for row in rows] for name in names}
    positions = {name: [None if span is None else slice(*span) for span in column] for name, column in spans.items()}
    return network.encode([row[side] for row in rows], positions=positions, answers=answers)


def _cut(encoded: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
    longest = int(encoded["attention_mask"][index].sum(1).max())
    cut: dict[str, Any] = {key: encoded[key][index, :longest] for key in ("input_ids", "attention_mask")}
    cut["positions"] = {role: _narrow(value[index]) for role, value in encoded["positions"].items()}
    if "answer" in encoded:
        cut["answer"] = _narrow(encoded["answer"][index])
    return cut


def _narrow(index: Tensor) -> Tensor:
    """Without the trailing columns that are absent in every row; at least one column stays."""
    used = (index != IGNORED).any(0).nonzero()
    return index[:, : int(used.max()) + 1 if len(used) else 1]
