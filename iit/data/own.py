"""One's own pairs: read from a file, split by base prompt, kept where the network answers as the file says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow.parquet as pq

from iit.data.encoded import Encoder, differ
from iit.data.splits import disjoint_pools
from iit.data.table import COLUMNS, SOURCE, source_column


@runtime_checkable
class Answering(Protocol):
    """What filtering asks of a network."""

    def answers_right(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """bool[n]: whether each answer is the argmax, token by token."""
        ...


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet or JSON lines file. Raises FileNotFoundError, and ValueError for what cannot be read or is empty."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. data.path takes one's own pairs as .parquet or .jsonl.")
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    elif path.suffix in (".jsonl", ".json"):
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON: {error}.") from error
    else:
        raise ValueError(f"{path}: pairs are read from .parquet or .jsonl, not {path.suffix!r}.")
    if not rows:
        raise ValueError(f"{path} holds no pairs.")
    return rows


def check_rows(path: str | Path, rows: list[dict[str, Any]], variables: Sequence[str]) -> None:
    """Raises ValueError naming row and column where one is missing or unknown."""
    known = {*COLUMNS, *(source_column(name, variable, variables) for variable in variables for name in SOURCE)}
    known -= set(SOURCE) if len(variables) > 1 else {"interchanged"}
    for number, row in enumerate(rows):
        given = variables if len(variables) == 1 else row.get("interchanged") or ()
        needed = ["base", "label", *(["interchanged"] if len(variables) > 1 else [])]
        needed += [source_column("source", variable, variables) for variable in given]
        if isinstance(row.get("base"), str):
            needed += ["base_roles", *(source_column("source_roles", variable, variables) for variable in given)]
        missing = [name for name in needed if row.get(name) is None]
        if missing:
            raise ValueError(
                f"{path}, row {number}: {missing} missing. Pairs need {needed}; optional: {sorted(known - set(needed))}."
            )
        unknown = sorted(set(row) - known)
        if unknown:
            raise ValueError(f"{path}, row {number}: unknown column {unknown}; the columns are {sorted(known)}.")


def assign_splits(rows: list[dict[str, Any]], shares: Sequence[float], seed: int) -> None:
    """Give each row a split; rows of one base prompt share theirs."""
    bases = sorted({_key(row["base"]) for row in rows})
    parts = disjoint_pools({"base": bases}, ["base"], shares, rng=np.random.default_rng(seed))
    of_base = {base: split for split, pools in parts.items() for base in pools["base"]}
    for row in rows:
        row["split"] = of_base[_key(row["base"])]


def answered(
    rows: list[dict[str, Any]], variables: Sequence[str], network: Answering | None, facts: dict[str, Any], split: str
) -> list[dict[str, Any]]:
    """Leave out pairs whose prompts the network answers otherwise than the file says, and flag the changing ones."""
    names = [("base", "base_answer")]
    names += [(source_column("source", v, variables), source_column("source_answer", v, variables)) for v in variables]
    said: dict[tuple[str, str], tuple[Any, Any]] = {}
    asked: dict[tuple[str, str], tuple[Any, Any]] = {}
    for row in rows:
        found = [(row[p], row[a]) for p, a in names if row.get(p) is not None and row.get(a) is not None]
        said |= {(_key(prompt), _key(answer)): (prompt, answer) for prompt, answer in found}
        if row.get("base_answer") is None:
            asked[_key(row["base"]), _key(row["label"])] = row["base"], row["label"]
    right: dict[tuple[str, str], bool] = {}
    if network is not None:
        prompts = sorted((said | asked).items())
        found = network.answers_right([prompt for _, (prompt, _) in prompts], [answer for _, (_, answer) in prompts])
        right = dict(zip((key for key, _ in prompts), map(bool, found), strict=True))
    elif set(asked) - set(said):
        raise ValueError(
            "Pairs without the column base_answer need a network to tell which pairs are changing: load(path, network)."
        )
    if said and network is not None:
        facts["drawn"][split], facts["right"][split] = len(said), sum(right[item] for item in said)
    kept = []
    for row in rows:
        prompts = [(_key(row[p]), _key(row[a])) for p, a in names if row.get(p) is not None and row.get(a) is not None]
        if all(right.get(prompt, True) for prompt in prompts):
            own = row.get("base_answer")
            changing = row["label"] != own if own is not None else not right[_key(row["base"]), _key(row["label"])]
            kept.append({**row, "changing": changing})
    known = [row for row in kept if row.get("base_answer") is not None]
    if known and isinstance(network, Encoder):  # what counts is tokens, however the file writes them
        bases = [row["base"] for row in known]
        labels, answers = (network.encode(bases, answers=[row[c] for row in known])["answer"] for c in ("label", "base_answer"))
        for row, changing in zip(known, differ(labels, answers), strict=True):
            row["changing"] = changing
    return kept


def _key(prompt: Any) -> str:
    """What tells prompts (and answers) apart: a text itself, a tensor's numbers."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt)
