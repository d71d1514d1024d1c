"""The table of pairs: its columns, and how it stores prompts, tensors and roles."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import ne
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from datasets import Dataset

from iit.data.prompts import Prompts

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
        "whether the base asks for a swapped variable; where it does not, its answer stays. Only "
        "of tasks whose prompts ask for a variable"
    ),
    "case": (
        "the base's entry of a pool that is divided among the splits, such as its template: texts "
        "or whole numbers. Intervals are clustered by it. Sampled pairs have it where a pool of "
        "one of their inputs is divided (`template` in older files)"
    ),
    "base_roles": "role → [start, stop] in characters of the base, stop beyond start "
    "(null where the prompt lacks the role); texts only",
    "source_roles": "the same of the source",
    "base_image": "a picture that belongs to the base: its file, or the bytes of one. For networks "
    "that take images; the base holds their placeholder once",
    "source_image": "the same of the source",
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

With several variables each has columns of its own: `source[VARIABLE]`, `source_answer[VARIABLE]`,
`source_roles[VARIABLE]` and `source_image[VARIABLE]`. They are null in a pair that leaves the
variable alone. Without a variable there is no source.
"""
SOURCE = {
    "source": "base",
    "source_answer": "label",
    "source_roles": "base_roles",
    "source_image": "base_image",
}
"""{column of a source: what stands in where a pair leaves the variable alone}."""


def names_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """Several names, or one, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def source_column(name: str, variable: str, variables: Sequence[str]) -> str:
    """The name of a source's column: the plain name where there is one variable."""
    return name if len(variables) == 1 else f"{name}[{variable}]"


def columns_of(split: str, bases: Prompts, labels: list[Any]) -> dict[str, list[Any]]:
    """Pairs as columns of the table, without their sources."""
    return prompt_columns("base", bases.written) | {
        "split": [split] * len(bases),
        "label": labels,
        "base_answer": bases.answers,
        "changing": list(map(ne, labels, bases.answers)),
    }


def source_columns(
    variable: str, variables: Sequence[str], written: Sequence[Any], answers: list[Any]
) -> dict[str, list[Any]]:
    """The columns of a variable's sources. A pair that leaves the variable alone has None."""
    columns = prompt_columns("source", written) | {"source_answer": answers}
    return {source_column(name, variable, variables): column for name, column in columns.items()}


def prompt_columns(name: str, written: Sequence[Any]) -> dict[str, list[Any]]:
    """The columns of prompts: the text or the tensor of each, and its roles."""
    return {
        name: [getattr(prompt, "text", prompt) for prompt in written],
        f"{name}_roles": [getattr(prompt, "roles", None) for prompt in written],
    }


def dataset(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """A dataset of these columns, in the order of `COLUMNS`, without those that hold nothing."""
    # Columns such as `source[a]` stand where `source` does; columns of the user's own come last.
    kinds = {name: name.partition("[")[0] for name in columns}
    order = [*COLUMNS, *kinds.values()]
    arrays = {}
    for name in sorted(columns, key=lambda name: (order.index(kinds[name]), name)):
        array = _array(kinds[name], columns[name])
        if array is not None:
            arrays[name] = array
    return from_table(pa.table(arrays))


def from_table(table: pa.Table) -> Dataset:
    """A dataset that holds this table."""
    # Left alone, datasets would pickle the whole table to name it.
    return Dataset(table, fingerprint=uuid4().hex)


def _array(kind: str, values: Sequence[Any]) -> pa.Array | None:
    """A column as an Arrow array; None where it holds nothing.

    Arguments:
        kind: the name of the column, without the variable in brackets.
    """
    if kind not in COLUMNS:
        return _users_column(values)
    is_text = any(isinstance(value, str) for value in values)
    if kind in ("base", "source", "natural") and not is_text:
        return _tensors(values)
    if kind != "rival_labels" and not kind.endswith("_roles"):
        return _uniform(values)
    # The keys that some row has are the fields of a struct.
    rows = [value or {} for value in values]
    names = sorted(set(chain.from_iterable(rows)))
    if not names:
        return None
    arrays = []
    for name in names:
        arrays.append(_uniform([row.get(name) for row in rows]))
    return pa.StructArray.from_arrays(arrays, names)


def _users_column(values: Sequence[Any]) -> pa.Array:
    """A column of the user's own: as it is, or as JSON where it holds several types, or {}."""
    with suppress(pa.ArrowException, OverflowError):
        array = pa.array(values)
        if "struct<>" not in str(array.type):
            return array
    return pa.array([json.dumps(value, default=str) for value in values])


def _uniform(values: Sequence[Any]) -> pa.Array:
    """An array of values. If one is a list of right answers, a text becomes a list as well."""
    if any(isinstance(value, list | tuple) for value in values):
        values = [[value] if isinstance(value, str) else value for value in values]
    return pa.array(values)


def _tensors(values: Sequence[Any]) -> pa.Array:
    """An array of nested lists of fixed sizes, made from one block of memory."""
    # A missing tensor, of a variable that is left alone, is stored as zeros.
    zeros = np.zeros_like(next(value for value in values if value is not None))
    block = np.stack([zeros if value is None else value for value in values])
    dtype = np.float32
    if block.dtype.kind in "iu":
        dtype = np.int64
    block = block.astype(dtype)
    array: pa.Array = pa.array(block.reshape(-1))
    # From the innermost dimension outwards.
    for size in reversed(block.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array
