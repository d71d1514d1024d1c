"""Looking before training: what whole activations do, and where."""

from iit.patching.contrast import Contrast
from iit.patching.effects import Cell, Effects
from iit.patching.metric import METRICS, Answers
from iit.patching.patch import patch
from iit.patching.path import path_patch
from iit.patching.sweep import Patched, patched
from iit.patching.trace import SPANS, trace

__all__ = [
    "METRICS",
    "SPANS",
    "Answers",
    "Cell",
    "Contrast",
    "Effects",
    "Patched",
    "patch",
    "patched",
    "path_patch",
    "trace",
]
