"""Interchange intervention training and distributed alignment search on any PyTorch network."""

from typing import TYPE_CHECKING, Any

from iit import tasks
from iit.alignment import Alignment
from iit.causal import CausalModel
from iit.data import Pairs
from iit.evaluation import evaluate, sweep, verdict
from iit.intervened import (
    Activations,
    Captured,
    Edit,
    IntervenedModel,
    Score,
    capture,
    capture_dataset,
)
from iit.intervention import (
    AdditionIntervention,
    AutoencoderIntervention,
    BoundlessRotatedSpaceIntervention,
    CollectIntervention,
    JumpReLUAutoencoderIntervention,
    LambdaIntervention,
    LoRAIntervention,
    LoReFTIntervention,
    LowRankRotatedSpaceIntervention,
    MeanIntervention,
    NoiseIntervention,
    PCARotatedSpaceIntervention,
    RevNetIntervention,
    RotatedSpaceIntervention,
    SigmoidMaskIntervention,
    SkipIntervention,
    SubtractionIntervention,
    VanillaIntervention,
    ZeroIntervention,
)
from iit.network import Classifier, LanguageModel, components, load_network
from iit.site import Site

if TYPE_CHECKING:
    from iit.alignment import fit

__all__ = [
    "Activations",
    "AdditionIntervention",
    "Alignment",
    "AutoencoderIntervention",
    "BoundlessRotatedSpaceIntervention",
    "Captured",
    "CausalModel",
    "Classifier",
    "CollectIntervention",
    "Edit",
    "IntervenedModel",
    "JumpReLUAutoencoderIntervention",
    "LambdaIntervention",
    "LanguageModel",
    "LoRAIntervention",
    "LoReFTIntervention",
    "LowRankRotatedSpaceIntervention",
    "MeanIntervention",
    "NoiseIntervention",
    "PCARotatedSpaceIntervention",
    "Pairs",
    "RevNetIntervention",
    "RotatedSpaceIntervention",
    "Score",
    "SigmoidMaskIntervention",
    "Site",
    "SkipIntervention",
    "SubtractionIntervention",
    "VanillaIntervention",
    "ZeroIntervention",
    "capture",
    "capture_dataset",
    "components",
    "evaluate",
    "fit",
    "load_network",
    "sweep",
    "tasks",
    "verdict",
]


def __dir__() -> list[str]:
    return [*globals(), "fit"]


def __getattr__(name: str) -> Any:
    """`fit` needs Lightning, which takes a second to import: not before it is asked for."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from iit.alignment import fit

    return fit
