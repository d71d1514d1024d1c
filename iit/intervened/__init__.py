"""Running edits: capture, patch, and reading the answer."""

from iit.intervened.activation_dataset import Captured
from iit.intervened.capture import capture
from iit.intervened.capture_dataset import capture_dataset
from iit.intervened.edit import Edit
from iit.intervened.intervened_model import IntervenedModel, Run
from iit.intervened.observe import Activations
from iit.intervened.passes import together
from iit.intervened.score import Score
from iit.intervened.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Activations",
    "Captured",
    "Edit",
    "IntervenedModel",
    "Run",
    "Score",
    "capture",
    "capture_dataset",
    "together",
]
