"""Maps made before any training: what whole activations do, and where."""

from iit.patching.ablate import ablate
from iit.patching.attention import Patterns, attention_map, attention_patterns
from iit.patching.attribution import Agreement, agreement, attribute
from iit.patching.contrast import Contrast
from iit.patching.effects import Effects
from iit.patching.grid import MapCell, grid
from iit.patching.lens import lens_map, logit_lens, top_tokens
from iit.patching.metric import METRICS, Answers
from iit.patching.patch import patch
from iit.patching.path import path_patch
from iit.patching.steering import (
    Steered,
    difference_of_means,
    frame_direction,
    random_directions,
    steer,
)
from iit.patching.trace import SPANS, trace

__all__ = [
    "METRICS",
    "SPANS",
    "Agreement",
    "Answers",
    "Contrast",
    "Effects",
    "MapCell",
    "Patterns",
    "Steered",
    "ablate",
    "agreement",
    "attention_map",
    "attention_patterns",
    "attribute",
    "difference_of_means",
    "frame_direction",
    "grid",
    "lens_map",
    "logit_lens",
    "patch",
    "path_patch",
    "random_directions",
    "steer",
    "top_tokens",
    "trace",
]
