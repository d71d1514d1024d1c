"""Looking before training: what whole activations do."""

from iit.patching.sweep import Patched, patched

__all__ = ["Patched", "patched"]
