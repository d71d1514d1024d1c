"""Alignments, and the Lightning modules that train them."""

from iit.alignment.alignment import Alignment, none, one
from iit.alignment.best import BestWeights
from iit.alignment.das import DAS
from iit.alignment.fit import Fitted, fit
from iit.alignment.iit import IIT
from iit.alignment.objective import cross_entropy
from iit.alignment.stopping import EarlyStopping

__all__ = ["DAS", "IIT", "Alignment", "BestWeights", "EarlyStopping", "Fitted", "cross_entropy", "fit", "none", "one"]
