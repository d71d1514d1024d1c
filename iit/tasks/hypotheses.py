"""The hypotheses of a task: its causal model, and the rivals."""

from collections.abc import Mapping, Sequence
from typing import Any

from iit.causal import CausalModel
from iit.causal.model import Mechanism


def hypotheses(
    name: str,
    inputs: Mapping[str, Sequence[Any] | None],
    mechanisms: Mapping[str, Mechanism],
    rivals: Mapping[str, Mapping[str, Mechanism]],
) -> dict[str, Any]:
    """The arguments `name`, `model` and `rivals` of a `Task`; all models have the output `answer`.

    mechanisms: those of the task's own causal model, which has the task's name.
    rivals: name of the rival → its mechanisms.
    """
    models = {}
    for model_name, functions in {name: mechanisms, **rivals}.items():
        models[model_name] = CausalModel(inputs, functions, output="answer", name=model_name)
    return {"name": name, "model": models.pop(name), "rivals": models}
