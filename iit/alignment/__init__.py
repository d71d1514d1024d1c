"""Alignments, and the Lightning modules that train them."""

from iit.alignment.alignment import Alignment, one
from iit.alignment.best import BestWeights
from iit.alignment.das import DAS
from iit.alignment.fit import Fitted, fit
from iit.alignment.objective import cross_entropy

__all__ = ["DAS", "Alignment", "BestWeights", "Fitted", "cross_entropy", "fit", "one"]
