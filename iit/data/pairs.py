"""Counterfactual pairs: a base, a source for each variable, and the label after the interchange."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from iit.causal import Task
from iit.data.natural import counterparts
from iit.data.own import Answering, answered, assign_splits, check_rows, read_rows
from iit.data.pairing import Paired, Wanted, each_with_each, paired
from iit.data.prompts import Answers, Prompts, draw_prompts, one_token_words
from iit.data.sources import sources
from iit.data.splits import SPLITS, disjoint_pools
from iit.data.table import columns_of, dataset

log = logging.getLogger(__name__)


@runtime_checkable
class Network(Answering, Protocol):
    """What sampling asks of a network.

    Where it has `answer_tokens`, as `LanguageModel` has, the tokens of words are counted by that.
    """

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer; None for networks fed with tensors."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Pairs of all splits, for one variable or several.

    Arguments:
        dataset: a `datasets.Dataset` with columns of `COLUMNS`.
        variables: the variables whose values are interchanged; one may be a string. () for prompts
            alone, whose label is their own answer.
        task: the task that the pairs were sampled from. None for pairs that were not sampled: they
            have no causal model.
        facts: counts: prompts that were drawn and that are used, dropped words, changing and
            separating pairs, …
        again: epoch → training pairs that are sampled anew; None where all epochs have the same.
        sampled: calls `sample` with the arguments of these pairs; some may be replaced, as in
            `sampled(variable="io_name")`. The entries of each split stay the same. None for pairs
            that were not sampled.
        values: {variable: its value in each training pair's base}; None for pairs that were not
            sampled.
        prompts: (split, n, seed) → n distinct prompts made of that split's entries, or fewer where
            the pools are exhausted. The network need not answer them rightly. None for pairs that
            were not sampled.
    """

    dataset: Dataset
    variables: tuple[str, ...] | str
    task: Task | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    again: Callable[[int], Dataset] | None = None
    sampled: Callable[..., "Pairs"] | None = None
    values: Mapping[str, Sequence[Any]] | None = None
    prompts: Callable[[str, int, int], Prompts] | None = None

    def __post_init__(self) -> None:
        variables = (self.variables,) if isinstance(self.variables, str) else tuple(self.variables)
        object.__setattr__(self, "variables", variables)

    @property
    def variable(self) -> str:
        """The variable's name; several names are joined by "+"."""
        return "+".join(self.variables)

    def split(self, name: str) -> Dataset:
        """The pairs of one split. Raises ValueError when there are none."""
        rows = [i for i, split in enumerate(self.dataset["split"]) if split == name]
        if not rows:
            raise ValueError(
                f"There are no pairs in split {name!r}; the splits are "
                f"{sorted(set(self.dataset['split']))}."
            )
        return self.dataset.select(rows)

    @property
    def fingerprint(self) -> str:
        """sha256 of the variables and every column."""
        digest = hashlib.sha256(self.variable.encode())
        table = self.dataset.data.table
        for name in table.column_names:
            # One chunk: how a table is cut into chunks says nothing about its values.
            column = table.column(name).combine_chunks()
            digest.update(name.encode())
            # Tensors are nested lists of fixed sizes: their sizes are hashed, then the flat
            # numbers.
            while pa.types.is_fixed_size_list(column.type):
                digest.update(str(column.type.list_size).encode())
                column = column.flatten()
            numbers = pa.types.is_floating(column.type) and not column.null_count
            values = (
                column.to_numpy().tobytes()
                if numbers
                else json.dumps(column.to_pylist(), sort_keys=True, default=str).encode()
            )
            digest.update(values)
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the pairs as Parquet."""
        pq.write_table(self.dataset.data.table.combine_chunks(), Path(path).expanduser())

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], variable: str | Sequence[str] = ()) -> "Pairs":
        """Pairs from rows in Python.

        All count as changing, and all stay: no network is asked.

        Arguments:
            rows: mappings with split, base and label; with a variable also source.
            variable: the variable's name, or several; () for prompts alone.
        """
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return cls(
            dataset(columns | {"changing": [True] * len(rows)}),
            (variable,) if isinstance(variable, str) else tuple(variable),
        )

    @classmethod
    def sample(
        cls,
        task: Task,
        network: Network | None = None,
        n: int | None = None,
        *,
        variable: str | Sequence[str] | None = None,
        n_train: int = 600,
        n_val: int = 200,
        n_test: int = 600,
        splits: Sequence[str] | None = None,
        shares: Sequence[float] = (0.5, 0.2, 0.3),
        pairs: str = "random",
        together: bool = False,
        changing_share: float | None = 0.5,
        separate: Sequence[str] = (),
        right_only: bool = True,
        fresh: bool = False,
        natural: bool = False,
        seed: int = 0,
    ) -> "Pairs":
        """Sample prompts, pair them, and label the pairs by interchange.

        Each split has as many distinct base prompts as pairs. Where its pools are exhausted earlier
        (see `draw_prompts`), each prompt is the base of about as many pairs as the others. The
        prompts of a task may each ask for one variable (`Task.asks`). In two thirds of the pairs
        the base then asks for a variable that is interchanged.

        Arguments:
            task: the causal model, and how its inputs are written.
            network: tokenizes and answers the prompts. Only prompts that it answers rightly are
                used, unless `right_only` is False. None uses all.
            n: short for n training pairs, and n // 3 validation and n // 3 test pairs.
            variable: the variable whose value is interchanged, or several; by default the task's
                first. () for prompts alone.
            n_train, n_val, n_test: pairs in each split.
            splits: pools of the task of which no entry may occur in two splits; by default the
                task's own choice.
            shares: how these pools are divided over train, validation and test.
            pairs: how sources are chosen: random | balanced | minimal | exhaustive | one of the
                task's `counterfactuals`. Exhaustive pairs are all ordered pairs of as many prompts
                as give at most the number asked for. They are changing or not, as they come.
            together: with several variables, interchange all of them in every pair, each from its
                own source; else one in each pair.
            changing_share: the share of changing pairs in each split, reached as far as the task
                allows (see `facts`). None takes the pairs as they come.
            separate: rivals of the task whose label must differ from the causal model's in every
                pair.
            right_only: whether to use only prompts that the network answers rightly.
            fresh: sample the training pairs anew in each epoch. With a network that has to answer
                rightly, they are made of the same prompts.
            natural: give each pair a natural counterpart, as far as there is one. It is a prompt of
                the same split. Its own variables and answer have the values that the interchange
                asks for.
            seed: of all draws.

        Raises:
            ValueError: an unknown variable, pool, rival or way to pair; a share outside 0 to 1; a
                rival in `separate` that lacks a variable; fewer than 2 pairs in a split; too few
                prompts after filtering.
            TypeError: `task` is no `Task`.
        """
        # First of all: `locals()` must hold nothing but the arguments.
        arguments = {
            name: value
            for name, value in locals().items()
            if name not in ("cls", "task", "network")
        }
        sampled = partial(cls.sample, task, network, **arguments)
        if not isinstance(task, Task):
            raise TypeError(
                "Pairs are sampled from a Task: a causal model and how its inputs are "
                f"written; got {task!r}."
            )
        variables = _variables(task, variable)
        separate = (separate,) if isinstance(separate, str) else separate
        if changing_share is not None and not 0 <= changing_share <= 1:
            raise ValueError(
                f"changing_share is a share, from 0 to 1, or None; got {changing_share}."
            )
        if not variables and pairs != "random":
            raise ValueError(
                f"data.pairs={pairs!r} chooses sources; prompts alone (no variable) have none."
            )
        unknown = sorted(set(separate) - set(task.rivals))
        if unknown:
            raise ValueError(
                f"data.separate names {unknown}; the rivals of task {task.name!r} are "
                f"{sorted(task.rivals)}."
            )
        silent = [
            name for name in separate if not set(variables) <= set(task.rivals[name].variables)
        ]
        if silent:
            raise ValueError(
                f"data.separate: rival {silent[0]!r} has not all of {list(variables)}, and says "
                "nothing of these pairs."
            )
        sizes = dict(
            zip(SPLITS, (n_train, n_val, n_test) if n is None else (n, n // 3, n // 3), strict=True)
        )
        if min(sizes.values()) < 2:
            raise ValueError(f"Every split needs at least 2 pairs; asked for {sizes}.")
        rng = np.random.default_rng(seed)
        pools: Mapping[str, Sequence[Any]] = task.pools
        dropped: dict[str, int] = {}
        if network is not None and network.tokenizer is not None:
            tokenizer = network.tokenizer
            answer_tokens: Any = getattr(network, "answer_tokens", None)

            def count_tokens(words: Sequence[str]) -> list[int]:
                if answer_tokens is None:
                    return [len(tokenizer.encode(word, add_special_tokens=False)) for word in words]
                before = words[0].strip()  # a word's tokens show behind any other word
                # A masked language model answers at a mask, so the text needs one.
                if getattr(network, "masked", False):
                    before += f" {tokenizer.mask_token}"
                return [len(tokens) for tokens in answer_tokens([before] * len(words), words)]

            pools, dropped = one_token_words(task, count_tokens)
        # The pools that are divided among the splits.
        apart = (
            task.splits
            if splits is None
            else (splits,)
            if isinstance(splits, str)
            else tuple(splits)
        )
        # {split: {pool: entries}}
        parts = disjoint_pools(pools, apart, shares, rng=rng)
        # Where a pool is not divided, the test split has the same entries as the others.
        for name, entries in task.test_only.items():
            if name in apart:
                parts["test"][name] += entries
        # None asks nobody, and takes every prompt.
        right = network.answers_right if network is not None and right_only else None
        wanted = asked = Wanted(
            variables, together, changing_share, tuple(separate), natural and bool(variables)
        )
        facts: dict[str, Any] = {
            "dropped_words": dropped,
            **{name: {} for name in ("prompts", "drawn", "right", "changing", "separating")},
        }
        if right is not None:
            facts["answered_by"] = weights_of(network)
        columns: dict[str, list[Any]] = {}
        train: Prompts | None = None
        values: dict[str, Sequence[Any]] = {}
        for split, size in sizes.items():
            drawn = draw_prompts(
                task, parts[split], _n_prompts(wanted, pairs, size), right, rng=rng, split=split
            )
            labelled = _pairs(
                task, wanted, pairs, drawn.prompts, size, parts[split], apart, right, rng
            )
            # The first split is train: its values and prompts serve `values` and `again`.
            if train is None:
                train, run = drawn.prompts, task.model.run_batch(labelled.bases.inputs)
                values = {v: run[v] for v in variables}
            if right is not None:
                facts["drawn"][split], facts["right"][split] = drawn.n_drawn, drawn.n_right
            facts["prompts"][split], facts["changing"][split] = (
                len(drawn.prompts),
                int(labelled.changing.sum()),
            )
            share = float(labelled.changing.mean())
            if (
                changing_share is not None
                and variables
                and pairs != "exhaustive"
                and abs(share - changing_share) > 0.05
            ):
                log.warning(
                    "%s: %.0f%% of the pairs are changing; asked were %.0f%%.",
                    split,
                    100 * share,
                    100 * changing_share,
                )
            facts["separating"][split] = _separating(labelled)
            natural_prompts = (
                counterparts(task, labelled, drawn.prompts, rng) if wanted.natural else None
            )
            table = columns_of(
                labelled,
                split,
                natural_prompts,
                unseen_templates="template" in apart,
                asks=task.asks,
            )
            # The splits stand below one another in the columns of one table.
            for name, column in table.items():
                columns.setdefault(name, []).extend(column)

        def again(epoch: int) -> Dataset:
            wanted = replace(asked, kinds=False)
            # The epoch is part of the seed: a resumed run samples what an uninterrupted one
            # samples.
            rng, n = np.random.default_rng([seed, epoch]), sizes["train"]
            prompts = train
            # Without a network to ask, new prompts are free. Otherwise the prompts that it answers
            # stay.
            if right is None:
                prompts = draw_prompts(
                    task, parts["train"], _n_prompts(wanted, pairs, n), None, rng=rng, split="train"
                ).prompts
            assert prompts is not None
            labelled = _pairs(task, wanted, pairs, prompts, n, parts["train"], apart, right, rng)
            return dataset(
                columns_of(
                    labelled,
                    "train",
                    counterparts(task, labelled, prompts, rng) if wanted.natural else None,
                )
            )

        def prompts(split: str, n: int, seed: int) -> Prompts:
            rng = np.random.default_rng([seed, SPLITS.index(split)])
            return draw_prompts(task, parts[split], n, None, rng=rng, split=split).prompts

        return cls(
            dataset(columns),
            variables,
            task,
            facts,
            again if fresh else None,
            sampled,
            values,
            prompts,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        network: Network | None = None,
        *,
        variable: str | Sequence[str] = "variable",
        shares: Sequence[float] = (0.5, 0.2, 0.3),
        seed: int = 0,
    ) -> "Pairs":
        """Read one's own pairs, without a causal model, from Parquet, JSON lines or a JSON array.

        It also reads what `save` wrote. The columns base, source and label are needed, and for
        texts base_roles and source_roles ({role: [start, stop]} in characters). The other columns
        of `COLUMNS` are optional; each is in every row or in none. Further columns stay in the
        dataset and are not used.

        Without the column split, base prompts are divided by `shares`. With base_answer or
        source_answer, pairs are left out whose prompts the network answers otherwise. Without
        base_answer a network is needed: a pair is changing where the network does not give the
        label on the unedited base. With several variables the source columns are called
        `source[VARIABLE]` and so on, and `interchanged` says which variables a pair swaps.

        Arguments:
            path: of the file.
            network: encodes the answers, and answers the prompts; None asks nobody.
            variable: what the file's variable is called, or its variables.
            shares: of train, validation and test.
            seed: of the division.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is missing or holds what cannot be, naming it and the row; or no
                pair is left.
        """
        variables = (variable,) if isinstance(variable, str) else tuple(variable)
        rows = read_rows(Path(path).expanduser())
        check_rows(path, rows, variables)
        if rows[0].get("split") is None:
            assign_splits(rows, shares, seed)
        facts: dict[str, Any] = {
            "drawn": {},
            "right": {},
            "changing": {},
            "answered_by": weights_of(network),
        }
        rows_left = []
        for split in SPLITS:
            split_rows = [row for row in rows if row["split"] == split]
            split_rows = (
                answered(split_rows, variables, network, facts, split) if split_rows else split_rows
            )
            facts["changing"][split] = sum(bool(row["changing"]) for row in split_rows)
            rows_left += split_rows
        if not rows_left:
            raise ValueError(
                f"{path}: no pair is left after leaving out those whose prompts the network "
                "answers otherwise."
            )
        # Columns of the user's own may stand in some rows only.
        names = dict.fromkeys(name for row in rows_left for name in row)
        return cls(
            dataset({name: [row.get(name) for row in rows_left] for name in names}),
            variables,
            None,
            facts,
        )


def weights_of(network: Any) -> str | None:
    """The fingerprint of the network that answered the prompts; None where it has none."""
    tell = getattr(network, "fingerprint", None)
    return None if tell is None else tell()


def _variables(task: Task, variable: str | Sequence[str] | None) -> tuple[str, ...]:
    variables = (
        task.variables[:1]
        if variable is None
        else (variable,)
        if isinstance(variable, str)
        else tuple(variable)
    )
    unknown = [name for name in variables if name not in task.variables]
    if unknown:
        raise ValueError(
            f"Task {task.name!r} has no variable {unknown[0]!r} to align; it has "
            f"{list(task.variables)}."
        )
    return variables


def _pairs(
    task: Task,
    wanted: Wanted,
    strategy: str,
    prompts: Prompts,
    n: int,
    pools: Mapping[str, Sequence[Any]],
    apart: Sequence[str],
    right: Answers | None,
    rng: np.random.Generator,
) -> Paired:
    """The labelled pairs of one split, made of its prompts."""
    way = sources(task, strategy, prompts, pools, apart)
    if strategy == "exhaustive":
        return each_with_each(task, wanted, prompts)
    # Each base has one pair; a base may be the same prompt several times.
    return paired(task, wanted, prompts.take(_bases(task, wanted, prompts, n)), way, right, rng=rng)


def _bases(task: Task, wanted: Wanted, prompts: Prompts, n: int) -> np.ndarray:
    """The rows of the prompts that are bases, int[n].

    Each prompt is as often a base as the others. Where a task asks, this holds in two groups: two
    thirds of the bases ask for a variable that is wanted, one third does not. Half of all pairs can
    then change, and in the others the value can stay.
    """
    rows = np.arange(len(prompts))
    if task.asks is not None:
        asking = np.array([name in wanted.variables for name in prompts.inputs[task.asks]])
        if 0 < asking.sum() < len(prompts):
            return np.concatenate(
                [np.resize(rows[asking], n - n // 3), np.resize(rows[~asking], n // 3)]
            )
    return np.resize(rows, n)


def _n_prompts(wanted: Wanted, strategy: str, n: int) -> int:
    """How many prompts make `n` pairs.

    As many as pairs; where each is paired with each, the most that do not make more pairs than `n`.
    """
    if strategy != "exhaustive":
        return n
    # p prompts make p · (p − 1) pairs for each pattern; p is the largest number that stays within
    # n.
    return max(2, int((1 + np.sqrt(1 + 4 * (n // len(wanted.patterns)))) // 2))


def _separating(pairs: Paired) -> dict[str, int]:
    """{rival: number of pairs on which its label differs from the causal model's}.

    Only rivals count that have a label for every pair.
    """
    return {
        name: sum(rival != label for rival, label in zip(labels, pairs.labels, strict=True))
        for name, labels in pairs.rivals.items()
        if all(rival is not None for rival in labels)
    }
