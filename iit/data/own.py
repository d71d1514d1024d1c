"""Pairs from a user's file: read, checked, split by base, filtered by a network's answers."""

import json
import reprlib
from collections import Counter
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow.parquet as pq

from iit.data.encoded import Encoder, differ
from iit.data.splits import SPLITS, disjoint_pools
from iit.data.table import COLUMNS, SOURCE, source_column


@runtime_checkable
class Answering(Protocol):
    """What filtering asks of a network."""

    def answers_right(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Whether each answer is the argmax, token by token: bool[n]."""
        ...


def read_rows(path: Path) -> list[Any]:
    """The rows of a file: Parquet, JSON lines or a JSON array.

    Raises FileNotFoundError, and ValueError for a file that cannot be read or is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. data.path takes one's own pairs as .parquet or .jsonl."
        )
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    elif path.suffix in (".jsonl", ".json"):
        rows = _json_rows(path)
    else:
        raise ValueError(f"{path}: pairs are read from .parquet or .jsonl, not {path.suffix!r}.")
    if not rows:
        raise ValueError(f"{path} holds no pairs.")
    return rows


def _json_rows(path: Path) -> list[Any]:
    """The rows of a text file: one in each line, or the whole file as an array."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # without a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    is_array = text.lstrip().startswith("[")
    # `splitlines` would cut at U+2028, U+2029 and U+0085, too, which may stand inside a string.
    lines = [text] if is_array else text.split("\n")
    rows: list[Any] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line, object_pairs_hook=_without_twins)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error
        rows += parsed if is_array else [parsed]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, row {number} is {reprlib.repr(row)}, and no object of columns."
            )
    return rows


def _without_twins(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file.

    Raises ValueError for a key that stands twice: json would keep the last one.
    """
    twins = sorted(name for name, n in Counter(name for name, _ in items).items() if n > 1)
    if twins:
        raise ValueError(f"one object has {twins} more than once")
    return dict(items)


def check_rows(path: str | Path, rows: list[dict[str, Any]], variables: Sequence[str]) -> None:
    """Check the columns of a file's rows.

    Raises ValueError, naming row and column, for a column that is missing or holds a wrong value. A
    column that stands in some rows only is missing in the others. Further columns are the user's
    own, and not checked.
    """
    first = rows[0].get("base")
    texts = isinstance(first, str)
    shape = None if texts else _shape(first) or ()
    several = len(variables) > 1
    read = ("source", "source_roles") if texts else ("source",)
    needed = (
        {"base", "label"}
        | ({"base_roles"} if texts else set())
        | ({"interchanged"} if several else set())
    )
    # What one row has, every row has. With several variables only the source columns differ from
    # pair to pair: a pair lacks those of a variable that it leaves alone.
    needed |= {name for row in rows for name in row if name in COLUMNS and row[name] is not None}
    if several:
        needed -= set(SOURCE)
    for number, row in enumerate(rows):
        swapped = row.get("interchanged") or () if several else variables
        columns = needed | {
            source_column(name, variable, variables) for variable in swapped for name in read
        }
        missing = sorted(name for name in columns if row.get(name) is None)
        if missing:
            raise ValueError(
                f"{path}, row {number}: {missing} missing. This row needs {sorted(columns)}: a "
                f"column stands in every row, or in none. The columns are {list(COLUMNS)}."
            )
        for name, value in sorted(row.items()):  # a prompt before its roles
            kind = name.partition("[")[0]
            prompt = row.get(name.replace("_roles", "", 1))
            if value is None or kind not in COLUMNS:
                continue
            # Templates are all texts, or all numbers.
            mixed = kind == "template" and type(value) is not type(rows[0][name])
            if mixed or not _fits(kind, value, prompt, shape, variables):
                raise ValueError(
                    f"{path}, row {number}: {name}={reprlib.repr(value)} cannot be. In this column "
                    f"stands: {COLUMNS[kind]}."
                )


def _fits(
    kind: str,
    value: Any,
    prompt: Any,
    shape: tuple[int, ...] | None,
    variables: Sequence[str],
) -> bool:
    """Whether a column may hold a value.

    Arguments:
        kind: the column's name, without the variable in brackets.
        value: the value.
        prompt: the prompt that roles are places of.
        shape: of the file's tensors; None where its prompts are texts.
        variables: the pairs' variables.
    """
    texts = shape is None
    if kind in ("base", "source", "natural"):
        return isinstance(value, str) if texts else _shape(value) == shape
    if kind in ("label", "base_answer", "source_answer"):
        answers = value if texts and isinstance(value, list) else [value]
        # Not `isinstance`: True is an int.
        return bool(answers) and all(
            answer != "" and type(answer) is (str if texts else int) for answer in answers
        )
    if kind.endswith("_roles"):
        if not isinstance(value, dict):
            return False
        return all(span is None or _is_span(span, prompt) for span in value.values())
    if kind in ("kind", "template"):
        return type(value) is str or (kind == "template" and type(value) is int)
    if kind == "split":
        return isinstance(value, str) and value in SPLITS
    if kind == "interchanged":
        return isinstance(value, list) and all(variable in variables for variable in value)
    if kind in ("asked", "has_natural"):
        return isinstance(value, bool)
    # What is left is `changing`, which is worked out anew, or rival_labels.
    return kind != "rival_labels" or isinstance(value, dict)


