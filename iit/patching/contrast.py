"""Pairs of runs that are held against each other: bases, sources, and the answers that tell them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from iit.data import EncodedPairs, Pairs
from iit.intervened import Activations, IntervenedModel, capture
from iit.network import LanguageModel, Network
from iit.network.answering import IGNORED
from iit.result import correct
from iit.site import Site

DIRECTIONS = ("noising", "denoising")


@final
@dataclass(frozen=True, eq=False)
class Contrast:
    """Bases and sources, row by row, with the answer of each.

    network: what runs them. base, source: batches as `encode` gives them (inputs, `positions`); their `answer` is not read.
    label: the answer that moves the base towards the source. own: the base's own answer; None where it is not known.
        LongTensor[n, n_answer], −100 padded.
    clusters: int[n], which pairs share a base.

    >>> lm = ...  # doctest: +SKIP
    >>> Contrast.of_batches(lm, lm.encode(clean, answers=[" John"]), lm.encode(corrupt, answers=[" Mary"]))  # doctest: +SKIP
    """

    network: Network | nn.Module
    base: Mapping[str, Any]
    source: Mapping[str, Any]
    label: Tensor
    own: Tensor | None
    clusters: np.ndarray

    @classmethod
    def of_batches(cls, network: Network | nn.Module, base: Mapping[str, Any], source: Mapping[str, Any]) -> "Contrast":
        """Two batches of equal size, each with its own `answer`: the source's is the label.

        Raises ValueError for batches without an answer or of different sizes.
        """
        for name, batch in (("base", base), ("source", source)):
            if batch.get("answer") is None:
                raise ValueError(f"The {name} has no `answer`; encode it with `answers=`, each prompt's own.")
        if not len(base["answer"]):
            raise ValueError("There is no pair: the batches have no rows.")
        if len(base["answer"]) != len(source["answer"]):
            raise ValueError(f"{len(base['answer'])} bases and {len(source['answer'])} sources: they must be paired.")
        inputs = [value.flatten(1) for key, value in base.items() if isinstance(value, Tensor) and key != "answer"]
        clusters = torch.unique(torch.cat([value.cpu().double() for value in inputs], 1), dim=0, return_inverse=True)[1].numpy()
        return cls(network, base, source, source["answer"], base["answer"], clusters)

    @classmethod
    def of(
        cls,
        network: Network | nn.Module,
        pairs: Pairs | EncodedPairs,
        *,
        split: str = "validation",
        variable: str | None = None,
        direction: str = "noising",
        every: bool = False,
    ) -> "Contrast":
        """The changing pairs of a split that interchange the variable.

        direction: "noising" runs the base and swaps the source's activations in; "denoising" the other way round, which asks for
            pairs whose source's own answer is the label (of IOI, `pairs="s2_io_flip"`).
        every: take all pairs, in their order, whatever they change and interchange.

        Raises ValueError for an unknown direction or variable, no pair that is left, and sources that answer otherwise.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r} is none of {', '.join(DIRECTIONS)}.")
        if isinstance(pairs, Pairs):
            if not isinstance(network, Network):
                raise ValueError(f"Pairs are encoded by a LanguageModel or a Classifier; {type(network).__name__} is neither.")
            encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
        else:
            encoded = pairs
        if variable is None and len(encoded.variables) > 1:
            raise ValueError(f"The pairs are of the variables {list(encoded.variables)}; say whose source is to be patched in.")
        name = variable or next(iter(encoded.variables))
        if name not in encoded.variables:
            raise ValueError(f"The pairs are of the variables {list(encoded.variables)}, not {name!r}.")
        among = np.array([name in names for names in encoded.interchanged]) & encoded.changing.numpy() | every
        if not among.any():
            raise ValueError(f"No changing pair interchanges {name!r}.")
        batch = encoded.batch(among.nonzero()[0].tolist())
        clusters = np.unique(encoded.bases, return_inverse=True)[1][among]
        found = cls(network, batch["base"], batch["sources"][name], batch["base"]["answer"], batch.get("base_answer"), clusters)
        return found if direction == "noising" else found.swapped(check=True)

    def __len__(self) -> int:
        return len(self.label)

    def swapped(self, check: bool = False) -> "Contrast":
        """Sources as bases. Raises ValueError where the base's own answer is not known or, if asked, sources do not give the label."""
        if self.own is None:
            raise ValueError("Denoising needs each base's own answer (`base_answer`): it is what the sources are moved towards.")
        if check:
            wrong = len(self) - int(self._given(self.source).sum())
            if wrong:
                raise ValueError(
                    f"Denoising: {wrong} of {len(self)} sources do not give the label by themselves, so that bases cannot restore it. "
                    "Take sources that are the base but for what tells the answers apart (one of the task's counterfactuals, as "
                    "data.pairs=s2_io_flip of IOI), or direction='noising'."
                )
        return replace(self, base=self.source, source=self.base, label=self.own, own=self.label)

    def _given(self, batch: Mapping[str, Any]) -> Tensor:
        plain, found = IntervenedModel(self.network, {}), []
        for rows in torch.arange(len(self)).split(64):
            with torch.no_grad():
                found.append(correct(plain.answer_logits(taken(batch, rows, self.label)).cpu(), self.label[rows]))
        return torch.cat(found)

    def tokens(self, places: Sequence[Any]) -> dict[Any, str]:
        """{role or token index: its text in the first base that has it}, for axes; nothing for what is neither, or no language model's."""
        if not isinstance(self.network, LanguageModel):
            return {}
        tokenizer: Any = self.network.tokenizer
        roles = self.base.get("positions") or {}
        found: dict[Any, str] = {}
        for row, (ids, mask) in enumerate(zip(self.base["input_ids"], self.base["attention_mask"], strict=True)):
            n = int(mask.sum())
            for place in [place for place in places if place not in found]:
                index = [int(i) for i in roles[place][row] if i != IGNORED] if place in roles else []
                if isinstance(place, int) and -n <= place < n:
                    index = [place % n]
                if index:
                    found[place] = tokenizer.decode(ids[index].tolist())
        return found


