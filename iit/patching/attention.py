"""Attention patterns: which tokens each head looks at."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedModel

from iit.data import EncodedPairs, Pairs
from iit.intervened import ActivationStore, capture
from iit.intervened.batch import Inputs, prepare
from iit.intervened.positions import columns
from iit.network import LanguageModel, Network
from iit.network.answering import IGNORED
from iit.network.components import blocks_of, heads_of
from iit.patching.contrast import Contrast, taken
from iit.patching.effects import Cell, Effects
from iit.patching.patch import Position, of, sites_of
from iit.site import Site

METRIC = "attention"
"""What a map of attention measures."""


@final
@dataclass(frozen=True, eq=False)
class Patterns:
    """Attention weights of a batch.

    weights: (layer, head) → Tensor[batch, query, key]; rows of real tokens sum to 1, those of padding are zero.
    tokens: the text of each prompt's tokens, row by row; token ids where there is no tokenizer.
    """

    weights: Mapping[tuple[int, int], Float[Tensor, "batch query key"]]
    tokens: tuple[tuple[str, ...], ...]

    def of(self, row: int) -> dict[str, Any]:
        """One prompt's, as `iit.report.attention_figure` takes them: "layer.head" → float[query, key], without padding."""
        n = len(self.tokens[row])
        return {f"{layer}.{head}": each[row, :n, :n].float().cpu().numpy() for (layer, head), each in self.weights.items()}

    def table(self, row: int) -> list[dict[str, Any]]:
        """A line for each head, query and key of one prompt: layer, head, query, key (token numbers), their texts, and the weight."""
        told = self.tokens[row]
        return [
            {
                "layer": layer,
                "head": head,
                "query": query,
                "key": key,
                "query_token": told[query],
                "key_token": told[key],
                "weight": float(each[row, query, key]),
            }
            for (layer, head), each in self.weights.items()
            for query in range(len(told))
            for key in range(len(told))
        ]


def attention_patterns(
    network: Network | nn.Module,
    batch: Inputs,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Sequence[tuple[int, int]] | None = None,
) -> Patterns:
    """The attention weights of one run, softmax(qkᵀ/√d), of each layer × head.

    heads: numbers, in all of the layers; or pairs (layer, head), and no layers; all by default.

    A network that runs another attention than eager runs this once with eager attention, and is as before afterwards.

    Raises ValueError for layers and heads that there are not, for pairs beside layers, and for a network whose attention cannot be switched:
    load it with attention="eager".
    """
    module: Any = network.model if isinstance(network, Network) else network
    chosen = _chosen(module, layers, heads)
    sites = {layer: Site("attention_weight", layer=layer) for layer in dict.fromkeys(layer for layer, _ in chosen)}
    with _eager(module):
        seen = capture(network, batch, list(sites.values()))
    n_heads = heads_of(module, "attention_weight")
    weights = {(layer, head): seen[sites[layer]].unflatten(-1, (n_heads, -1))[:, :, head] for layer, head in chosen}
    prepared = prepare(module, batch)
    lengths = [prepared.tokens.shape[1]] * prepared.size if prepared.lengths is None else prepared.lengths.tolist()
    ids = [row[:n].tolist() for row, n in zip(prepared.tokens, lengths, strict=True)]
    tokenizer: Any = network.tokenizer if isinstance(network, LanguageModel) else None
    return Patterns(weights, tuple(tuple(str(i) if tokenizer is None else tokenizer.decode([i]) for i in row) for row in ids))