def _is_span(span: Any, prompt: Any) -> bool:
    is_pair = isinstance(span, list) and [type(end) for end in span] == [int, int]
    return is_pair and 0 <= span[0] < span[1] <= (len(prompt) if isinstance(prompt, str) else inf)


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None for a value that is ragged, or does not hold finite numbers."""
    try:
        tensor = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        return None
    return tensor.shape if np.isfinite(tensor).all() else None


def assign_splits(rows: list[dict[str, Any]], shares: Sequence[float], seed: int) -> None:
    """Give each row a split; all rows of one base prompt get the same."""
    # Sorted: the splits do not depend on the order of the rows.
    bases = sorted({_key(row["base"]) for row in rows})
    parts = disjoint_pools({"base": bases}, ["base"], shares, rng=np.random.default_rng(seed))
    split_of = {base: split for split, pools in parts.items() for base in pools["base"]}
    for row in rows:
        row["split"] = split_of[_key(row["base"])]


def answered(
    rows: list[dict[str, Any]],
    variables: Sequence[str],
    network: Answering | None,
    facts: dict[str, Any],
    split: str,
) -> list[dict[str, Any]]:
    """Leave out pairs whose prompts the network answers otherwise, and flag the changing pairs.

    A pair stays where the network gives every answer that the file names.

    Arguments:
        rows: of one split.
        network: None asks nobody, and keeps all pairs.
        facts: gets the counts of the split.

    Raises ValueError where only a network could say which pairs are changing, and none is given.
    """
    names = [("base", "base_answer")]
    names += [
        (source_column("source", v, variables), source_column("source_answer", v, variables))
        for v in variables
    ]

    def answers_in(row: dict[str, Any]) -> dict[tuple[str, str], tuple[Any, Any]]:
        """The row's prompts with the answers that the file names: {keys: (prompt, answer)}."""
        pairs = [(row.get(prompt), row.get(answer)) for prompt, answer in names]
        return {(_key(p), _key(a)): (p, a) for p, a in pairs if p is not None and a is not None}

    answers_of_file: dict[tuple[str, str], tuple[Any, Any]] = {}
    # For pairs without base_answer: does the network give the label on the unedited base?
    asked: dict[tuple[str, str], tuple[Any, Any]] = {}
    for row in rows:
        answers_of_file |= answers_in(row)
        if row.get("base_answer") is None:
            asked[_key(row["base"]), _key(row["label"])] = row["base"], row["label"]
    right: dict[tuple[str, str], bool] = {}
    if network is not None:
        # Each question is asked once, in an order that does not depend on the file's.
        questions = dict(sorted((answers_of_file | asked).items()))
        prompts, answers = map(list, zip(*questions.values(), strict=True))
        outcomes = network.answers_right(prompts, answers)
        right = dict(zip(questions, map(bool, outcomes), strict=True))
    elif set(asked) - set(answers_of_file):
        raise ValueError(
            "Pairs without the column base_answer need a network to tell which pairs are changing: "
            "load(path, network)."
        )
    if answers_of_file and network is not None:
        facts["drawn"][split], facts["right"][split] = (
            len(answers_of_file),
            sum(right[item] for item in answers_of_file),
        )
    rows_left = []
    for row in rows:
        if all(right.get(question, True) for question in answers_in(row)):
            answer = row.get("base_answer")
            changing = row["label"] != answer
            if answer is None:
                changing = not right[_key(row["base"]), _key(row["label"])]
            rows_left.append({**row, "changing": changing})
    rows_with_answer = [row for row in rows_left if row.get("base_answer") is not None]
    # Tokens decide, however the file writes the answers.
    if rows_with_answer and isinstance(network, Encoder):
        bases = [row["base"] for row in rows_with_answer]
        labels, answers = (
            network.encode(bases, answers=[row[c] for row in rows_with_answer])["answer"]
            for c in ("label", "base_answer")
        )
        for row, changing in zip(rows_with_answer, differ(labels, answers), strict=True):
            row["changing"] = changing
    return rows_left


def _key(prompt: Any) -> str:
    """What tells prompts (and answers) apart: a text itself, or a tensor's numbers."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt)
