"""The contents of an activation store, by prompt: activations, and keys and values."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iit.intervened.shelf import Record, Shelf
from iit.intervened.snapshot import NetworkSnapshot
from iit.intervened.spill import Spill
from iit.site import Site

PromptTokens = tuple[int, ...]
"""The real tokens of a prompt."""


@dataclass(frozen=True)
class _Values:
    """Activations of one prompt at one site.

    columns: column of the prompt → row of `values`.
    values: Tensor[position, width].
    """

    columns: dict[int, int]
    values: Tensor

    def at(self, columns: tuple[int, ...]) -> Tensor:
        # All columns, in their order: nothing is copied.
        if columns == tuple(self.columns):
            return self.values
        return self.values[[self.columns[c] for c in columns]]


@dataclass(frozen=True)
class Cache:
    """Keys and values of one prompt before some column, in the blocks from `first` on.

    values: Tensor[block, 2, head, seq, width].
    """

    first: int
    values: Tensor

    @property
    def n_columns(self) -> int:
        """How many columns they are of."""
        return self.values.shape[-2]


class StoreContents:
    """Activations by prompt and site, and keys and values by prompt.

    Arguments:
        budget, folder: as of a `Spill`.
        shelf: the folder of a `Shelf`. What is on it counts as kept, and what is added is put
            there.
    """

    def __init__(self, budget: int, folder: str | Path | None, shelf: str | Path | None):
        self.caches: dict[PromptTokens, Cache] = {}
        self._values: dict[tuple[Site, PromptTokens], _Values] = {}
        self._spill = Spill(budget, folder)
        self._shelf_folder, self._shelf = shelf, None
        # What is not on the shelf yet.
        self._new: list[Record] = []

    def __len__(self) -> int:
        return len(self._values)

    def begin(self, network: NetworkSnapshot) -> None:
        """Forget everything, and take what is on the network's shelf."""
        self.caches.clear()
        self._values.clear()
        self._spill.clear()
        self._new.clear()
        if self._shelf_folder is None:
            return
        self._shelf = Shelf(self._shelf_folder, network.run_fingerprint())
        for site, prompt, index, values in self._shelf.records():
            if site is None:
                cache = self.caches.get(prompt)
                if cache is None or (
                    cache.first >= index[0] and cache.n_columns <= values.shape[-2]
                ):
                    # A record takes the place of one that it covers.
                    self.caches[prompt] = Cache(index[0], values)
            else:
                key = (site, prompt)
                if key not in self._values or len(self._values[key].columns) < len(index):
                    self._values[key] = _Values({c: n for n, c in enumerate(index)}, values)

    def shelve(self) -> None:
        """Put what was added since the last call on the shelf, if there is one."""
        if self._shelf is not None:
            self._shelf.put(self._new)
        self._new.clear()

    def has(self, site: Site, prompt: PromptTokens, columns: Iterable[int]) -> bool:
        """Whether the activations of these columns are kept."""
        stored = self._values.get((_whole_site(site), prompt))
        return stored is not None and all(c in stored.columns for c in columns)

    def add(
        self, site: Site, prompt: PromptTokens, columns: tuple[int, ...], activations: Tensor
    ) -> None:
        """Keep the activations of these columns, beside those that are already kept.

        Arguments:
            activations: Tensor[position, width]; it may have more rows behind those of the columns.
        """
        whole_site = _whole_site(site)
        values = activations[: len(columns)]
        stored = self._values.get((whole_site, prompt))
        if stored is not None:
            new_rows = [n for n, c in enumerate(columns) if c not in stored.columns]
            columns = (*stored.columns, *(columns[n] for n in new_rows))
            # The columns that were kept come first, in their order.
            values = torch.cat([stored.values.to(values.device), values[new_rows]])
            # Its copy is part of the new tensor.
            self._spill.drop(stored.values)
        self._values[whole_site, prompt] = _Values(
            {c: n for n, c in enumerate(columns)}, self._spill.keep(values)
        )
        self._remember(Record(whole_site, prompt, columns, values))

    def has_cache(self, layer: int, prompt: PromptTokens, n_columns: int) -> bool:
        """Whether that many columns of keys and values are kept, for the blocks from `layer` on."""
        cache = self.caches.get(prompt)
        # Nothing is needed before the first column.
        return not n_columns or (
            cache is not None and cache.first <= layer and cache.n_columns >= n_columns
        )

    def add_cache(self, first: int, prompt: PromptTokens, values: Tensor) -> None:
        """Keep keys and values in place of those that are kept of the prompt."""
        if (replaced := self.caches.get(prompt)) is not None:
            self._spill.drop(replaced.values)
        self.caches[prompt] = Cache(first, self._spill.keep(values))
        self._remember(Record(None, prompt, (first,), values))

    def stacked(
        self,
        site: Site,
        prompts: list[PromptTokens],
        wanted: list[tuple[int, ...]],
        device: torch.device,
    ) -> Tensor:
        """Tensor[batch, position, width] of the columns `wanted`; zeros where there are fewer."""
        rows = [
            self._values[_whole_site(site), prompt].at(columns)
            for prompt, columns in zip(prompts, wanted, strict=True)
        ]
        # Values beyond the budget, or from a shelf, lie on the CPU.
        if len({row.device for row in rows}) > 1:
            rows = [row.to(device) for row in rows]
        # [position, width] of each example → [batch, longest, width]
        return pad_sequence(rows, batch_first=True).to(device)

    def stacked_caches(
        self, layer: int, prompts: list[PromptTokens], begins: list[int], device: torch.device
    ) -> Tensor | None:
        """Keys and values of the columns before `begins`, in the blocks from `layer` on.

        Returns Tensor[block, 2, batch, head, seq, width], right-aligned and zero before; None where
        no prompt has columns to stack.
        """
        present = [
            (i, self.caches[p], begin)
            for i, (p, begin) in enumerate(zip(prompts, begins, strict=True))
            if begin
        ]
        if not present:
            return None
        # A stored cache may begin at an earlier block than the one asked for.
        longest = max(begins)
        like = present[0][1].values[layer - present[0][1].first :]
        shape = (*like.shape[:2], len(prompts), like.shape[2], longest, like.shape[-1])
        stacked = torch.zeros(shape, dtype=like.dtype, device=device)
        for i, cache, begin in present:
            stacked[:, :, i, :, longest - begin :] = cache.values[
                layer - cache.first :, ..., :begin, :
            ]
        return stacked

    def _remember(self, record: Record) -> None:
        if self._shelf is not None:
            self._new.append(record)


def _whole_site(site: Site) -> Site:
    """The site without its position, which the columns say."""
    return replace(site, position=None)
