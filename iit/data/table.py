"""The table of pairs: its columns, and how it stores prompts, tensors and roles."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from iit.causal import Prompt
from iit.data.pairing import Paired

COLUMNS = {
    "split": "train | validation | test",
    "interchanged": (
        "the variables whose values are swapped in this pair; only where the pairs are for several"
    ),
    "base": "the prompt that is edited: text, or a tensor of finite numbers, "
    "of one shape in all rows (several inputs as one tensor)",
    "source": "the prompt whose value is swapped in, written as the base is",
    "label": (
        "what the causal model answers after the interchange: text that continues the base (a list "
        "where each is right), or a class"
    ),
    "base_answer": "the base's own answer (null in own pairs without that column)",
    "source_answer": "the source's own answer (null likewise)",
    "changing": "whether the label differs from the base's own answer",
    "kind": (
        "which of the task's variables have another value in the source, joined by +; none where "
        "none has. Sampled pairs only"
    ),
    "asked": (
        "whether the base asks for a swapped variable: else its answer is to stay whatever the "
        "value. Only of tasks that ask"
    ),
    "template": "which template the base has: texts, or whole numbers; of sampled pairs only "
    "where no "
    "template occurs in two splits. Intervals are then about other templates",
    "base_roles": "role → [start, stop] in characters of the base, stop beyond start "
    "(null where the prompt lacks the role); texts only",
    "source_roles": "the same of the source",
    "natural": (
        "a prompt whose own variables and answer have the values that the interchange asks for; "
        "the base where there is none"
    ),
    "natural_roles": "the roles of that prompt",
    "has_natural": "whether there is one",
    "rival_labels": (
        "rival → what that causal model answers to the same interchange; tasks with rivals only"
    ),
}
"""{column of `Pairs.dataset` and of saved files: what it holds}.

With several variables each has columns of its own: `source[VARIABLE]`, `source_answer[VARIABLE]`
and `source_roles[VARIABLE]`. They are null in a pair that leaves the variable alone. Without a
variable there is no source.
"""
SOURCE = ("source", "source_answer", "source_roles")


def source_column(name: str, variable: str, variables: Sequence[str]) -> str:
    """The name of a source's column: the plain name where there is one variable."""
    return name if len(variables) == 1 else f"{name}[{variable}]"


def columns_of(
    pairs: Paired,
    split: str,
    natural: Sequence[Any] | None = None,
    *,
    unseen_templates: bool = False,
    asks: str | None = None,
) -> dict[str, list[Any]]:
    """Sampled pairs as columns of the table.

    Arguments:
        pairs: the pairs.
        split: the split that they are for.
        natural: for each pair its natural counterpart as it is written, or None.
        unseen_templates: whether no template occurs in two splits; the templates then get a column.
        asks: as in `Task`.
    """
    variables = tuple(pairs.sources)
    n = len(pairs.bases)
    columns: dict[str, list[Any]] = {
        "split": [split] * n,
        "base": pairs.bases.given,
        "base_roles": [_roles(prompt) for prompt in pairs.bases.written],
        "label": pairs.labels,
        "base_answer": pairs.bases.answers,
        "changing": pairs.changing.tolist(),
    }
    if unseen_templates and "template" in pairs.bases.inputs:
        columns["template"] = pairs.bases.inputs["template"]
    if pairs.kinds is not None:
        columns["kind"] = pairs.kinds
    if asks is not None:
        # A pair asks for a swapped variable where the variable that its base names has a source.
        nothing = [None] * n
        names = enumerate(pairs.bases.inputs[asks])
        columns["asked"] = [pairs.sources.get(name, nothing)[i] is not None for i, name in names]
    if natural is not None:
        # A pair without a counterpart has its base in the column; `has_natural` tells.
        written = [
            base if prompt is None else prompt
            for prompt, base in zip(natural, pairs.bases.written, strict=True)
        ]
        columns |= {
            "natural": [_given(prompt) for prompt in written],
            "natural_roles": [_roles(prompt) for prompt in written],
        }
        columns["has_natural"] = [prompt is not None for prompt in natural]
    if pairs.rivals:
        columns["rival_labels"] = [
            dict(zip(pairs.rivals, row, strict=True))
            for row in zip(*pairs.rivals.values(), strict=True)
        ]
    if len(variables) > 1:
        columns["interchanged"] = [
            [v for v in variables if pairs.sources[v][i] is not None] for i in range(n)
        ]
    for variable, prompts in pairs.sources.items():
        parts = [
            [_given(prompt) for prompt in prompts],
            pairs.source_answers[variable],
            [_roles(prompt) for prompt in prompts],
        ]
        for name, part in zip(SOURCE, parts, strict=True):
            columns[source_column(name, variable, variables)] = part
    return columns


