"""Flops that no exact contender can do without, and the rate at which this machine does them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

import iit
from benchmarks.settings import THREADS


class Size(NamedTuple):
    """Of SmolLM2. block: parameters of one block. head: parameters of the unembedding."""

    n_layers: int
    block: int
    head: int


@cache
def size() -> Size:
    """The network's, without its embeddings and norms."""
    config: Any = iit.load_network("smollm2").model.config
    width = config.hidden_size // config.num_attention_heads
    attention = (
        2 * config.hidden_size * width * (config.num_attention_heads + config.num_key_value_heads)
    )
    block = attention + 3 * config.hidden_size * config.intermediate_size
    return Size(config.num_hidden_layers, block, config.vocab_size * config.hidden_size)


def of_step(batches: Sequence[Mapping[str, Any]], layer: int, role: str) -> float:
    """Of a training step, the mean over batches: forward and backward of activations, behind site
    and position.

    4·[(L − ℓ)·N·(T − p) + V·d] an example, for L blocks of N parameters, a site after ℓ of them,
    the first edited of T tokens at p.
    """
    network, total = size(), 0.0
    for batch in batches:
        base = batch["base"]
        left = base["attention_mask"].sum(1) - base["positions"][role][:, 0]
        total += float(
            (4 * ((network.n_layers - layer - 1) * network.block * left + network.head)).sum()
        )
    return total / len(batches)


def of_answers(lengths: Iterable[int]) -> float:
    """Of whole prompts of these lengths, with the head at one token each."""
    network = size()
    return 2.0 * sum(network.n_layers * network.block * length + network.head for length in lengths)


def of_sweep(n_pairs: int, length: int) -> float:
    """Of a sweep over all layers × positions: forward behind each cell's block and position, and
    the head once a pair.
    """
    network = size()
    blocks = sum(range(network.n_layers)) * sum(range(1, length + 1)) * network.block
    return 2.0 * n_pairs * (blocks + network.n_layers * length * network.head)


def of_frame(width: int, rank: int, batch: int) -> float:
    """Of an interchange in a frame and its gradient, five products of the batch's width with the
    rank, and one product of the frame with itself.
    """
    return 10.0 * batch * width * rank + 2.0 * width * rank**2


def matmul_rate(n: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a large fp32 matrix product, the best of a few."""
    torch.set_num_threads(THREADS)
    a, best = torch.randn(n, n), 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best
