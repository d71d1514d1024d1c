"""The edits' mathematics: a basis × a gate on its coordinates × an operation."""

from iit.intervention.basis import (
    Autoencoder,
    Basis,
    Coordinates,
    Frame,
    Identity,
    PrincipalComponents,
)
from iit.intervention.gate import All, Boundary, Gate, SigmoidMask, SoftGate, Subset
from iit.intervention.intervention import PARTS, Intervention
from iit.intervention.named import (
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
from iit.intervention.operation import Operation
from iit.intervention.part import Part
from iit.intervention.reversible import Reversible
from iit.intervention.saelens import load_autoencoder

__all__ = [
    "PARTS",
    "AdditionIntervention",
    "All",
    "Autoencoder",
    "AutoencoderIntervention",
    "Basis",
    "Boundary",
    "BoundlessRotatedSpaceIntervention",
    "CollectIntervention",
    "Coordinates",
    "Frame",
    "Gate",
    "Identity",
    "Intervention",
    "JumpReLUAutoencoderIntervention",
    "LambdaIntervention",
    "LoRAIntervention",
    "LoReFTIntervention",
    "LowRankRotatedSpaceIntervention",
    "MeanIntervention",
    "NoiseIntervention",
    "Operation",
    "PCARotatedSpaceIntervention",
    "Part",
    "PrincipalComponents",
    "RevNetIntervention",
    "Reversible",
    "RotatedSpaceIntervention",
    "SigmoidMask",
    "SigmoidMaskIntervention",
    "SkipIntervention",
    "SoftGate",
    "Subset",
    "SubtractionIntervention",
    "VanillaIntervention",
    "ZeroIntervention",
    "load_autoencoder",
]
