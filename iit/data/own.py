"""One's own pairs: read from a file, split by base prompt, kept where the network answers as the file says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow.parquet as pq

from iit.data.splits import disjoint_pools


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


def assign_splits(rows: list[dict[str, Any]], shares: Sequence[float], seed: int) -> None:
    """Give each row a split; rows of one base prompt share theirs."""
    bases = sorted({row["base"] for row in rows})
    parts = disjoint_pools({"base": bases}, ["base"], shares, rng=np.random.default_rng(seed))
    of_base = {base: split for split, pools in parts.items() for base in pools["base"]}
    for row in rows:
        row["split"] = of_base[row["base"]]


def answered(rows: list[dict[str, Any]], network: Answering | None, facts: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """Leave out pairs whose prompts the network answers otherwise than the file says, and flag the changing ones."""
    said = {
        (row[side], row[f"{side}_answer"]) for row in rows for side in ("base", "source") if row.get(f"{side}_answer") is not None
    }
    asked = said | {(row["base"], row["label"]) for row in rows if row.get("base_answer") is None}
    right: dict[tuple[str, str], bool] = {}
    if network is not None:
        prompts = sorted(asked)
        right = dict(
            zip(prompts, map(bool, network.answers_right([t for t, _ in prompts], [a for _, a in prompts])), strict=True)
        )
    elif len(asked) > len(said):
        raise ValueError(
            "Pairs without the column base_answer need a network to tell which pairs are changing: load(path, network)."
        )
    if said:
        facts["drawn"][split], facts["right"][split] = len(said), sum(right.get(item, True) for item in said)
    kept = []
    for row in rows:
        answers = [(row[side], row.get(f"{side}_answer")) for side in ("base", "source")]
        if all(right.get((text, answer), True) for text, answer in answers if answer is not None):
            own = row.get("base_answer")
            changing = row["label"] != own if own is not None else not right[row["base"], row["label"]]
            kept.append({**row, "changing": changing})
    return kept
