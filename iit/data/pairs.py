"""Counterfactual pairs: a base, a source, and the label that the causal model gives to the interchange."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from iit.causal import Task
from iit.data.own import Answering, answered, assign_splits, read_rows
from iit.data.prompts import DrawnPrompt, draw_prompts, one_token_words
from iit.data.splits import SPLITS, disjoint_pools

COLUMNS = {
    "split": "train | validation | test",
    "base": "text of the prompt that is edited",
    "source": "text of the prompt whose value is swapped in",
    "label": "what the causal model answers after the interchange, as text that continues the base",
    "base_answer": "the base's own answer (null in own pairs without that column)",
    "source_answer": "the source's own answer (null likewise)",
    "changing": "whether the label differs from the base's own answer",
    "base_roles": "role → [start, stop] in characters of the base (null where the prompt lacks the role)",
    "source_roles": "the same of the source",
}
"""The columns of `Pairs.dataset` and of saved files."""


@runtime_checkable
class Network(Answering, Protocol):
    """What sampling asks of a network: a tokenizer, too."""

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Pairs of all splits for one variable.

    dataset: a `datasets.Dataset` with the columns of `COLUMNS`.
    variable: the variable whose value is interchanged.
    task: where the pairs were sampled from; None for one's own pairs, which have no causal model.
    facts: counts of how they came about (drawn and kept prompts, dropped words, …).
    """

    dataset: Dataset
    variable: str
    task: Task | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> Dataset:
        """The pairs of one split. Raises ValueError when there is none."""
        chosen = [i for i, split in enumerate(self.dataset["split"]) if split == name]
        if not chosen:
            raise ValueError(f"There are no pairs in split {name!r}; the splits are {sorted(set(self.dataset['split']))}.")
        return self.dataset.select(chosen)

    @property
    def fingerprint(self) -> str:
        """sha256 over the variable and every row."""
        digest = hashlib.sha256(self.variable.encode())
        for row in self.dataset:
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the pairs as Parquet."""
        pq.write_table(self.dataset.data.table.combine_chunks(), path)

    @classmethod
    def sample(
        cls,
        task: Task,
        network: Network,
        n: int | None = None,
        *,
        variable: str | None = None,
        n_train: int = 600,
        n_val: int = 200,
        n_test: int = 600,
        splits: Sequence[str] = ("name", "template"),
        shares: Sequence[float] = (0.5, 0.2, 0.3),
        changing_share: float = 0.5,
        seed: int = 0,
    ) -> "Pairs":
        """Sample prompts that the network answers rightly, pair them, and label the pairs by interchange.

        n: short for that many training pairs and a third as many for validation and test each.
        variable: the variable that is interchanged; by default the task's first.
        splits: pools of the task of which no entry may occur in two splits.
        shares: how these pools are divided over train, validation and test.
        changing_share: share of changing pairs in each split (reached as far as the task allows; `facts` tells).

        Each split has as many distinct base prompts as pairs. Raises ValueError for unknown variables and pools, and when too
        few prompts are left after filtering.
        """
        variable = variable or task.variables[0]
        if variable not in task.variables:
            raise ValueError(f"Task {task.name!r} has no variable {variable!r} to align; it has {list(task.variables)}.")
        sizes = dict(zip(SPLITS, (n_train, n_val, n_test) if n is None else (n, n // 3, n // 3), strict=True))
        if min(sizes.values()) < 2:
            raise ValueError(f"Every split needs at least 2 pairs; asked for {sizes}.")
        rng = np.random.default_rng(seed)
        pools, dropped = one_token_words(
            task, lambda words: [len(network.tokenizer.encode(w, add_special_tokens=False)) for w in words]
        )
        parts = disjoint_pools(pools, splits, shares, rng=rng)
        rows: list[dict[str, Any]] = []
        facts: dict[str, Any] = {"dropped_words": dropped, "drawn": {}, "right": {}, "changing": {}}
        for split, size in sizes.items():
            kept = draw_prompts(task, parts[split], size, network.answers_right, rng=rng, split=split)
            sampled = _pair(task, variable, kept.prompts, size, changing_share, rng)
            facts["drawn"][split], facts["right"][split] = kept.n_drawn, kept.n_right
            facts["changing"][split] = sum(row["changing"] for row in sampled)
            rows += [{"split": split, **row} for row in sampled]
        return cls(_dataset(rows), variable, task, facts)

    @classmethod
    def load(
        cls,
        path: str | Path,
        network: Network | None = None,
        *,
        variable: str = "variable",
        shares: Sequence[float] = (0.5, 0.2, 0.3),
        seed: int = 0,
    ) -> "Pairs":
        """One's own pairs from Parquet or JSON lines, without a causal model.

        Needed columns: base, source, label, base_roles, source_roles ({role: [start, stop]} in characters). Optional: split (else base
        prompts are divided by `shares`), base_answer and source_answer. Where these stand, pairs whose prompts the network
        answers otherwise are left out; without base_answer, a pair is changing when the network does not give the label on the
        unedited base, so a network has to be given.

        Raises FileNotFoundError, and ValueError naming a missing or unknown column, or when no pair is left.
        """
        rows = read_rows(Path(path))
        needed = ["base", "source", "label", "base_roles", "source_roles"]
        for number, row in enumerate(rows):
            missing = [name for name in needed if row.get(name) is None]
            if missing:
                raise ValueError(
                    f"{path}, row {number}: {missing} missing. Pairs need {needed}; optional: {[c for c in COLUMNS if c not in needed]}."
                )
            unknown = sorted(set(row) - set(COLUMNS))
            if unknown:
                raise ValueError(f"{path}, row {number}: unknown column {unknown}; the columns are {list(COLUMNS)}.")
        if any("split" not in row for row in rows):
            assign_splits(rows, shares, seed)
        wrong = sorted({str(row["split"]) for row in rows} - set(SPLITS))
        if wrong:
            raise ValueError(f"{path}: split {wrong} is none of {list(SPLITS)}.")
        facts: dict[str, Any] = {"drawn": {}, "right": {}, "changing": {}}
        kept = []
        for split in SPLITS:
            part = [row for row in rows if row["split"] == split]
            part = answered(part, network, facts, split) if part else part
            facts["changing"][split] = sum(bool(row["changing"]) for row in part)
            kept += part
        if not kept:
            raise ValueError(f"{path}: no pair is left after leaving out those whose prompts the network answers otherwise.")
        return cls(_dataset(kept), variable, None, facts)


def _pair(
    task: Task, variable: str, prompts: Sequence[DrawnPrompt], n: int, changing_share: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """`n` labelled pairs, bases in turn, sources drawn until the pair is changing, or not, as the share demands."""
    rows = []
    wanted = rng.permutation(np.arange(n) < round(n * changing_share))
    for number in range(n):
        base = prompts[number % len(prompts)]
        for source in (prompts[i] for i in rng.integers(len(prompts), size=200)):
            if source is base:
                continue
            label = task.answer(task.model.interchange(base.inputs, {variable: source.inputs}))
            if (label != base.answer) == bool(wanted[number]):
                break
        else:
            raise ValueError(
                f"Task {task.name!r}: no {'changing' if wanted[number] else 'unchanging'} pair for {base.text!r} in 200 draws of {variable!r}. "
                "Change data.changing_share, or ask for more prompts."
            )
        rows.append(
            {
                "base": base.text,
                "source": source.text,
                "label": label,
                "base_answer": base.answer,
                "source_answer": source.answer,
                "changing": label != base.answer,
                "base_roles": dict(base.roles),
                "source_roles": dict(source.roles),
            }
        )
    return rows


def _dataset(rows: list[dict[str, Any]]) -> Dataset:
    roles = sorted({role for row in rows for side in ("base_roles", "source_roles") for role in row[side]})
    spans = pa.struct([(role, pa.list_(pa.int64())) for role in roles])
    types = {"changing": pa.bool_(), "base_roles": spans, "source_roles": spans}
    columns = {
        name: pa.array(
            [_spans(row[name]) if name.endswith("_roles") else row.get(name) for row in rows], types.get(name, pa.string())
        )
        for name in COLUMNS
    }
    return Dataset(pa.table(columns))


def _spans(roles: Mapping[str, Any]) -> dict[str, list[int] | None]:
    return {role: None if span is None else [int(i) for i in span] for role, span in roles.items()}
