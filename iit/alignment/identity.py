"""What identifies a run in its checkpoints: another run's is refused."""

import json
from collections.abc import Mapping
from typing import Any


def mark(checkpoint: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Store in a checkpoint which run it is of."""
    checkpoint["config"] = json.dumps(config, sort_keys=True)


def check(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises ValueError, naming what differs, for a checkpoint of a run with another config."""
    before = json.loads(checkpoint["config"])
    differing = sorted(key for key in before.keys() | config if before.get(key) != config.get(key))
    if differing:
        told = "; ".join(f"{key}: {before.get(key)!r} in the checkpoint, {config.get(key)!r} now" for key in differing)
        raise ValueError(f"ckpt_path belongs to a run with another configuration ({told}). Give the same, or start afresh.")
