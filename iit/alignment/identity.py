"""What identifies a training in its checkpoints: a checkpoint of another one is refused."""

import json
from collections.abc import Mapping
from typing import Any


def mark(checkpoint: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Write the training's config into a checkpoint."""
    checkpoint["run"] = json.dumps(config, sort_keys=True)


def check(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises ValueError, naming each key that differs, for a checkpoint of another config."""
    if "run" not in checkpoint:
        raise ValueError(
            "ckpt_path: this checkpoint was not written by iit.fit as it is now. Give another, "
            "or start afresh."
        )
    saved = _flat(json.loads(checkpoint["run"]))
    current = _flat(json.loads(json.dumps(config)))  # through JSON: a tuple becomes a list
    differing = []
    for key in sorted(saved.keys() | current):
        before, now = saved.get(key), current.get(key)
        if before != now:
            differing.append(f"{key}: {before!r} in the checkpoint, {now!r} now")
    if differing:
        raise ValueError(
            f"ckpt_path belongs to a run with another configuration ({'; '.join(differing)}). Give "
            "the same, or start afresh."
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Each entry under its full name: {"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
