"""What is scored: an alignment on one split of pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs, Prompts
from iit.data.table import columns_of, dataset
from iit.evaluation.illusion import spans
from iit.evaluation.outcomes import Outcomes, outcomes
from iit.evaluation.rows import Group, describe
from iit.evaluation.trust import TRUST, NotApplicableError, Refit, Trust, train_alike
from iit.intervened.score import ARGMAX, Score
from iit.network import Network


@dataclass(frozen=True, eq=False)
class Scoring:
    """An alignment on one split of pairs, and how it is scored; the fields are those of `evaluate`.

    All controls and diagnostics read it, so each of them takes what it needs.
    """

    alignment: Alignment
    pairs: Pairs
    split: str
    trust: Trust = TRUST["quick"]
    refit: Refit = train_alike
    batch_size: int = 64
    seed: int = 0
    experiment: str | None = None
    score: Score = ARGMAX

    @property
    def network(self) -> Network:
        """The network that encodes the pairs."""
        assert self.alignment.studied is not None
        return self.alignment.studied

    @property
    def is_full(self) -> bool:
        """Whether everything is run that needs time."""
        return self.trust.full and self.split == "test"

    @property
    def has_training(self) -> bool:
        """Whether there are training pairs."""
        return "train" in set(self.pairs.dataset["split"])

    @property
    def table(self) -> Dataset:
        """The table of the split."""
        return self.pairs.split(self.split)

    # A cached property may stand in a frozen dataclass: it goes around `__setattr__`.
    @cached_property
    def encoded(self) -> EncodedPairs:
        """The pairs of the split."""
        return EncodedPairs(self.table, self.pairs.variables, self.network)

    @cached_property
    def on_train_split(self) -> "Scoring":
        """The same on the training split.

        Raises:
            NotApplicableError: where there is none.
        """
        if not self.has_training:
            raise NotApplicableError("the pairs have no training split")
        # A new object, with pairs that are encoded once for all who read it.
        return replace(self, split="train")

    @cached_property
    def own_outcomes(self) -> Outcomes:
        """What the alignment itself does."""
        return self.outcomes(self.alignment)

    @cached_property
    def unedited(self) -> Outcomes:
        """What the network does without an edit."""
        return self.outcomes(self.alignment, edited=False)

    @cached_property
    def spaces(self) -> dict[str, dict[str, Tensor]]:
        """Directions at the sites of each variable, {name: {variable: columns}} (see `spans`).

        "natural" has those in which activations of the training pairs vary. "read" has those to
        which the layers behind the sites react.
        """
        natural = self.on_train_split.encoded if self.has_training else None
        return spans(self.alignment, self.encoded, natural, self.batch_size)

    def cell_columns(self, variables: Sequence[str]) -> dict[str, Any]:
        """The columns of a row that say which cell, run and split it belongs to."""
        run = {"seed": self.seed, "split": self.split, "experiment": self.experiment}
        return describe(self.alignment, self.pairs, variables) | run

    def groups(self) -> Iterator[tuple[tuple[str, ...], Group]]:
        """Each set of variables that pairs interchange, with its pairs."""
        interchanged = self.encoded.interchanged
        # Groups come in the order of their first pair.
        for variables in dict.fromkeys(interchanged):
            # bool[n], over all pairs of the split.
            among = np.array([names == variables for names in interchanged])
            columns = self.cell_columns(variables)
            yield variables, Group(self.encoded, among, columns, self.trust.resamples)

    def outcomes(self, alignment: Alignment, *, edited: bool = True) -> Outcomes:
        """What an alignment does on the pairs of the split."""
        return outcomes(
            alignment,
            self.encoded,
            batch_size=self.batch_size,
            edited=edited,
            score=self.score,
        )


def encoded_prompts(prompts: Prompts, network: Network) -> EncodedPairs:
    """Prompts alone, without sources, as pairs."""
    return EncodedPairs(dataset(columns_of("test", prompts, prompts.answers)), (), network)
