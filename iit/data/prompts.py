"""Prompts: drawn from a task, kept when the network answers them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.causal import Task

Answers = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(prompts, answers) → bool[n]: does the network give each answer, by argmax over its whole vocabulary?"""


@dataclass(frozen=True)
class DrawnPrompt:
    """A prompt of a split.

    inputs: the causal model's inputs it was written from.
    roles: role → (start, stop) in characters.
    answer: what the causal model says; the network gives it, too.
    """

    text: str
    roles: Mapping[str, tuple[int, int]]
    answer: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Kept:
    """Prompts of one split, and how many were drawn to get them."""

    prompts: tuple[DrawnPrompt, ...]
    n_right: int
    n_drawn: int


def one_token_words(
    task: Task, count_tokens: Callable[[Sequence[str]], Sequence[int]]
) -> tuple[dict[str, tuple[Any, ...]], dict[str, int]]:
    """The task's pools with only those words that are one token after a space, and how many of each pool were dropped.

    Raises ValueError when nothing of a pool is left.
    """
    pools: dict[str, tuple[Any, ...]] = dict(task.pools)
    dropped = {}
    for name in task.words:
        counts = count_tokens([f" {word}" for word in pools[name]])
        kept = tuple(word for word, n in zip(pools[name], counts, strict=True) if n == 1)
        dropped[name] = len(pools[name]) - len(kept)
        if not kept:
            raise ValueError(f"No word of the pool {name!r} is one token in this tokenizer (for example {pools[name][:3]}).")
        pools[name] = kept
    return pools, dropped


def draw_prompts(
    task: Task, pools: Mapping[str, Sequence[Any]], n: int, answers: Answers, *, rng: np.random.Generator, split: str
) -> Kept:
    """Draw distinct prompts until the network has answered `n` of them rightly.

    Raises ValueError when ten times as many draws do not give `n`: too few are answered, or the pools hold too few prompts.
    """
    kept: list[DrawnPrompt] = []
    seen: set[str] = set()
    n_drawn = n_right = 0
    for _ in range(10):
        drawn = []
        columns = task.draw(rng, pools, max(n - len(kept), n // 4, 1))
        for row in zip(*columns.values(), strict=True):
            inputs = dict(zip(columns, row, strict=True))
            prompt = task.write(inputs)
            if prompt.text not in seen:
                seen.add(prompt.text)
                drawn.append(DrawnPrompt(prompt.text, prompt.roles, task.answer(task.model.run(inputs)), inputs))
        if drawn:
            right = answers([p.text for p in drawn], [p.answer for p in drawn])
            n_drawn, n_right = n_drawn + len(drawn), n_right + int(right.sum())
            kept += [p for p, ok in zip(drawn, right, strict=True) if ok]
        if len(kept) >= n:
            return Kept(tuple(kept[:n]), n_right, n_drawn)
    share = f"{n_right / n_drawn:.0%}" if n_drawn else "none"
    raise ValueError(
        f"No prompts left after filtering for split {split!r}: {n} were wanted, {n_drawn} distinct ones drawn, and the network answers "
        f"{n_right} of them rightly ({share}). Ask for fewer pairs, or use a network that can do the task {task.name!r}."
    )
