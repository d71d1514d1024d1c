"""Pairs from a user's file: read, checked, split by base, filtered by a network's answers."""

import json
import reprlib
from collections import Counter
from collections.abc import Sequence
from itertools import product
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from iit.data.encoded import Encoder, differ
from iit.data.prompts import AnswersPrompts, key_of, pictured
from iit.data.splits import SPLITS, disjoint_pools
from iit.data.table import COLUMNS, SOURCE, source_column

Pair = dict[str, Any]
"""One row of a file: {column: value}."""


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
    for row in rows:
        for name, value in row.items():
            if name.startswith(("base_image", "source_image")) and isinstance(value, str):
                row[name] = (path.parent / value).read_bytes()
        # Files from before call this column `template`.
        if "template" in row and row.get("case") is None:
            row["case"] = row.pop("template")
    return rows


def _json_rows(path: Path) -> list[Any]:
    """The rows of a text file: one in each line, or the whole file as an array."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # without a byte-order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    is_array = text.lstrip().startswith("[")
    # `splitlines` would cut at U+2028, U+2029 and U+0085, too, which may stand inside a string.
    lines = text.split("\n")
    if is_array:
        lines = [text]
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


def _without_twins(items: list[tuple[str, Any]]) -> Pair:
    """An object of a JSON file.

    Raises ValueError for a key that stands twice: json would keep the last one.
    """
    names = Counter(map(itemgetter(0), items))
    twins = sorted(names - Counter(set(names)))
    if twins:
        raise ValueError(f"one object has {twins} more than once")
    return dict(items)


def check_rows(path: str | Path, rows: list[Pair], variables: Sequence[str]) -> None:
    """Check the columns of a file's rows.

    Raises ValueError, naming row and column, for a column that is missing or holds a wrong value. A
    column that stands in some rows only is missing in the others. Further columns are the user's
    own, and not checked.
    """
    texts = isinstance(rows[0].get("base"), str)
    # What one row has, every row has.
    needed = {"base", "label"}
    for row in rows:
        needed |= {name for name in row if name in COLUMNS and row[name] is not None}
    shape, prompts = None, ["source"]
    if texts:
        needed.add("base_roles")
        prompts.append("source_roles")
    else:
        shape = _shape(rows[0].get("base")) or ()
    several = len(variables) > 1
    if several:
        # Only the source columns differ from pair to pair: a pair lacks those of a variable that
        # it leaves alone.
        needed -= set(SOURCE)
        needed.add("interchanged")
    for number, row in enumerate(rows):
        named = row.get("interchanged")
        swapped = named if several and isinstance(named, list) else variables
        columns = set(needed)
        for name, variable in product(prompts, swapped):
            columns.add(source_column(name, variable, variables))
        missing = sorted(name for name in columns if row.get(name) is None)
        if missing:
            raise ValueError(
                f"{path}, row {number}: {missing} missing. This row needs {sorted(columns)}: a "
                f"column stands in every row, or in none. The columns are {list(COLUMNS)}."
            )
        for name in sorted(row):  # a prompt before its roles
            if row[name] is not None and not _fits(name, row, rows[0], shape, variables):
                raise ValueError(
                    f"{path}, row {number}: {name}={reprlib.repr(row[name])} cannot be. In this "
                    f"column stands: {COLUMNS[name.partition('[')[0]]}."
                )


def _fits(
    name: str,
    row: Pair,
    first: Pair,
    shape: tuple[int, ...] | None,
    variables: Sequence[str],
) -> bool:
    """Whether a column may hold what it holds in a row.

    Arguments:
        name: of the column.
        row: the row.
        first: the first row of the file.
        shape: of the file's tensors; None where its prompts are texts.
        variables: the pairs' variables.
    """
    value = row[name]
    match name.partition("[")[0]:
        case "base" | "source" | "natural":
            if shape is None:
                return isinstance(value, str)
            return _shape(value) == shape
        case "label" | "base_answer" | "source_answer":
            answers, kind = [value], int
            # A sequence classifier answers texts with classes: in all rows, or in none.
            if shape is None and type(first["label"]) is not int:
                kind = str
                answers = value if isinstance(value, list) else [value]
            # Not `isinstance`: True is an int.
            return set(map(type, answers)) == {kind} and "" not in answers
        case "base_roles" | "source_roles" | "natural_roles":
            prompt = row.get(name.replace("_roles", "", 1))
            length = len(prompt) if isinstance(prompt, str) else inf
            return isinstance(value, dict) and all(
                span is None or _is_span(span, length) for span in value.values()
            )
        case "case":
            # All texts, or all numbers.
            return type(value) in (str, int) and type(value) is type(first.get(name))
        case "kind":
            return isinstance(value, str)
        case "base_image" | "source_image":
            return shape is None and isinstance(value, bytes)
        case "split":
            return value in SPLITS
        case "interchanged":
            return isinstance(value, list) and all(v in variables for v in value)
        case "asked" | "has_natural":
            return isinstance(value, bool)
        case "rival_labels":
            return isinstance(value, dict)
    # `changing` is worked out anew. Further columns are the user's own.
    return True


def _is_span(span: Any, length: float) -> bool:
    is_pair = isinstance(span, list) and list(map(type, span)) == [int, int]
    return is_pair and 0 <= span[0] < span[1] <= length


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None for a value that is ragged, or does not hold finite numbers."""
    try:
        tensor = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        return None
    if np.isfinite(tensor).all():
        return tensor.shape
    return None


