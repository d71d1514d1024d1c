"""Causal tracing: the subject is corrupted, and states of the clean run are put back.

What is measured is which states restore the answer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iit.batch import IGNORED
from iit.intervened import Activations, ActivationStore, Edit, IntervenedModel
from iit.intervention import AdditionIntervention, VanillaIntervention
from iit.network.inputs import prepare
from iit.patching.activations import activations
from iit.patching.cell_runs import CellGroup, CellRows, EditedCells, cell_values
from iit.patching.contrast import (
    AnyNetwork,
    Contrast,
    Contrasted,
    EncodedBatch,
    batch_rows,
    column_index,
    prompts_of,
)
from iit.patching.corruption import EMBEDDING, Corruption, corruption, questions, subject_deviation
from iit.patching.effects import Effects
from iit.patching.grid import MapCell, common_positions, grid, n_blocks, whole_sites
from iit.patching.metric import MetricChoice, metrics_of
from iit.progress import progress
from iit.site import Site

SPANS = ("subject_first", "subject_middle", "subject_last", "after_subject", "further", "last")
"""The kinds of tokens from the subject on, as in the paper.

A subject's only token is `subject_last`; a prompt's last one is `last`.
"""
TOKEN = "a token of a span"
"""The role of the one token that a row restores."""


def trace(
    network: AnyNetwork,
    prompts: Contrasted | EncodedBatch,
    *,
    subject: str = "subject",
    window: int = 1,
    multiple: float = 3.0,
    draws: int = 10,
    seed: int = 0,
    only: Sequence[int] | None = None,
    metric: MetricChoice = "probability",
    batch_size: int = 64,
    **where: Any,
) -> Effects:
    """What restoring each cell does to runs whose subject is corrupted.

    The effect is the mean over draws of noise.

    The embeddings of the subject's tokens become h + multiple·σ·ε with ε ~ N(0, 1). σ is the
    standard deviation of the embeddings of all the prompts' subjects, as in the paper. In the same
    run the cell gets its value of the clean run. ε depends on the seed, the draw and the prompt's
    tokens alone, so it is the same for all cells. In the result `source` is the clean run and
    `unedited` the corrupted one. So a `normalised_` metric is 0 where nothing is restored, and 1
    where everything is.

    Arguments:
        prompts: a batch with `answer`; pairs stand for their distinct bases, each with its own
            answer.
        subject: the role that is corrupted.
        window: how many layers are restored at once, the cell's in the middle; fewer at the ends.
        multiple: the noise's scale in units of σ.
        draws, seed: how many draws of noise, and their seed.
        only: numbers of the prompts that are traced; all by default. σ is of all prompts in any
            case.
        where: as `patch` takes it. Positions are `SPANS` by default. Each of a span's tokens is
            restored by itself; the effects are averaged, and are NaN where a prompt has none.
            positions="tokens" stands for every index that all prompts have.
        metric, batch_size: as `patch` takes them.

    Raises:
        ValueError: for fewer than one draw, prompts without an answer of their own or with one of
            several tokens, a subject that a prompt lacks, numbers of prompts that do not exist,
            windows that have no middle or are wider than the network, windows of sites without a
            layer, spans that no prompt has, and sites the network lacks.

    References:
        ROME, arXiv 2202.05262.
    """
    if draws < 1:
        raise ValueError(f"There is nothing to do with {draws} draws of noise.")
    clean, columns, deviation = _traced(network, prompts, subject, only)
    sites = _sites(clean, where)
    n_layers = n_blocks(clean.module)
    without_layer = window > 1 and any(site.layer is None for site in sites)
    if window % 2 == 0 or not 0 < window <= n_layers or without_layer:
        raise ValueError(
            f"window={window}: a window has a layer in its middle, so it is odd, and at most the "
            f"network's {n_layers} layers; of sites without a layer it is 1."
        )

    # The clean run's states are read once, at all positions, for every layer of any window.
    restored: dict[Site, None] = {}
    for site in sites:
        restored |= dict.fromkeys(_window(replace(site, position=None), window, n_layers))
    states = activations(network, clean.base, list(restored))

    # Each token of a span is restored by itself, so it is a row of its own in a second contrast.
    # span, prompt: LongTensor[row], the number of each token's span and of its prompt.
    tokens, span, prompt = _tokens(clean, {site.position for site in sites})
    others = [site for site in sites if site.position not in SPANS]
    of_tokens = [replace(site, position=TOKEN) for site in sites if site.position in SPANS]

    # (contrast, the number of each row's prompt, its cells): whole prompts, then single tokens.
    runs = [
        (clean, torch.arange(len(clean)), list(map(MapCell, others))),
        (tokens, prompt, list(map(MapCell, dict.fromkeys(of_tokens)))),
    ]
    metrics = metrics_of(metric)
    before, logits = clean.unedited(clean.base, metrics)

    drawn = []
    for draw in progress(range(draws), "Drawing noise"):
        noise = corruption(clean, columns, multiple * deviation, seed, draw)
        values: dict[Any, np.ndarray] = {}

        # The corrupted run without any state put back: the one cell only carries the noise.
        embedding = [MapCell(EMBEDDING)]
        alone = cell_values(clean, embedding, noise.edit_of, metrics, logits, None, batch_size)
        for name, (column,) in alone.items():
            values[name, None] = column

        # Runs resume from the corrupted run below their layer: the noise is the same for all cells.
        under = ActivationStore(clean.module, layers=range(1, n_layers + 1), under=noise.applied)
        for contrast, prompt_of_row, cells in runs:
            if not cells:
                continue
            edit_of = partial(_restoration, noise, prompt_of_row, window, states)
            # Logits of the clean run, row by row.
            plain = None if logits is None else logits[prompt_of_row]
            figures = cell_values(contrast, cells, edit_of, metrics, plain, under, batch_size)
            for name, by_cell in figures.items():
                for cell, column in zip(cells, by_cell, strict=True):
                    values[name, cell.site] = column
        drawn.append(values)

    # {(metric, site or None for the corrupted run): float[row]}
    mean = {key: np.mean([values[key] for values in drawn], 0) for key in drawn[0]}

    effects: dict[str, np.ndarray] = {}
    for name in metrics:
        by_site = []
        for site in sites:
            if site.position in SPANS:
                inside = (span == SPANS.index(str(site.position))).numpy()
                by_token = mean[name, replace(site, position=TOKEN)][inside]
                by_site.append(_by_prompt(by_token, prompt.numpy()[inside], len(clean)))
            else:
                by_site.append(mean[name, site])
        effects[name] = np.stack(by_site)

    return Effects(
        tuple(map(MapCell, sites)),
        effects,
        {name: mean[name, None] for name in metrics},
        before,
        clean.clusters,
        "CausalTracing" + ("" if window == 1 else f", window {window}"),
        controls=("corrupted", "no_intervention"),
        labels=clean.tokens([site.position for site in sites]),
    )


def _tokens(clean: Contrast, positions: Collection[Any]) -> tuple[Contrast, Tensor, Tensor]:
    """A row for each token of the spans among the positions, with its column at the role `TOKEN`.

    The two tensors are LongTensor[row], the number in `SPANS` and the number of the prompt.
    """
    by_span = [clean.base["positions"][span] != IGNORED for span in SPANS]
    wanted = torch.tensor([span in positions for span in SPANS])
    # [span, prompt, column]
    is_token = torch.stack(by_span) & wanted.view(-1, 1, 1)
    span, prompt, column = is_token.nonzero(as_tuple=True)
    base = {name: clean.base[name][prompt] for name in ("input_ids", "attention_mask")}
    base["positions"] = {TOKEN: column.unsqueeze(1)}
    return _rows(clean, prompt, base), span, prompt


def _by_prompt(values: np.ndarray, prompt: np.ndarray, n: int) -> np.ndarray:
    """The mean over each prompt's tokens, float[prompt] of n; NaN where there is none."""
    count = np.bincount(prompt, minlength=n)
    total = np.bincount(prompt, weights=values, minlength=n)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _restoration(
    noise: Corruption,
    prompt: Tensor,
    window: int,
    states: Mapping[Site, Tensor],
    group: CellGroup,
) -> EditedCells:
    """Corrupted runs in which the cell has its state of the clean run, in all layers of its window.

    prompt: LongTensor[pair], which prompt each pair's is.
    states: {site: Tensor[prompt, position, width]}, of sites at all positions.
    """
    module = group.contrast.module
    sites = _window(group.site, window, n_blocks(module))
    edits: dict[Any, Edit] = {
        "noise": Edit(EMBEDDING, AdditionIntervention()),
        "restored": Edit(sites, VanillaIntervention()),
    }
    model = IntervenedModel(group.contrast.network, edits, stored=["noise"])

    def logits(rows: CellRows) -> Tensor:
        index = column_index(group.site, prepare(module, prompts_of(rows.base)))
        counts = (index != IGNORED).sum(1)
        # [row, 1], beside the index [row, position]
        numbers = prompt[rows.pair].unsqueeze(1)
        values = {}
        for site in sites:
            of_prompts = states[replace(site, position=None)]
            # Absent columns read column 0, and `counts` leaves them out.
            values[site] = of_prompts[numbers, index.clamp(min=0)]
        restored = Activations(values, dict.fromkeys(sites, counts))
        sources = {"noise": noise.source(rows.base), "restored": restored}
        return model.answer_logits(rows.base, sources)

    return model, logits


