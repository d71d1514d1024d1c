"""A task: a causal model, and how its inputs are written as prompts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iit.causal.model import CausalModel, Setting


@dataclass(frozen=True)
class Prompt:
    """A text with marked spans.

    roles: name → (start, stop) in characters of the text.
    """

    text: str
    roles: Mapping[str, tuple[int, int]]


class Task(ABC):
    """What the data room needs to sample prompts and pairs.

    name: of the task. model: the causal model. variables: those that may be aligned.
    pools: what inputs are drawn from, name → entries; a split restricts them.
    words: the pools whose entries should be one token after a space.
    """

    name: str
    model: CausalModel
    variables: tuple[str, ...]
    pools: Mapping[str, tuple[Any, ...]]
    words: tuple[str, ...]

    @abstractmethod
    def draw(self, rng: np.random.Generator, pools: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Inputs of one prompt, from these pools."""

    @abstractmethod
    def write(self, inputs: Mapping[str, Any]) -> Prompt:
        """The prompt that states these inputs, up to where the answer begins."""

    @abstractmethod
    def answer(self, setting: Setting) -> str:
        """The setting's answer as text that continues the prompt."""


def written(template: str, words: Mapping[str, tuple[str, str | None]]) -> Prompt:
    """Fill `{slot}`s of a template and mark where each word went.

    words: slot → (word, role or None). A slot that occurs twice keeps the span of its last occurrence.
    """
    text, roles, rest = "", {}, template
    while rest:
        before, opened, rest = rest.partition("{")
        text += before
        if opened:
            slot, _, rest = rest.partition("}")
            word, role = words[slot]
            if role is not None:
                roles[role] = (len(text), len(text) + len(word))
            text += word
    return Prompt(text, roles)