def taken(batch: Mapping[str, Any], rows: Tensor, answer: Tensor | None = None) -> dict[str, Any]:
    """The batch's rows, as long as the longest of them; `answer` (of the whole batch) in place of its own."""
    cut = {key: value[rows] for key, value in batch.items() if isinstance(value, Tensor) and key != "answer"}
    if "attention_mask" in cut and bool((cut["attention_mask"].diff(dim=1) <= 0).all()):
        longest = int(cut["attention_mask"].sum(1).max())
        cut |= {key: cut[key][:, :longest] for key in ("input_ids", "attention_mask") if key in cut}
    positions = {role: index[rows] for role, index in (batch.get("positions") or {}).items()}
    return cut | ({"positions": positions} if positions else {}) | ({} if answer is None else {"answer": answer[rows]})


def activations(network: Network | nn.Module, batch: Mapping[str, Any], sites: Sequence[Site], size: int = 64) -> Activations:
    """What `capture` gives, `size` rows at a time; {site: Tensor[row, position, width]}."""
    rows = torch.arange(next(len(value) for value in batch.values() if isinstance(value, Tensor)))
    parts = [capture(network, taken(batch, chosen), sites) for chosen in rows.split(size)]
    counts = {site: _joined([part.counts[site] for part in parts]) for site in sites}

    def wide(site: Site) -> Tensor:
        n = max(part[site].shape[1] for part in parts)
        return torch.cat([torch.nn.functional.pad(part[site], (0, 0, 0, n - part[site].shape[1])) for part in parts])

    return Activations({site: wide(site) for site in sites}, counts)


def _joined(counts: Sequence[Tensor | None]) -> Tensor | None:
    known = [count for count in counts if count is not None]
    return torch.cat(known) if len(known) == len(counts) else None


def chosen(found: Activations, rows: Tensor) -> Activations:
    """Some rows of activations."""
    counts = {site: None if count is None else count[rows] for site, count in found.counts.items()}
    return Activations({site: tensor[rows] for site, tensor in found.items()}, counts)
