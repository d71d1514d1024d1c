"""Causal tracing: the subject is corrupted, and states of the clean run are put back to see which of them restore the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iit.data import EncodedPairs, Pairs
from iit.intervened import Activations, ActivationStore, Edit, IntervenedModel
from iit.intervention import AdditionIntervention, VanillaIntervention
from iit.network import Network
from iit.network.answering import IGNORED
from iit.network.components import blocks_of
from iit.patching.contrast import Contrast, activations
from iit.patching.corrupted import EMBEDDING, Corruption, corruption, questions, subject_deviation
from iit.patching.effects import Cell, Effects
from iit.patching.metric import Metric, metrics_of
from iit.patching.patch import Position, common_positions, sites_of
from iit.patching.running import CELL, Run, Runner, cell_values, unedited
from iit.site import Site

SPANS = ("subject_first", "subject_middle", "subject_last", "after_subject", "further", "last")
"""The kinds of tokens from the subject on, as the paper has them. A subject's only token is `subject_last`; a prompt's last one `last`."""
TOKEN = "token"
"""The role of the one token that a row restores."""


def trace(
    network: Network | nn.Module,
    prompts: Pairs | EncodedPairs | Contrast | Mapping[str, Any],
    *,
    subject: str = "subject",
    components: str | Sequence[str] = "block_output",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = None,
    positions: Sequence[Position] | str = SPANS,
    sites: Sequence[Site] | None = None,
    window: int = 1,
    multiple: float = 3.0,
    draws: int = 10,
    seed: int = 0,
    only: Sequence[int] | None = None,
    metric: str | Metric | Sequence[str] | Mapping[str, Metric] = "probability",
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """Causal tracing (ROME, arXiv 2202.05262): what restoring each cell does to runs whose subject is corrupted, mean over draws of noise.

    The embeddings of the subject's tokens become h + multiple·σ·ε, ε ~ N(0, 1), σ the standard deviation of the embeddings of
    all the prompts' subjects, as in the paper; in the same run the cell gets its value of the clean run. ε depends on the seed, the draw and the prompt's tokens
    alone, so it is the same for all cells. In the result `source` is the clean run and `unedited` the corrupted one: a
    `normalised_` metric is 0 where nothing is restored, and 1 where all is.

    prompts: a batch with `answer`; of pairs the distinct bases, each with its own answer. subject: the role that is corrupted.
    positions: those of `SPANS` stand for several tokens, each of which is restored by itself; the effects are averaged, NaN where
        a prompt has none. Other roles and token indices: as `patch` takes them. "tokens": every index that all prompts have.
    window: layers that are restored at once, the cell's in the middle; fewer at the ends.
    only: numbers of the prompts that are traced; all by default. σ is of all in any case. store: for corrupted runs with nothing restored.
    The others: as `patch` takes them.

    Raises ValueError for prompts without an answer of their own, or one of several tokens, a subject that a prompt lacks, windows
    that have no middle or are wider than the network, and sites the network lacks.
    """
    clean = questions(network, prompts, split, variable, None)
    columns = _subject(clean, subject)
    deviation = subject_deviation(clean, columns)
    if only is not None:
        clean = questions(network, prompts, split, variable, only)
        columns = _subject(clean, subject)
    clean = _with_roles(clean, _spans(columns, clean.base["attention_mask"].sum(1)))
    if isinstance(positions, str):
        if positions != "tokens":
            raise ValueError(f"positions={positions!r}: give a list of roles or token indices, or 'tokens' for each by itself.")
        positions = common_positions(clean)
    none = [span for span in SPANS if not _present(clean.base["positions"][span])]
    if positions is SPANS:
        positions = [span for span in SPANS if span not in none]
    found = list(sites) if sites is not None else sites_of(clean, components, layers, heads, positions)
    module = network.model if isinstance(network, Network) else network
    n_blocks = len(blocks_of(module)[1])
    if window % 2 == 0 or not 0 < window <= n_blocks or (window > 1 and any(site.layer is None for site in found)):
        raise ValueError(
            f"window={window}: a window has a layer in its middle, so it is odd, and at most the network's {n_blocks} layers; "
            "of sites without a layer it is 1."
        )
    lost = [site.position for site in found if site.position in none]
    if lost:
        raise ValueError(f"No prompt has a token of the span {lost[0]!r}.")
    if draws < 1 or not found:
        raise ValueError(f"There is nothing to do with {draws} draws of noise and {len(found)} sites.")
    metrics, scale = metrics_of(metric), multiple * deviation
    options = {"batch_size": batch_size, "progress": progress}
    before, plain = unedited(clean, clean.base, metrics)
    tokens = _Tokens.of(clean, [span for span in SPANS if any(site.position == span for site in found)])
    whole = [Cell(site) for site in found if site.position not in SPANS]
    single = [Cell(s) for s in dict.fromkeys(replace(site, position=TOKEN) for site in found if site.position in SPANS)]
    jobs = [(clean, torch.arange(len(clean)), whole), (tokens.rows(clean), tokens.prompt, single)]
    windows = {replace(site, position=None): _window(replace(site, position=None), window, n_blocks) for site in found}
    states = activations(network, clean.base, list(dict.fromkeys(site for sites in windows.values() for site in sites)))
    drawn = []
    for draw in range(draws):
        noise = corruption(clean, columns, scale, seed, draw)
        held = ActivationStore(module, layers=range(1, n_blocks + 1), under=noise.applied)
        alone = cell_values(clean, [Cell(EMBEDDING)], _corrupted(noise), metrics, plain, store=store, **options)
        values = {(name, None): value[0] for name, value in alone.items()}
        for contrast, prompt, cells in jobs:
            if cells:
                runner, logits = _restored(clean, noise, prompt, windows, states), None if plain is None else plain[prompt]
                restored = cell_values(contrast, cells, runner, metrics, logits, store=held, **options)
                values |= {(n, cell.site): value[i] for n, value in restored.items() for i, cell in enumerate(cells)}
        drawn.append(values)
    mean = {key: np.mean([values[key] for values in drawn], 0) for key in drawn[0]}

    def restored_at(name: str, site: Site) -> np.ndarray:
        if site.position not in SPANS:
            return mean[name, site]
        return tokens.averaged(mean[name, replace(site, position=TOKEN)], str(site.position), len(clean))

    return Effects(
        tuple(Cell(site) for site in found),
        {name: np.stack([restored_at(name, site) for site in found]) for name in metrics},
        {name: mean[name, None] for name in metrics},
        before,
        clean.clusters,
        "CausalTracing" + ("" if window == 1 else f", window {window}"),
        controls=("corrupted", "no_intervention"),
        labels=clean.tokens(list(dict.fromkeys(site.position for site in found))),
    )


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Single tokens as rows: of which prompt, at which column, of which span; LongTensor[row] and str[row]."""

    prompt: Tensor
    column: Tensor
    span: np.ndarray

    @classmethod
    def of(cls, clean: Contrast, spans: Sequence[str]) -> "_Tokens":
        found = [(prompt, column, span) for span in spans for prompt, column in _present(clean.base["positions"][span])]
        prompt, column, span = zip(*found, strict=True) if found else ((), (), ())
        return cls(torch.tensor(prompt, dtype=torch.long), torch.tensor(column, dtype=torch.long), np.array(span, dtype=str))

    def rows(self, clean: Contrast) -> Contrast:
        """A row for each token, at the role `TOKEN`."""
        base = {name: clean.base[name][self.prompt] for name in ("input_ids", "attention_mask")}
        base |= {"positions": {TOKEN: self.column.unsqueeze(1)}}
        own = None if clean.own is None else clean.own[self.prompt]
        return Contrast(clean.network, base, base, clean.label[self.prompt], own, self.prompt.numpy())

    def averaged(self, values: np.ndarray, span: str, n: int) -> np.ndarray:
        """float[prompt], the mean over a span's tokens; NaN where there is none. values: float[row]."""
        here = self.prompt.numpy()[self.span == span]
        count = np.bincount(here, minlength=n)
        total = np.bincount(here, weights=values[self.span == span], minlength=n)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _present(index: Tensor) -> list[tuple[int, int]]:
    """(row, entry) of what is there."""
    return [(row, entry) for row, entries in enumerate(index.tolist()) for entry in entries if entry != IGNORED]


