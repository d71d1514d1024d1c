"""Attention patterns: which tokens each head looks at."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from iit.batch import IGNORED, Inputs, behind_bridge
from iit.intervened import capture
from iit.network import LanguageModel
from iit.network.components import heads_of
from iit.network.inputs import prepare
from iit.patching.contrast import (
    AnyNetwork,
    Contrasted,
    batch_rows,
    column_index,
    contrast_of,
    module_of,
)
from iit.patching.effects import Effects, TableLines
from iit.patching.grid import Position, grid, n_blocks, whole_sites
from iit.progress import progress
from iit.site import Site

METRIC = "attention"
"""The figure of a map of attention."""


class Patterns(NamedTuple):
    """The attention weights of a batch.

    weights: (layer, head) → Tensor[batch, query, key]. Rows of real tokens sum to 1, those of
        padding are zero.
    tokens: the text of each prompt's tokens, row by row; token ids where there is no tokenizer.
    """

    weights: Mapping[tuple[int, int], Float[Tensor, "batch query key"]]
    tokens: tuple[tuple[str, ...], ...]

    def of(self, row: int) -> dict[str, Any]:
        """The weights of one prompt without padding, "layer.head" → float[query, key].

        This is what `iit.report.attention_figure` takes.
        """
        n = len(self.tokens[row])
        weights = {}
        for (layer, head), of_head in self.weights.items():
            weights[f"{layer}.{head}"] = of_head[row, :n, :n].float().cpu().numpy()
        return weights

    def table(self, row: int) -> TableLines:
        """A line for each head, query and key of one prompt.

        Columns: layer, head, query, key (numbers of tokens), query_token, key_token (their texts),
            weight.
        """
        texts = list(enumerate(self.tokens[row]))
        names = ("layer", "head", "query", "key", "query_token", "key_token", "weight")
        lines = []
        for (layer, head), (query, asking), (key, asked) in product(self.weights, texts, texts):
            weight = float(self.weights[layer, head][row, query, key])
            line = (layer, head, query, key, asking, asked, weight)
            lines.append(dict(zip(names, line, strict=True)))
        return lines


def attention_patterns(
    network: AnyNetwork,
    batch: Inputs,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Sequence[tuple[int, int]] | None = None,
) -> Patterns:
    """The attention weights of one run, softmax(qkᵀ/√d), of each layer × head.

    A network whose attention is not eager runs this once with eager attention, and is as before
    afterwards.

    Arguments:
        layers: all blocks by default.
        heads: numbers, in all of the layers; or pairs (layer, head), without `layers`. All by
            default.

    Raises:
        ValueError: for layers and heads that do not exist, for pairs beside layers, and for a
            network whose attention cannot be switched: load it with attention="eager".
    """
    module = module_of(network)
    layer_heads: Any = heads
    if heads is None or not any(isinstance(head, Sequence) for head in heads):
        if layers is None:
            layers = range(n_blocks(module))
        layer_heads = []
        for layer in layers:
            n_heads = heads_of(module, "attention_weight", layer)
            layer_heads += product([layer], range(n_heads) if heads is None else heads)
    elif layers is not None:
        raise ValueError(
            "heads=[(layer, head), …] say their layers themselves; leave `layers` out."
        )

    sites: dict[Any, Site] = {}
    for layer, head in layer_heads:
        sites[layer, head] = Site("attention_weight", layer=layer, head=head)
    with _eager(module):
        activations = capture(network, batch, list(sites.values()))
    weights = {layer_head: activations[site] for layer_head, site in sites.items()}

    prompts = prepare(module, batch)
    assert prompts.lengths is not None
    decode = network.tokenizer.decode if isinstance(network, LanguageModel) else str
    texts = []
    for ids, n in zip(prompts.tokens.tolist(), prompts.lengths.tolist(), strict=True):
        texts.append(tuple(map(decode, ids[:n])))
    return Patterns(weights, tuple(texts))


def attention_map(
    network: AnyNetwork,
    pairs: Contrasted,
    *,
    query: Position = "last",
    metric: str | Sequence[str] = METRIC,
    batch_size: int = 64,
    **where: Any,
) -> Effects:
    """How much of each head's attention at one token goes to each position, in the bases.

    The map's cells are layer × head × the position that is looked at. Its figure "attention" is Σ
    softmax(qkᵀ/√d) at (query, k) over the tokens k of the position, between 0 and 1.

    Arguments:
        query: the token whose attention it is, one in every prompt.
        metric: "attention" is the only figure.
        where: layers, heads (all by default) and positions, or cells, as `patch` takes them.
        batch_size: as `patch` takes them.

    Raises:
        ValueError: for another metric, a query of several tokens, cells without one layer and one
            head, and what `patch` and `attention_patterns` refuse.
    """
    if metric != METRIC and list(metric) != [METRIC]:
        raise ValueError(f"metric={metric!r}: a map of attention has one figure, {METRIC!r}.")
    contrast = contrast_of(network, pairs)
    where.setdefault("heads", "all")
    cells = grid(contrast, components="attention_weight", **where)
    sites = whole_sites(cells)
    # {site: the same head at the query}
    asking = {site: replace(site, position=query) for site in sites}
    for site in sites:
        if not isinstance(site.layer, int) or not isinstance(site.head, int):
            raise ValueError(
                f"{site}: attention is mapped head by head; give each site one layer and one head."
            )

    values = np.zeros((len(sites), len(contrast)))
    batches = torch.arange(len(contrast)).split(batch_size)
    for rows in progress(batches, "Attention"):
        batch = batch_rows(contrast.base, rows)
        prompts = prepare(contrast.module, batch)
        with _eager(contrast.module):
            weights = capture(network, batch, list(dict.fromkeys(asking.values())))
        for number, site in enumerate(sites):
            # [row, query, key]
            of_query = weights[asking[site]].cpu()
            if of_query.shape[1] != 1:
                raise ValueError(
                    f"query={query!r} has {of_query.shape[1]} tokens in some prompt; attention "
                    "is read at one."
                )
            keys = column_index(site, prompts)
            # Absent keys read column 0 and count as 0.
            at_keys = of_query[:, 0].gather(1, keys.clamp(min=0))
            shares = at_keys.masked_fill(keys == IGNORED, 0)
            values[number, rows.numpy()] = shares.double().sum(1).numpy()

    # There is no edit, and so no runs to compare with.
    zeros = {METRIC: np.zeros(len(contrast))}
    method = f"Attention from {query}"
    return Effects(
        tuple(cells), {METRIC: values}, zeros, zeros, contrast.clusters, method, controls=()
    )


@contextmanager
def _eager(network: nn.Module) -> Iterator[None]:
    """Run with eager attention; afterwards every config is as it was."""
    modules = behind_bridge(network).modules()
    transformers = [module for module in modules if isinstance(module, PreTrainedModel)]
    # A network may hold several transformers models, each with a config of its own.
    before = [part.config._attn_implementation_internal for part in transformers]
    if set(before) == {"eager"}:
        yield
        return

    for part in transformers:
        if not part._can_set_attn_implementation():
            raise ValueError(
                f"The attention of {type(part).__name__} cannot be switched after loading. Load "
                "the network with attention='eager' (in transformers: attn_implementation='eager')."
            )

    try:
        for part in transformers:
            # Only eager attention returns its weights.
            part.config._attn_implementation_internal = "eager"
        yield
    finally:
        for part, implementation in zip(transformers, before, strict=True):
            part.config._attn_implementation_internal = implementation