def dataset(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """A dataset of these columns, in the order of `COLUMNS`, without those that hold nothing."""
    # Columns such as `source[a]` stand where `source` does; columns of the user's own come last.
    order = [*COLUMNS, *(name.partition("[")[0] for name in columns)]
    names = sorted(columns, key=lambda name: (order.index(name.partition("[")[0]), name))
    arrays = {name: _array(name.partition("[")[0], columns[name]) for name in names}
    return from_table(
        pa.table({name: array for name, array in arrays.items() if array is not None})
    )


def from_table(table: pa.Table) -> Dataset:
    """A dataset that holds this table."""
    # Left alone, datasets would pickle the whole table to name it.
    digest = hashlib.sha256(repr(table.schema).encode())
    for buffer in (
        b
        for column in table.columns
        for chunk in column.chunks
        for b in chunk.buffers()
        if b is not None
    ):
        digest.update(buffer)
    return Dataset(table, fingerprint=digest.hexdigest())


def _given(prompt: Any) -> Any:
    return prompt.text if isinstance(prompt, Prompt) else prompt


def _roles(prompt: Any) -> Mapping[str, Any] | None:
    return prompt.roles if isinstance(prompt, Prompt) else None


def _array(kind: str, values: Sequence[Any]) -> pa.Array | None:
    """A column as an Arrow array; None where it holds nothing.

    Arguments:
        kind: the name of the column, without the variable in brackets.
    """
    if kind in ("base", "source", "natural"):
        first = next((value for value in values if value is not None), None)
        return pa.array(values, pa.string()) if isinstance(first, str) else _tensors(values)
    if kind in ("base_answer", "source_answer", "label", "split", "kind", "template"):
        return _answers(values)
    if kind not in COLUMNS:
        return _kept(values)
    if kind in ("changing", "asked", "has_natural", "interchanged"):
        return pa.array(values, pa.list_(pa.string()) if kind == "interchanged" else pa.bool_())
    # Roles and rivals: the keys that some row has, each a field of a struct.
    names = sorted({key for keys in {tuple(value) for value in values if value} for key in keys})
    if not names:
        return None
    if kind == "rival_labels":
        return pa.StructArray.from_arrays(
            [_answers([v.get(rival) if v else None for v in values]) for rival in names], names
        )
    return pa.StructArray.from_arrays(
        [_spans([v.get(role) if v else None for v in values]) for role in names], names
    )


def _kept(values: Sequence[Any]) -> pa.Array:
    """A column of the user's own: as it is, or as JSON where it holds several types, or {}."""
    with suppress(pa.ArrowException, OverflowError):
        array = pa.array(values)
        if "struct<>" not in str(array.type):
            return array
    return pa.array([json.dumps(value, default=str) for value in values])


def _answers(answers: Sequence[Any]) -> pa.Array:
    """An array of texts, of lists of texts each of which is right, or of classes."""
    if any(isinstance(answer, list) for answer in answers):
        # One list is enough to make lists of all.
        answers = [[answer] if isinstance(answer, str) else answer for answer in answers]
    first = next((answer for answer in answers if answer is not None), "")
    if isinstance(first, str | int):
        return pa.array(answers, pa.string() if isinstance(first, str) else pa.int64())
    # Many pairs have few different lists: each list is built once, and then taken by its number.
    index = {
        answer: number
        for number, answer in enumerate(
            dict.fromkeys(None if a is None else tuple(a) for a in answers)
        )
    }
    table = pa.array(
        [None if answer is None else list(answer) for answer in index], pa.list_(pa.string())
    )
    return table.take(
        pa.array([index[None if answer is None else tuple(answer)] for answer in answers])
    )


def _spans(spans: Sequence[Sequence[int] | None]) -> pa.Array:
    """An array of [start, stop], null where there is none."""
    present = np.array([span is not None for span in spans])
    flat = np.fromiter(
        chain.from_iterable(span for span in spans if span is not None), dtype=np.int64
    )
    # A list array is flat values and offsets: each span that is present takes two values.
    offsets = np.concatenate([[0], 2 * present.cumsum()])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32(), mask=np.append(~present, False)), pa.array(flat)
    )


def _tensors(values: Sequence[Any]) -> pa.Array:
    """An array of nested lists of fixed sizes, made from one block of memory."""
    first = np.asarray(next(value for value in values if value is not None))
    # A missing tensor, of a variable that is left alone, is stored as zeros.
    block = np.stack(
        [np.zeros_like(first) if value is None else np.asarray(value) for value in values]
    )
    block = block.astype(np.int64 if block.dtype.kind in "iu" else np.float32)
    array: pa.Array = pa.array(block.reshape(-1))
    # From the innermost dimension outwards.
    for size in reversed(block.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array
