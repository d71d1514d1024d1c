"""Prompts: drawn from a task, and kept where the network gives the causal model's answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import numpy as np

from iit.causal import Columns, Pools, Prompt, Task

Written = Prompt | np.ndarray
"""An input as it is written: a text with marked roles, or a tensor."""
AnswersRightly = Callable[[Sequence[Any], Sequence[Any]], np.ndarray]
"""(prompts, answers) → bool[n]: whether the network answers each prompt with that answer.

It does where the answer is the argmax over its whole vocabulary, or over all classes.
"""


@runtime_checkable
class AnswersPrompts(Protocol):
    """What sampling asks of a network.

    Where it has a tokenizer, the tokens of words are counted by its `answer_tokens`, as
    `LanguageModel` has them.
    """

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer; None for networks fed with tensors."""
        ...

    def answers_right(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Whether each answer is the argmax, token by token: bool[n]."""
        ...


@dataclass(frozen=True)
class Prompts:
    """Prompts, and the inputs that they were written from, in columns.

    Arguments:
        inputs: {input of the causal model: its value in each prompt}.
        written: each prompt as the task writes it.
        answers: the causal model's answer to each prompt.
    """

    inputs: Columns
    written: list[Any]
    answers: list[Any]

    def __len__(self) -> int:
        return len(self.written)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Prompts":
        """The prompts of these rows, in this order."""
        inputs = {name: at(column, rows) for name, column in self.inputs.items()}
        return Prompts(inputs, at(self.written, rows), at(self.answers, rows))

    def __add__(self, other: "Prompts") -> "Prompts":
        inputs = {name: [*self.inputs.get(name, ()), *other.inputs[name]] for name in other.inputs}
        return Prompts(inputs, self.written + other.written, self.answers + other.answers)

    @property
    def given(self) -> list[Any]:
        """What the network gets of each prompt: its text, or the tensor."""
        return [getattr(prompt, "text", prompt) for prompt in self.written]

    @property
    def keys(self) -> list[Any]:
        """A value for each prompt that is equal for equal texts, and for equal tensors."""
        return list(map(key_of, self.given))


@dataclass(frozen=True)
class PromptsUsed:
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


def at(column: Sequence[Any], rows: Sequence[int] | np.ndarray) -> list[Any]:
    """The entries of a column in these rows, in this order."""
    return [column[i] for i in rows]


def key_of(prompt: Any) -> Any:
    """A value that is equal for equal texts (and their images), and for equal tensors."""
    if isinstance(prompt, Mapping):
        return f"{prompt['text']}{sha256(prompt['image']).hexdigest()}"
    return prompt if isinstance(prompt, str) else prompt.tobytes()


def pictured(text: Any, image: bytes | None) -> Any:
    """A prompt as a network reads it: the text alone, or with its image."""
    return text if image is None else {"text": text, "image": image}


def write(task: Task, inputs: Columns) -> Prompts:
    """Write inputs as prompts, with the causal model's answers.

    Arguments:
        inputs: {input: its value in each prompt}.

    Raises TypeError for a task that writes neither a `Prompt` nor an array.
    """
    written = list(map(task.write, as_rows(inputs)))
    if written and not isinstance(written[0], Written):
        advice = "write a Prompt, or several inputs as one array"
        raise TypeError(f"Task {task.name!r} writes a {type(written[0]).__name__}: {advice}.")
    return Prompts(inputs, written, answers(task, task.model.run_batch(inputs)))


def answers(task: Task, settings: Columns) -> list[Any]:
    """The task's answer in each setting, as text or class.

    Arguments:
        settings: {variable: its value in each setting}.
    """
    return list(map(task.answer, as_rows(settings)))


def as_rows(columns: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a table that is given in columns."""
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def one_token_words(task: Task, network: AnswersPrompts) -> tuple[Pools, dict[str, int]]:
    """The task's pools with only those words that are one token after a space.

    Where answers stand behind the task's `stem`, their words are one token there, too.

    Returns the pools, and how many words of each pool were dropped. Raises ValueError when a pool
    has no word left.
    """
    pools: dict[str, Sequence[Any]] = dict(task.pools)
    dropped = {}
    said = set()
    if task.stem:
        # Some answers tell which pool they are from.
        drawn = task.draw(np.random.default_rng(0), pools, 20)
        said = set(answers(task, task.model.run_batch(drawn)))
    for name in task.words:
        # In a text a word stands behind a space.
        counts = _token_counts(network, list(map(" {}".format, pools[name])))
        if said.intersection(pools[name]):
            counts = map(max, counts, _token_counts(network, pools[name], task.stem))
        words = tuple(word for word, n in zip(pools[name], counts, strict=True) if n == 1)
        dropped[name] = len(pools[name]) - len(words)
        if not words:
            raise ValueError(
                f"No word of the pool {name!r} is one token in this tokenizer (for example "
                f"{pools[name][:3]})."
            )
        pools[name] = words
    return pools, dropped


def _token_counts(network: Any, words: Sequence[str], stem: Any = None) -> list[int]:
    """How many tokens of the network each word has behind a text, by default behind a word."""
    before = stem or words[0].strip()  # a word's tokens show behind any other word
    # A masked language model answers at a mask, so the text needs one.
    if getattr(network, "masked", False):
        before += f" {network.tokenizer.mask_token}"
    return list(map(len, network.answer_tokens([before] * len(words), words)))


def draw_prompts(
    task: Task,
    pools: Pools,
    n: int,
    right: AnswersRightly | None,
    *,
    rng: np.random.Generator,
    split: str,
) -> PromptsUsed:
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
    prompts = Prompts({}, [], [])
    seen: set[Any] = set()
    n_drawn = n_right = 0
    for _ in range(40):
        # At least a quarter of `n` a round, so 40 rounds are ten times `n`.
        size = max(n - len(prompts), n // 4, 1)
        drawn = write(task, task.draw(rng, pools, size))
        new_rows = []
        for row, key in enumerate(drawn.keys):
            if key not in seen:
                seen.add(key)
                new_rows.append(row)
        if new_rows:
            drawn = drawn.take(new_rows)
            is_right = np.ones(len(drawn), dtype=bool)
            if right is not None:
                is_right = right(drawn.given, drawn.answers)
            n_drawn += len(drawn)
            n_right += int(is_right.sum())
            prompts += drawn.take(np.flatnonzero(is_right))
        # Hardly a new prompt among the draws: the pools have given what they have.
        exhausted = len(new_rows) <= size // 50
        if len(prompts) >= n or (exhausted and len(prompts) > 1):
            return PromptsUsed(prompts.take(range(min(n, len(prompts)))), n_right, n_drawn)
    raise ValueError(
        f"No prompts left for task {task.name!r}, split {split!r}: {len(prompts)} of {n}. The "
        f"network answers {n_right} of {n_drawn} distinct prompts rightly. Ask for fewer pairs, "
        "add words to the pools, or take another network."
    )
