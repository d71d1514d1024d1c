"""Prompts: drawn from a task, and kept where the network gives the causal model's answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.causal import Prompt, Task

Written = Prompt | np.ndarray
"""An input as it is written: a text with marked roles, or a tensor."""
Answers = Callable[[Sequence[Any], Sequence[Any]], np.ndarray]
"""(prompts, answers) → bool[n]: whether the network answers each prompt with that answer.

It does where the answer is the argmax over its whole vocabulary, or over all classes.
"""


@dataclass(frozen=True)
class Prompts:
    """Prompts, and the inputs that they were written from, in columns.

    Arguments:
        inputs: {input of the causal model: its value in each prompt}.
        written: each prompt as the task writes it.
        answers: the causal model's answer to each prompt.
    """

    inputs: Mapping[str, list[Any]]
    written: list[Written]
    answers: list[Any]

    def __len__(self) -> int:
        return len(self.written)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Prompts":
        """The prompts of these rows, in this order."""
        index = [int(i) for i in rows]
        inputs = {name: [column[i] for i in index] for name, column in self.inputs.items()}
        return Prompts(inputs, [self.written[i] for i in index], [self.answers[i] for i in index])

    def __add__(self, other: "Prompts") -> "Prompts":
        inputs = {name: [*column, *other.inputs[name]] for name, column in self.inputs.items()}
        return Prompts(inputs, self.written + other.written, self.answers + other.answers)

    @property
    def given(self) -> list[Any]:
        """What the network gets of each prompt: its text, or the tensor."""
        return [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in self.written]

    @property
    def keys(self) -> list[Any]:
        """A value for each prompt that is equal for equal texts, and for equal tensors."""
        return [
            prompt.text if isinstance(prompt, Prompt) else prompt.tobytes()
            for prompt in self.written
        ]


@dataclass(frozen=True)
class Kept:
    """Prompts of one split that are used, and how many were drawn to get them.

    Arguments:
        prompts: the prompts that are used.
        n_right: how many distinct prompts the network answered rightly; it may be more than are
            used.
        n_drawn: how many distinct prompts were drawn.
    """

    prompts: Prompts
    n_right: int
    n_drawn: int


def write(task: Task, inputs: Mapping[str, list[Any]]) -> Prompts:
    """Write inputs as prompts, with the causal model's answers.

    Arguments:
        inputs: {input: its value in each prompt}.

    Raises TypeError for a task that writes neither a `Prompt` nor an array.
    """
    settings = task.model.run_batch(inputs)
    rows = zip(*inputs.values(), strict=True)
    written = [task.write(dict(zip(inputs, row, strict=True))) for row in rows]
    if written and not isinstance(written[0], Written):
        advice = "write a Prompt, or several inputs as one array"
        raise TypeError(f"Task {task.name!r} writes a {type(written[0]).__name__}: {advice}.")
    return Prompts(inputs, written, answers(task, settings, task.model.output))


def answers(task: Task, settings: Mapping[str, list[Any]], output: str) -> list[Any]:
    """The task's answer in each setting, as text or class.

    Settings with the same output have the same answer, which is asked for once.

    Arguments:
        settings: {variable: its value in each setting}.
        output: the variable that is the output of the causal model.
    """

    def said(row: int) -> Any:
        return task.answer({name: column[row] for name, column in settings.items()})

    values = settings[output]
    try:
        by_value = {
            # One row stands for all rows with its output.
            value: said(row)
            for value, row in {value: row for row, value in enumerate(values)}.items()
        }
    except TypeError:  # values that cannot be hashed
        return [said(row) for row in range(len(values))]
    return [by_value[value] for value in values]


def one_token_words(
    task: Task, count_tokens: Callable[[Sequence[str]], Sequence[int]]
) -> tuple[dict[str, Sequence[Any]], dict[str, int]]:
    """The task's pools with only those words that are one token after a space.

    Returns the pools, and how many words of each pool were dropped. Raises ValueError when a pool
    has no word left.
    """
    pools: dict[str, Sequence[Any]] = dict(task.pools)
    dropped = {}
    for name in task.words:
        # In a text a word stands behind a space.
        counts = count_tokens([f" {word}" for word in pools[name]])
        words = tuple(word for word, n in zip(pools[name], counts, strict=True) if n == 1)
        dropped[name] = len(pools[name]) - len(words)
        if not words:
            raise ValueError(
                f"No word of the pool {name!r} is one token in this tokenizer (for example "
                f"{pools[name][:3]})."
            )
        pools[name] = words
    return pools, dropped


def draw_prompts(
    task: Task,
    pools: Mapping[str, Sequence[Any]],
    n: int,
    right: Answers | None,
    *,
    rng: np.random.Generator,
    split: str,
) -> Kept:
    """Draw distinct prompts until `n` of them are answered rightly.

    There may be fewer: pools count as exhausted where at most 2% of a round's draws are new.

    Arguments:
        pools: of the split, {name: entries}.
        n: how many prompts are needed.
        right: whether the network answers prompts rightly; None takes all.
        rng: of the draws.
        split: for the message.

    Raises:
        ValueError: ten times as many draws do not give enough: the network answers too few.
    """
    prompts: Prompts | None = None
    drawn_keys: set[Any] = set()
    drawn_inputs: set[Any] = set()
    n_drawn = n_right = n_kept = 0
    for _ in range(40):
        # At least a quarter of `n` a round, so 40 rounds are ten times `n`.
        size = max(n - n_kept, n // 4, 1)
        drawn = write(task, _new(task.draw(rng, pools, size), drawn_inputs))
        # Only prompts that are new. `add` returns None, so a key passes once.
        drawn = drawn.take(
            [
                i
                for i, key in enumerate(drawn.keys)
                if not (key in drawn_keys or drawn_keys.add(key))
            ]
        )
        if len(drawn):
            ok = (
                np.ones(len(drawn), dtype=bool)
                if right is None
                else right(drawn.given, drawn.answers)
            )
            n_drawn, n_right = n_drawn + len(drawn), n_right + int(ok.sum())
            answered = drawn.take(np.flatnonzero(ok))
            prompts = answered if prompts is None else prompts + answered
            n_kept = len(prompts)
        # Hardly a new prompt among the draws: the pools have given what they have.
        exhausted = len(drawn) <= size // 50
        if prompts is not None and (n_kept >= n or (exhausted and n_kept > 1)):
            return Kept(prompts.take(range(min(n, n_kept))), n_right, n_drawn)
    raise ValueError(
        f"No prompts left for task {task.name!r}, split {split!r}: {n_kept} of the {n} needed. The "
        f"network answers {n_right} of {n_drawn} distinct prompts rightly. Ask for fewer pairs, "
        "add words to the pools, or take another network."
    )


def _new(inputs: Mapping[str, list[Any]], before: set[Any]) -> Mapping[str, list[Any]]:
    """The inputs without the rows that were drawn before. This saves writing them again.

    Inputs that cannot be hashed are all returned; their prompts are compared later.

    Arguments:
        before: the rows that were drawn before. The new rows are added.
    """
    try:
        rows = [
            row
            for row in zip(*inputs.values(), strict=True)
            if not (row in before or before.add(row))
        ]
    except TypeError:  # inputs that cannot be hashed
        return inputs
    return {name: [row[i] for row in rows] for i, name in enumerate(inputs)}
