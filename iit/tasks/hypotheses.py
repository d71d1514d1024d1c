"""The hypotheses of a task: its causal model, and the rivals."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from iit.causal import CausalModel
from iit.causal.model import Mechanism
from iit.tasks.data_file import text


def hypotheses(
    name: str,
    inputs: Mapping[str, Sequence[Any] | None],
    mechanisms: Mapping[str, Mechanism],
    rivals: Mapping[str, Mapping[str, Mechanism]],
) -> dict[str, Any]:
    """The arguments `name`, `model`, `rivals` and `meanings` of a `Task`.

    All models have the output `answer`. The meanings are those of `meanings.json`.

    mechanisms: those of the task's own causal model, which has the task's name.
    rivals: name of the rival → its mechanisms.
    """
    models = {}
    for model_name, functions in {name: mechanisms, **rivals}.items():
        models[model_name] = CausalModel(inputs, functions, output="answer", name=model_name)
    return {
        "name": name,
        "model": models.pop(name),
        "rivals": models,
        "meanings": json.loads(text("meanings.json"))[name],
    }
