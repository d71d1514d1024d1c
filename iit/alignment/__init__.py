"""Alignments, and the Lightning modules that train them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iit.alignment.alignment import Alignment, none, one, several
from iit.alignment.initial import initialise
from iit.alignment.objective import (
    AnswerMargin,
    CounterfactualLatent,
    CrossEntropy,
    KLDivergence,
    LogitDifference,
    MeanSquaredError,
    Objective,
    Prediction,
)
from iit.alignment.schedule import Schedule

if TYPE_CHECKING:
    from iit.alignment.best import BestWeights
    from iit.alignment.das import DAS
    from iit.alignment.fit import Fitted, Training, fit
    from iit.alignment.iit import IIT
    from iit.alignment.stopping import EarlyStopping

_TRAINING = {
    "BestWeights": "best",
    "DAS": "das",
    "Fitted": "fit",
    "Training": "fit",
    "fit": "fit",
    "IIT": "iit",
    "EarlyStopping": "stopping",
}

__all__ = [
    "DAS",
    "IIT",
    "Alignment",
    "AnswerMargin",
    "BestWeights",
    "CounterfactualLatent",
    "CrossEntropy",
    "EarlyStopping",
    "Fitted",
    "KLDivergence",
    "LogitDifference",
    "MeanSquaredError",
    "Objective",
    "Prediction",
    "Schedule",
    "Training",
    "fit",
    "initialise",
    "none",
    "one",
    "several",
]


def __getattr__(name: str) -> Any:
    """Import what trains when it is first asked for: Lightning takes a second to import."""
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # All at once: importing the module `fit` by itself would leave it where the function of that
    # name belongs.
    for public, module in _TRAINING.items():
        globals()[public] = getattr(import_module(f"{__name__}.{module}"), public)
    return globals()[name]
