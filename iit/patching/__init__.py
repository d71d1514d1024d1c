"""Looking before training: what whole activations do, and where."""

from iit.patching.ablate import ablate
from iit.patching.contrast import Contrast
from iit.patching.effects import Cell, Effects
from iit.patching.metric import METRICS, Answers
from iit.patching.patch import patch
from iit.patching.path import path_patch
from iit.patching.sweep import Patched, patched

__all__ = ["METRICS", "Answers", "Cell", "Contrast", "Effects", "Patched", "ablate", "patch", "patched", "path_patch"]