def _traced(
    network: AnyNetwork,
    prompts: Contrasted | EncodedBatch,
    subject: str,
    only: Sequence[int] | None,
) -> tuple[Contrast, Tensor, float]:
    """The prompts that are traced, with the roles `SPANS`; the columns of their subjects; and σ.

    σ is of all prompts.
    """
    clean = questions(network, prompts)
    subject_site = replace(EMBEDDING, position=subject)
    columns = column_index(subject_site, prepare(clean.module, clean.base))
    # Before `only` is applied: σ is of all prompts.
    deviation = subject_deviation(clean, columns)
    spans = _spans(columns, clean.base["attention_mask"].sum(1))
    base = {**clean.base, "positions": clean.base["positions"] | spans}
    rows = torch.arange(len(clean))
    if only is not None:
        if not set(only) <= set(rows.tolist()):
            raise ValueError(
                f"only={list(only)}: the prompts have the numbers 0 to {len(clean) - 1}."
            )
        rows = torch.tensor(list(only))
    return _rows(clean, rows, batch_rows(base, rows)), columns[rows], deviation


def _rows(clean: Contrast, rows: Tensor, base: EncodedBatch) -> Contrast:
    """A contrast of some prompts, with this base."""
    label = clean.label[rows]
    other = None if clean.own is None else clean.own[rows]
    return Contrast(clean.network, base, base, label, other, np.arange(len(rows)))