def _subject(clean: Contrast, subject: str) -> Tensor:
    """LongTensor[prompt, position]. Raises ValueError for a role that is not there, or absent in a prompt."""
    roles = clean.base["positions"]
    if subject not in roles:
        known = ", ".join(map(repr, roles)) or "none"
        raise ValueError(f"The prompts have no role {subject!r} to corrupt; their roles are: {known}.")
    absent = (roles[subject] == IGNORED).all(1)
    if bool(absent.any()):
        raise ValueError(f"Role {subject!r}, which is to be corrupted, is absent in prompt {int(absent.nonzero()[0])}.")
    return roles[subject]


def _spans(subject: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Span → LongTensor[prompt, position], −100 where a prompt has fewer tokens of it."""
    found: dict[str, list[list[int]]] = {span: [] for span in SPANS}
    for columns, length in zip(subject.tolist(), lengths.tolist(), strict=True):
        inside = [column for column in columns if column != IGNORED]
        first, last = min(inside), max(inside)
        of = dict.fromkeys(range(first, length), "further") | dict.fromkeys(range(first, last), "subject_middle")
        of |= {first: "subject_first", last + 1: "after_subject", length - 1: "last", last: "subject_last"}
        for span, rows in found.items():
            rows.append([column for column in range(first, length) if of[column] == span])
    widest = max(len(row) for rows in found.values() for row in rows)
    return {span: torch.tensor([row + [IGNORED] * (widest - len(row)) for row in rows]) for span, rows in found.items()}


def _with_roles(clean: Contrast, roles: Mapping[str, Tensor]) -> Contrast:
    base = {**clean.base, "positions": {**clean.base["positions"], **roles}}
    return replace(clean, base=base, source=base)


def _corrupted(noise: Corruption) -> Runner:
    """Corrupted runs with nothing restored."""

    def run(which: Tensor, prompts: Tensor, base: dict[str, Any]) -> Tensor:
        return noise.model.answer_logits(base, {"noise": noise.source(prompts, base["attention_mask"].sum(1))})

    return lambda site, cells: (noise.model, run)


def _restored(
    clean: Contrast, noise: Corruption, prompt: Tensor, windows: Mapping[Site, Sequence[Site]], states: Mapping[Site, Tensor]
) -> Runner:
    """Corrupted runs in which the cell, in all layers of its window, has its state of the clean run.

    prompt: LongTensor[row]. windows: site → sites, without positions. states: {site: Tensor[prompt, position, width]}.
    """

    def runner(site: Site, cells: Sequence[Cell]) -> tuple[IntervenedModel, Run]:
        sites = [replace(one, position=site.position) for one in windows[replace(site, position=None)]]
        edits: dict[Any, Edit] = {
            "noise": Edit(EMBEDDING, AdditionIntervention()),
            "restored": Edit(sites, VanillaIntervention()),
        }
        model = IntervenedModel(clean.network, edits, stored=["noise"])

        def run(which: Tensor, rows: Tensor, base: dict[str, Any]) -> Tensor:
            lengths, prompts = base["attention_mask"].sum(1), prompt[rows]
            columns = torch.arange(int(lengths.max())).expand(len(rows), -1)
            columns = columns.where(columns < lengths.unsqueeze(1), IGNORED) if site.position is None else base["positions"][CELL]
            counts = (columns != IGNORED).sum(1)
            at = prompts.unsqueeze(1), columns[:, : int(counts.max())].clamp(min=0)
            values = {s: states[replace(s, position=None)][at] for s in sites}
            sources = {"noise": noise.source(prompts, lengths), "restored": Activations(values, dict.fromkeys(sites, counts))}
            return model.answer_logits(base, sources)

        return model, run

    return runner


def _window(site: Site, window: int, n_blocks: int) -> list[Site]:
    if site.layer is None:
        return [site]
    around = range(site.layer - window // 2, site.layer + window // 2 + 1)
    return [replace(site, layer=layer) for layer in around if layer == site.layer or 0 <= layer < n_blocks]
