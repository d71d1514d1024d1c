"""What runs of a network left: activations and keys and values, by prompt."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iit.intervened.shelf import Record, Shelf
from iit.intervened.spill import Spill
from iit.intervened.watched import Watched
from iit.site import Site

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class _Values:
    """Activations of one prompt at one site: column → row of `values`, Tensor[position, width]."""

    columns: dict[int, int]
    values: Tensor

    def at(self, columns: tuple[int, ...]) -> Tensor:
        if columns == tuple(self.columns):
            return self.values
        return self.values[[self.columns[c] for c in columns]]


@dataclass(frozen=True)
class Cache:
    """Keys and values of one prompt in the blocks from `first` on, before some column:
    Tensor[block, 2, head, seq, width].
    """

    first: int
    values: Tensor

    @property
    def n_columns(self) -> int:
        """Of how many columns they are."""
        return self.values.shape[-2]


class Kept:
    """Activations by prompt and site, and keys and values by prompt.

    budget, folder: as of a `Spill`. shelf: the folder of a `Shelf`; what is on it is known, and
        what comes is put there.
    """

    def __init__(self, budget: int, folder: str | Path | None, shelf: str | Path | None):
        self.caches: dict[Prompt, Cache] = {}
        self._values: dict[tuple[Site, Prompt], _Values] = {}
        self._spill = Spill(budget, folder)
        self._shelf_folder, self._shelf = shelf, None
        self._new: list[Record] = []

    def __len__(self) -> int:
        return len(self._values)

    def begin(self, network: Watched) -> None:
        """Forget everything, and know what is on the network's shelf."""
        self.caches.clear()
        self._values.clear()
        self._spill.clear()
        self._new.clear()
        if self._shelf_folder is None:
            return
        self._shelf = Shelf(self._shelf_folder, network.identity())
        for site, prompt, index, values in self._shelf.records():
            if site is None:
                known = self.caches.get(prompt)
                if known is None or (
                    known.first >= index[0] and known.n_columns <= values.shape[-2]
                ):
                    self.caches[prompt] = Cache(index[0], values)
            else:
                place = (site, prompt)
                if place not in self._values or len(self._values[place].columns) < len(index):
                    self._values[place] = _Values({c: n for n, c in enumerate(index)}, values)

    def shelve(self) -> None:
        """Put what was added since the last time on the shelf, if there is one."""
        if self._shelf is not None:
            self._shelf.put(self._new)
        self._new.clear()

    def has(self, site: Site, prompt: Prompt, columns: Iterable[int]) -> bool:
        """Whether the activations of these columns are kept."""
        known = self._values.get((_place(site), prompt))
        return known is not None and all(c in known.columns for c in columns)

    def add(self, site: Site, prompt: Prompt, columns: tuple[int, ...], found: Tensor) -> None:
        """Keep the activations of these columns, beside those that are kept; `found` may have more
        rows behind them.
        """
        place, values = _place(site), found[: len(columns)]
        known = self._values.get((place, prompt))
        if known is not None:
            more = [n for n, c in enumerate(columns) if c not in known.columns]
            columns = (*known.columns, *(columns[n] for n in more))
            values = torch.cat([known.values.to(values.device), values[more]])
            self._spill.drop(known.values)
        self._values[place, prompt] = _Values(
            {c: n for n, c in enumerate(columns)}, self._spill.keep(values)
        )
        self._remember(Record(place, prompt, columns, values))

    def has_cache(self, layer: int, prompt: Prompt, n_columns: int) -> bool:
        """Whether keys and values of that many columns are kept for the blocks from `layer` on."""
        known = self.caches.get(prompt)
        return not n_columns or (
            known is not None and known.first <= layer and known.n_columns >= n_columns
        )

    def add_cache(self, first: int, prompt: Prompt, values: Tensor) -> None:
        """Keep keys and values in place of those that are kept of the prompt."""
        if (known := self.caches.get(prompt)) is not None:
            self._spill.drop(known.values)
        self.caches[prompt] = Cache(first, self._spill.keep(values))
        self._remember(Record(None, prompt, (first,), values))

    def stacked(
        self, site: Site, prompts: list[Prompt], wanted: list[tuple[int, ...]], device: torch.device
    ) -> Tensor:
        """Tensor[batch, position, width] of the columns `wanted`; zeros where an example has
        fewer.
        """
        rows = [
            self._values[_place(site), prompt].at(columns)
            for prompt, columns in zip(prompts, wanted, strict=True)
        ]
        if len({row.device for row in rows}) > 1:
            rows = [row.to(device) for row in rows]
        return pad_sequence(rows, batch_first=True).to(device)

    def stacked_caches(
        self, layer: int, prompts: list[Prompt], begins: list[int], device: torch.device
    ) -> Tensor | None:
        """Tensor[block, 2, batch, head, seq, width] from `layer` on, of the columns before
        `begins`, right-aligned; None for no columns.
        """
        found = [
            (i, self.caches[p], begin)
            for i, (p, begin) in enumerate(zip(prompts, begins, strict=True))
            if begin
        ]
        if not found:
            return None
        longest, like = max(begins), found[0][1].values[layer - found[0][1].first :]
        shape = (*like.shape[:2], len(prompts), like.shape[2], longest, like.shape[-1])
        stacked = torch.zeros(shape, dtype=like.dtype, device=device)
        for i, known, begin in found:
            stacked[:, :, i, :, longest - begin :] = known.values[
                layer - known.first :, ..., :begin, :
            ]
        return stacked

    def _remember(self, record: Record) -> None:
        if self._shelf is not None:
            self._new.append(record)


def _place(site: Site) -> Site:
    """The site without its position: columns say that."""
    return replace(site, position=None)