def assign_splits(rows: list[Pair], shares: Sequence[float], seed: int) -> None:
    """Give each row a split; all rows of one base prompt get the same."""
    # Sorted: the splits do not depend on the order of the rows.
    keys = [_key(_prompt(row, "base")) for row in rows]
    bases = {"base": sorted(set(keys))}
    pools = disjoint_pools(bases, ["base"], shares, rng=np.random.default_rng(seed))
    split_of = {}
    for split in SPLITS:
        split_of |= dict.fromkeys(pools[split]["base"], split)
    for row, key in zip(rows, keys, strict=True):
        row["split"] = split_of[key]


def keep_answered(
    rows: list[Pair],
    variables: Sequence[str],
    network: AnswersPrompts | None,
    facts: dict[str, Any],
    split: str,
) -> list[Pair]:
    """Leave out pairs whose prompts the network answers otherwise, and flag the changing pairs.

    A pair stays where the network gives every answer that the file names.

    Arguments:
        rows: of one split.
        network: None asks nobody, and keeps all pairs.
        facts: gets the counts of the split.

    Raises ValueError where only a network could say which pairs are changing, and none is given.
    """
    columns, label_of_base = [("base", "base_answer")], [("base", "label")]
    for variable in variables:
        prompt = source_column("source", variable, variables)
        columns.append((prompt, source_column("source_answer", variable, variables)))
    has_base_answer = rows[0].get("base_answer") is not None
    if network is None and not has_base_answer:
        raise ValueError(
            "Pairs without the column base_answer need a network to tell which pairs are changing: "
            "load(path, network)."
        )
    questions: dict[tuple[str, str], tuple[Any, Any]] = {}
    for row in rows:
        questions |= _questions(row, columns)
    wrong = set()
    if network is not None:
        of_file = set(questions)
        # Does the network give the label on the unedited base?
        if not has_base_answer:
            for row in rows:
                questions |= _questions(row, label_of_base)
        # Each question is asked once, in an order that does not depend on the file's.
        questions = dict(sorted(questions.items()))
        prompts, answers = map(list, zip(*questions.values(), strict=True))
        is_right = network.answers_right(prompts, answers)
        outcomes = zip(questions, is_right, strict=True)
        wrong = {question for question, right in outcomes if not right}
        if of_file:
            facts["drawn"][split] = len(of_file)
            facts["right"][split] = len(of_file - wrong)
    rows = [row for row in rows if wrong.isdisjoint(_questions(row, columns))]
    if not has_base_answer:
        changing = [not wrong.isdisjoint(_questions(row, label_of_base)) for row in rows]
    elif rows and isinstance(network, Encoder):
        # Tokens decide, however the file writes the answers.
        bases = [_prompt(row, "base") for row in rows]
        tokens = []
        for column in ("label", "base_answer"):
            answers = [row[column] for row in rows]
            tokens.append(network.encode(bases, answers=answers)["answer"])
        changing = differ(*tokens)
    else:
        changing = [row["label"] != row["base_answer"] for row in rows]
    for row, is_changing in zip(rows, changing, strict=True):
        row["changing"] = is_changing
    return rows


def _questions(
    row: Pair, columns: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[Any, Any]]:
    """The row's prompts with their answers: {keys of both: (prompt, answer)}.

    Arguments:
        columns: the names of prompts and of their answers.
    """
    questions = {}
    for prompt_column, answer_column in columns:
        prompt, answer = _prompt(row, prompt_column), row.get(answer_column)
        if prompt is not None and answer is not None:
            questions[_key(prompt), _key(answer)] = prompt, answer
    return questions


def _prompt(row: Pair, column: str) -> Any:
    """What the network reads: a text, with its image where it has one, or a tensor."""
    name, bracket, variable = column.partition("[")
    return pictured(row.get(column), row.get(f"{name}_image{bracket}{variable}"))


def _key(prompt: Any) -> str:
    """What tells prompts (and answers) apart: a text (and its image), or a tensor's numbers."""
    return key_of(prompt) if isinstance(prompt, str | dict) else json.dumps(prompt)
