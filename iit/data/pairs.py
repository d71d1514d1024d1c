"""Counterfactual pairs: a base, a source for each variable, and the label after the interchange."""

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from operator import contains, itemgetter, methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from iit.causal import Pools, Task
from iit.data.chat import in_chat
from iit.data.natural import counterparts
from iit.data.own import assign_splits, check_rows, keep_answered, read_rows
from iit.data.pairing import (
    Wanted,
    base_rows,
    count_separating,
    draw_pairs,
    each_with_each,
    label_columns,
)
from iit.data.prompts import AnswersPrompts, Prompts, PromptsUsed, draw_prompts, one_token_words
from iit.data.sources import STRATEGIES, Sources
from iit.data.splits import SPLITS, disjoint_pools
from iit.data.table import dataset, names_of
from iit.result.table import Shown, Table

log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Pairs(Shown):
    """Pairs of all splits, for one variable or several.

    Arguments:
        dataset: a `datasets.Dataset` with columns of `COLUMNS`.
        variables: the variables whose values are interchanged; one may be a string. () for prompts
            alone, whose label is their own answer.
        task: the task that the pairs were sampled from. None for pairs that were not sampled: they
            have no causal model.
        facts: counts: prompts that were drawn and that are used, dropped words, changing and
            separating pairs, …
        values: {variable: its value in each training pair's base}; None for pairs that were not
            sampled.
        sampler: what drew the pairs. It draws other pairs, and prompts, of the same splits. None
            for pairs that were not sampled.
        again: epoch → training pairs that are sampled anew; None where all epochs have the same.
    """

    dataset: Dataset
    variables: tuple[str, ...] | str
    task: Task | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Sequence[Any]] | None = None
    sampler: "Sampler | None" = None
    again: Callable[[int], Dataset] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", names_of(self.variables))

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

    def as_table(self) -> Table:
        """The first pairs, with their roles marked; and how many there are."""
        shown = re.compile(r"(split|base|source|label|kind)(\[.*)?")
        columns = list(filter(shown.fullmatch, self.dataset.column_names))
        lines = [[_marked(pair, name) for name in columns] for pair in islice(self.dataset, 5)]
        sizes = Counter(self.dataset["split"])
        title = f"Pairs for {self.variable}: {dict(sizes)}; the first {len(lines)}"
        return Table(title, columns, lines, n_words=len(columns))

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of all pairs, with the columns of `COLUMNS`."""
        return self.dataset.to_pandas()

    @property
    def fingerprint(self) -> str:
        """sha256 of the variables and every column."""
        digest = hashlib.sha256(self.variable.encode())
        table: Any = self.dataset.with_format("arrow")[:]
        for name in table.column_names:
            # One chunk: how a table is cut into chunks says nothing about its values.
            column = table.column(name).combine_chunks()
            digest.update(name.encode())
            # Tensors are nested lists of fixed sizes: their sizes are hashed, then the flat
            # numbers.
            while pa.types.is_fixed_size_list(column.type):
                digest.update(str(column.type.list_size).encode())
                column = column.flatten()
            if pa.types.is_floating(column.type) and not column.null_count:
                digest.update(column.to_numpy())
            else:
                values = json.dumps(column.to_pylist(), sort_keys=True, default=str)
                digest.update(values.encode())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the pairs as Parquet."""
        table: Any = self.dataset.with_format("arrow")[:]
        pq.write_table(table.combine_chunks(), Path(path).expanduser())

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], variable: str | Sequence[str] = ()) -> "Pairs":
        """Pairs from rows in Python.

        All count as changing, and all stay: no network is asked.

        Arguments:
            rows: mappings with split, base and label; with a variable also source.
            variable: the variable's name, or several; () for prompts alone.
        """
        columns = {name: list(map(itemgetter(name), rows)) for name in rows[0]}
        columns["changing"] = [True] * len(rows)
        return cls(dataset(columns), names_of(variable))

    @classmethod
    def sample(
        cls,
        task: Task,
        network: AnswersPrompts | None = None,
        n: int | None = None,
        **options: Any,
    ) -> "Pairs":
        """Sample prompts, pair them, and label the pairs by interchange.

        Arguments:
            task, network: as in `Sampler`.
            n, options: as in `Sampling`: `Pairs.sample(task, network, n_train=64, seed=1)`.

        Raises:
            TypeError: `task` is no `Task`, or an option is none of `Sampling`.
            ValueError: as in `Sampler`.
        """
        return Sampling(n=n, **options)(task, network)

    @classmethod
    def load(
        cls,
        path: str | Path,
        network: AnswersPrompts | None = None,
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
        variables = names_of(variable)
        rows = read_rows(Path(path).expanduser())
        check_rows(path, rows, variables)
        if rows[0].get("split") is None:
            assign_splits(rows, shares, seed)
        facts: dict[str, Any] = {
            "drawn": {},
            "right": {},
            "changing": {},
            "answered_by": fingerprint_of(network),
        }
        rows_left = []
        for split in SPLITS:
            split_rows = [row for row in rows if row["split"] == split]
            if split_rows:
                split_rows = keep_answered(split_rows, variables, network, facts, split)
            facts["changing"][split] = sum(map(itemgetter("changing"), split_rows))
            rows_left += split_rows
        if not rows_left:
            raise ValueError(
                f"{path}: no pair is left after leaving out those whose prompts the network "
                "answers otherwise."
            )
        # Columns of the user's own may stand in some rows only.
        columns = {}
        for name in dict.fromkeys(chain.from_iterable(rows_left)):
            columns[name] = list(map(methodcaller("get", name), rows_left))
        return cls(dataset(columns), variables, facts=facts)


def _marked(pair: Any, column: str) -> str:
    """An entry of a pair: of a prompt its text, with the roles marked; of a tensor its shape."""
    text = f"{pair[column]}"
    if column != "label" and isinstance(pair[column], list):
        return f"tensor {np.shape(pair[column])}"
    roles = pair.get(re.sub(r"^\w+", r"\g<0>_roles", column)) or {}
    # From the last to the first, so that the places of the others stay. Of roles that overlap, the
    # later one is marked.
    end = len(text)
    for start, stop in sorted(filter(None, roles.values()), reverse=True):
        if stop <= end:
            text, end = f"{text[:start]}⟦{text[start:stop]}⟧{text[stop:]}", start
    return text if len(text) < 400 else f"{text[:200]} … {text[-200:]}"


@dataclass(frozen=True)
class Sampling:
    """How pairs are sampled. It is called with a task and a network, and samples them.

    Each split has as many distinct base prompts as pairs. Where its pools are exhausted earlier
    (see `draw_prompts`), each prompt is the base of about as many pairs as the others. The prompts
    of a task may each ask for one variable (`Task.asks`). In two thirds of the pairs the base then
    asks for a variable that is interchanged.

    Arguments:
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
            allows (see `Pairs.facts`). None takes the pairs as they come.
        separate: rivals of the task whose label must differ from the causal model's in every
            pair.
        right_only: whether to use only prompts that the network answers rightly.
        fresh: sample the training pairs anew in each epoch. With a network that has to answer
            rightly, they are made of the same prompts.
        natural: give each pair a natural counterpart, as far as there is one. It is a prompt of
            the same split. Its own variables and answer have the values that the interchange
            asks for.
        seed: of all draws.
        prompt: plain | chat, or the options of a chat (see `iit.data.chat.in_chat`). In a chat,
            each prompt stands in a conversation.
    """

    n: int | None = None
    variable: str | Sequence[str] | None = None
    n_train: int = 600
    n_val: int = 200
    n_test: int = 600
    splits: Sequence[str] | None = None
    shares: Sequence[float] = (0.5, 0.2, 0.3)
    pairs: str = "random"
    together: bool = False
    changing_share: float | None = 0.5
    separate: Sequence[str] = ()
    right_only: bool = True
    fresh: bool = False
    natural: bool = False
    seed: int = 0
    prompt: str | Mapping[str, Any] = "plain"

    def __call__(self, task: Task, network: AnswersPrompts | None = None) -> Pairs:
        """Sample pairs, as `Sampler` does."""
        if self.prompt != "plain":
            task = in_chat(task, network, {} if self.prompt == "chat" else self.prompt)
            # The task itself writes conversations from here on.
            return replace(self, prompt="plain")(task, network)
        return Sampler(task, network, self).pairs()

    @property
    def sizes(self) -> dict[str, int]:
        """{split: number of pairs}."""
        n = self.n
        if n is None:
            return {"train": self.n_train, "validation": self.n_val, "test": self.n_test}
        return {"train": n, "validation": n // 3, "test": n // 3}


class Sampler:
    """Samples pairs from a task, and prompts from the same splits.

    Arguments:
        task: the causal model, and how its inputs are written.
        network: tokenizes and answers the prompts. Only prompts that it answers rightly are used,
            unless `right_only` is False. None uses all.
        options: what the pairs are to be like.

    Raises:
        TypeError: `task` is no `Task`.
        ValueError: an unknown variable, pool, rival or way to pair; a share outside 0 to 1; a
            rival in `separate` that lacks a variable; fewer than 2 pairs in a split; too few
            prompts after filtering.
    """

    def __init__(self, task: Task, network: AnswersPrompts | None, options: Sampling):
        if not isinstance(task, Task):
            raise TypeError(
                "Pairs are sampled from a Task: a causal model and how its inputs are "
                f"written; got {task!r}."
            )
        self.task, self.network, self.options = task, network, options
        variables = options.variable
        if variables is None:
            variables = task.variables[:1]
        share = options.changing_share
        if not variables or options.pairs == "exhaustive":
            share = None
        self._wanted = Wanted(
            names_of(variables), options.together, share, names_of(options.separate)
        )
        self._check()
        # None asks nobody, and takes every prompt.
        self.right = None
        if network is not None and options.right_only:
            self.right = network.answers_right
        # The pools that are divided among the splits.
        splits = options.splits
        if splits is None:
            splits = task.splits
        self._apart = names_of(splits)
        pools: Pools = task.pools
        self._dropped: dict[str, int] = {}
        if network is not None and network.tokenizer is not None:
            pools, self._dropped = one_token_words(task, network)
        self._rng = np.random.default_rng(options.seed)
        # {split: {pool: entries}}
        self._pools = disjoint_pools(pools, self._apart, options.shares, rng=self._rng)
        # Where a pool is not divided, the test split has the same entries as the others.
        for name, entries in task.test_only.items():
            if name in self._apart:
                self._pools["test"][name] += entries

    def _check(self) -> None:
        task, options, wanted = self.task, self.options, self._wanted
        unknown = [name for name in wanted.variables if name not in task.variables]
        if unknown:
            raise ValueError(
                f"Task {task.name!r} has no variable {unknown[0]!r} to align; it has "
                f"{list(task.variables)}."
            )
        share = options.changing_share
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"changing_share is a share, from 0 to 1, or None; got {share}.")
        if not wanted.variables and options.pairs != "random":
            raise ValueError(
                f"data.pairs={options.pairs!r} chooses sources; prompts alone (no variable) have "
                "none."
            )
        ways = [*STRATEGIES, *task.counterfactuals]
        if options.pairs not in ways:
            raise ValueError(
                f"data.pairs={options.pairs!r} is none of {ways} (the latter are task "
                f"{task.name!r}'s own)."
            )
        unknown = sorted(set(wanted.separate) - set(task.rivals))
        if unknown:
            raise ValueError(
                f"data.separate names {unknown}; the rivals of task {task.name!r} are "
                f"{sorted(task.rivals)}."
            )
        for name in wanted.separate:
            if not set(wanted.variables) <= set(task.rivals[name].variables):
                raise ValueError(
                    f"data.separate: rival {name!r} has not all of {list(wanted.variables)}, and "
                    "says nothing of these pairs."
                )
        if min(options.sizes.values()) < 2:
            raise ValueError(f"Every split needs at least 2 pairs; asked for {options.sizes}.")

    def pairs(self) -> Pairs:
        """The pairs of all splits. Each call draws the same ones."""
        task, variables, rng = self.task, self._wanted.variables, deepcopy(self._rng)
        facts: dict[str, Any] = {
            "dropped_words": self._dropped,
            "prompts": {},
            "drawn": {},
            "right": {},
            "changing": {},
            "separating": {},
        }
        if self.right is not None:
            facts["answered_by"] = fingerprint_of(self.network)
        prompts: dict[str, Prompts] = {}
        bases: dict[str, Prompts] = {}
        columns: dict[str, list[Any]] = defaultdict(list)
        for split in SPLITS:
            kept = self._draw(split, rng)
            prompts[split] = kept.prompts
            bases[split], split_columns = self._label(split, kept.prompts, rng)
            # The splits stand below one another in the columns of one table.
            for name, column in split_columns.items():
                columns[name] += column
            if self.right is not None:
                facts["drawn"][split], facts["right"][split] = kept.n_drawn, kept.n_right
            facts["prompts"][split] = len(kept.prompts)
            facts["changing"][split] = sum(split_columns["changing"])
            facts["separating"][split] = count_separating(split_columns)
            share, asked_share = np.mean(split_columns["changing"]), self._wanted.changing_share
            if asked_share is not None and abs(share - asked_share) > 0.05:
                text = "%s: %.0f%% of the pairs are changing; asked were %.0f%%."
                log.warning(text, split, 100 * share, 100 * asked_share)
        settings = task.model.run_batch(bases["train"].inputs)
        values = {variable: settings[variable] for variable in variables}
        # `hold_out` removes the sampler, which could draw test pairs. This function draws training
        # pairs only, so it stays.
        again = partial(self._epoch, prompts["train"]) if self.options.fresh else None
        return Pairs(dataset(columns), variables, task, facts, values, self, again)

    def prompts(self, split: str, n: int, seed: int) -> Prompts:
        """n distinct prompts made of a split's entries, or fewer where the pools are exhausted.

        The network need not answer them rightly.
        """
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        return draw_prompts(self.task, self._pools[split], n, None, rng=rng, split=split).prompts

    def _draw(self, split: str, rng: np.random.Generator) -> PromptsUsed:
        """As many prompts as the pairs of a split need, answered rightly."""
        n = self.options.sizes[split]
        if self.options.pairs == "exhaustive":
            # p prompts make p · (p − 1) pairs for each pattern. The largest p that makes at most n.
            n_pairs = n // len(self._wanted.patterns)
            n = max(2, int((1 + np.sqrt(1 + 4 * n_pairs)) // 2))
        return draw_prompts(self.task, self._pools[split], n, self.right, rng=rng, split=split)

    def _label(
        self, split: str, prompts: Prompts, rng: np.random.Generator
    ) -> tuple[Prompts, dict[str, list[Any]]]:
        """The bases of one split's pairs, made of its prompts; and the columns of their table."""
        task, options, wanted = self.task, self.options, self._wanted
        if options.pairs == "exhaustive":
            bases, parts = each_with_each(task, wanted, prompts)
        else:
            sources = Sources(task, options.pairs, prompts, self._pools[split], self._apart)
            # Each base has one pair; a base may be the same prompt several times.
            bases = prompts.take(base_rows(task, wanted, prompts, options.sizes[split]))
            bases, parts = draw_pairs(task, wanted, bases, sources, self.right, rng=rng)
        columns = label_columns(task, wanted.variables, split, bases, parts)
        if options.natural and wanted.variables:
            columns |= counterparts(task, wanted.variables, bases, parts, prompts, rng)
        divided = [name for name in self._apart if name in bases.inputs]
        if divided:
            # Intervals are about other entries of the pool that has the fewest.
            fewest = min(divided, key=lambda name: len(task.pools[name]))
            entries = bases.inputs[fewest]
            if not all(isinstance(entry, int) for entry in task.pools[fewest]):
                entries = list(map(str, entries))
            columns["case"] = entries
        if task.asks is not None:
            swapped = columns.get("interchanged", [wanted.variables] * len(bases))
            columns["asked"] = list(map(contains, swapped, bases.inputs[task.asks]))
        return bases, columns

    def _epoch(self, prompts: Prompts, epoch: int) -> Dataset:
        """The training pairs of an epoch, sampled anew; `prompts` are those of the first epoch."""
        # The epoch is part of the seed. A training that is continued from a checkpoint samples what
        # an uninterrupted one samples.
        rng = np.random.default_rng([self.options.seed, epoch])
        # Without a network to ask, new prompts are free. Otherwise those that it answers stay.
        if self.right is None:
            prompts = self._draw("train", rng).prompts
        return dataset(self._label("train", prompts, rng)[1])


def fingerprint_of(network: Any) -> str | None:
    """The fingerprint of the network that answered the prompts; None where it has none."""
    return getattr(network, "fingerprint", lambda: None)()
