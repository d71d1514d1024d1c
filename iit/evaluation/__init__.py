"""How far to believe an alignment: its controls, scored beside it."""

from iit.evaluation.controls import random_subspace, vanilla
from iit.evaluation.evaluate import TRUST, Trust, evaluate
from iit.evaluation.outcomes import outcomes
from iit.evaluation.rows import describe
from iit.evaluation.sweep import sweep

__all__ = ["TRUST", "Trust", "describe", "evaluate", "outcomes", "random_subspace", "sweep", "vanilla"]