def attention_map(
    network: Network | nn.Module,
    pairs: Pairs | EncodedPairs | Contrast,
    *,
    query: Position = "last",
    positions: Sequence[Position] | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = "all",
    sites: Sequence[Site] | None = None,
    metric: str | Sequence[str] = "attention",
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """How much of each head's attention at one token goes where, in the bases: a map whose cells are layer × head × the position looked at.

    "attention" is Σ over the tokens k of the position of softmax(qkᵀ/√d) at (query, k): between 0 and 1.

    query: whose attention it is, one token in every prompt. metric, store: "attention" is the only figure, and nothing is kept; both are
    here as in other maps. The others: as `patch` takes them.

    Raises ValueError for another metric, a query of several tokens, and what `patch` and `attention_patterns` refuse.
    """
    if metric != METRIC and list(metric) != [METRIC]:
        raise ValueError(f"metric={metric!r}: a map of attention has one figure, {METRIC!r}.")
    contrast = of(network, pairs, split, variable)
    found = list(sites) if sites is not None else sites_of(contrast, "attention_weight", layers, heads, positions)
    chosen = [(_whole(site.layer, site), _whole(site.head, site)) for site in found]
    module = network.model if isinstance(network, Network) else network
    values = np.zeros((len(found), len(contrast)))
    for rows in track(list(torch.arange(len(contrast)).split(batch_size)), "Attention", disable=not progress):
        batch = taken(contrast.base, rows)
        weights = attention_patterns(network, batch, heads=list(dict.fromkeys(chosen))).weights
        prepared = prepare(module, batch)
        asking = _columns(query, prepared)
        if asking.shape[1] != 1:
            raise ValueError(f"query={query!r} has {asking.shape[1]} tokens in some prompt; attention is read at one.")
        for cell, (site, key) in enumerate(zip(found, chosen, strict=True)):
            looked = _columns(site.position, prepared)
            each = weights[key].cpu()[torch.arange(len(rows)), asking[:, 0]].gather(1, looked.clamp(min=0))
            values[cell, rows] = each.masked_fill(looked == IGNORED, 0).double().sum(1).numpy()
    nothing = {METRIC: np.zeros(len(contrast))}
    cells = tuple(map(Cell, found))
    return Effects(cells, {METRIC: values}, nothing, nothing, contrast.clusters, f"Attention from {query}", controls=())


def _whole(number: Any, site: Site) -> int:
    if not isinstance(number, int):
        raise ValueError(f"{site}: attention is mapped head by head; give each site one layer and one head.")
    return number


def _columns(position: Any, batch: Any) -> Int[Tensor, "batch n"]:
    """The columns of a position, −100 where a prompt has fewer."""
    index = columns(Site("block_output", layer=0, position=position), batch).index
    index = torch.arange(batch.tokens.shape[1]) if index is None else torch.as_tensor(index).cpu()
    return index.expand(batch.size, -1)


def _chosen(module: nn.Module, layers: Sequence[int] | None, heads: Sequence[Any] | None) -> list[tuple[int, int]]:
    n_heads = heads_of(module, "attention_weight")
    if heads is not None and any(isinstance(head, Sequence) for head in heads):
        if layers is not None:
            raise ValueError("heads=[(layer, head), …] say their layers themselves; leave `layers` out.")
        found = [(int(layer), int(head)) for layer, head in heads]
    else:
        every = range(len(blocks_of(module)[1])) if layers is None else layers
        found = [(layer, head) for layer in every for head in (range(n_heads) if heads is None else heads)]
    wrong = next((head for _, head in found if not 0 <= head < n_heads), None)
    if wrong is not None:
        raise ValueError(f"head={wrong} is out of range: this network has heads 0 to {n_heads - 1}.")
    return found


@contextmanager
def _eager(network: nn.Module) -> Iterator[None]:
    """With eager attention; every config as it was afterwards."""
    configs: dict[int, Any] = {id(m.config): m.config for m in network.modules() if isinstance(m, PreTrainedModel)}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    if set(before.values()) == {"eager"}:
        yield
        return
    stuck = [
        type(m).__name__ for m in network.modules() if isinstance(m, PreTrainedModel) and not m._can_set_attn_implementation()
    ]
    if stuck:
        raise ValueError(
            f"The attention of {stuck[0]} cannot be switched after loading. Load the network with attention='eager' (in transformers: "
            "attn_implementation='eager')."
        )
    try:
        for config in configs.values():
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
