"""Whole investigations. Each is a job of its own, and uses what the other jobs use."""

from iit.investigation.ground_truth import ground_truth
from iit.investigation.ladder import ladder

__all__ = ["ground_truth", "ladder"]
