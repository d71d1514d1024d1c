"""Alignments, and the Lightning modules that train them."""

from iit.alignment.alignment import Alignment, none, one, several
from iit.alignment.best import BestWeights
from iit.alignment.das import DAS
from iit.alignment.fit import Fitted, fit
from iit.alignment.iit import IIT
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
from iit.alignment.stopping import EarlyStopping

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
    "fit",
    "initialise",
    "none",
    "one",
    "several",
]