def _spans(subject: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Span → LongTensor[prompt, column], each column of the span itself, −100 elsewhere."""
    columns = torch.arange(int(lengths.max()))
    end = lengths.unsqueeze(1) - 1
    # [prompt, 1]; padding must not be the least column.
    without_padding = subject.masked_fill(subject == IGNORED, len(columns))
    first = without_padding.min(1, keepdim=True).values
    last = subject.max(1, keepdim=True).values
    kinds = {
        "subject_last": columns == last,
        "last": columns == end,
        "after_subject": columns == last + 1,
        "subject_first": columns == first,
        "subject_middle": columns < last,
        "further": columns > last,
    }
    free = (columns >= first) & (columns <= end)
    spans = {}
    for span, kind in kinds.items():
        spans[span] = torch.where(kind & free, columns, IGNORED)
        free &= ~kind  # a token is of the first kind of `kinds` that fits
    return spans


def _sites(clean: Contrast, where: dict[str, Any]) -> list[Site]:
    """The sites that are restored.

    Raises:
        ValueError: for a span that no prompt has.
    """
    absent = [span for span in SPANS if (clean.base["positions"][span] == IGNORED).all()]
    positions = where.setdefault("positions", [span for span in SPANS if span not in absent])
    if positions == "tokens":
        where["positions"] = common_positions(clean)
    sites = whole_sites(grid(clean, **where))
    for site in sites:
        if site.position in absent:
            raise ValueError(f"No prompt has a token of the span {site.position!r}.")
    return sites


def _window(site: Site, window: int, n_layers: int) -> list[Site]:
    """The sites in the layers around a site, its own in the middle."""
    if site.layer is None:
        return [site]
    sites = []
    for layer in range(site.layer - window // 2, site.layer + window // 2 + 1):
        # A layer that does not exist is refused where the site is resolved.
        if layer == site.layer or 0 <= layer < n_layers:
            sites.append(replace(site, layer=layer))
    return sites
