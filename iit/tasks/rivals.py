"""Rivals of a task's causal model."""

from collections.abc import Mapping, Sequence
from typing import Any

from iit.causal import CausalModel
from iit.causal.model import Mechanism


def rivals(
    inputs: Mapping[str, Sequence[Any] | None],
    mechanisms: Mapping[str, Mapping[str, Mechanism]],
) -> dict[str, CausalModel]:
    """Causal models of the same inputs with the output `answer`.

    mechanisms: name of the rival → its mechanisms.
    """
    models = {}
    for name, functions in mechanisms.items():
        models[name] = CausalModel(inputs, functions, output="answer", name=name)
    return models
