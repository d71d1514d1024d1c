"""The pairs that are timed: of one template, and of one length, so that every contender does the
same work.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

import iit
from iit.data import EncodedPairs
from iit.tasks import ioi


class Everything:
    """Stands for a network that answers every prompt rightly: whether it does makes no difference
    to the cost.
    """

    def __init__(self, network: Any):
        self.tokenizer = network.tokenizer
        self.answer_tokens = network.answer_tokens

    def answers_right(self, texts: Any, answers: Any) -> np.ndarray:
        """True for all."""
        return np.ones(len(texts), dtype=bool)


def one_template(
    network: Any, n: int, *, n_held_out: int = 60, right_only: bool = False, seed: int = 0
) -> iit.Pairs:
    """Training pairs of IOI prompts of the first template, half of them changing, and `n_held_out`
    for validation and test each.
    """
    task = ioi()
    task = replace(task, pools={**task.pools, "template": task.pools["template"][:1]})
    prompts = network if right_only else Everything(network)
    return iit.Pairs.sample(
        task, prompts, n_train=n, n_val=n_held_out, n_test=n_held_out, splits=["name"], seed=seed
    )


def of_one_length(network: Any, n: int) -> tuple[EncodedPairs, int]:
    """n pairs all of whose prompts have equally many tokens, and how many."""
    pairs = one_template(network, 4 * n)
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    whole = encoded.batch(range(len(encoded)))
    lengths = torch.stack(
        [
            side["attention_mask"].sum(1)
            for side in (whole["base"], whole["sources"][pairs.variable])
        ]
    )
    usual = int(lengths.flatten().mode().values)
    rows = (lengths == usual).all(0).nonzero().flatten()[:n]
    if len(rows) < n:
        raise RuntimeError(f"Only {len(rows)} of {len(encoded)} pairs have {usual} tokens.")
    return EncodedPairs(pairs.split("train").select(rows.tolist()), pairs.variables, network), usual
