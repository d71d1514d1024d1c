"""How far to believe an alignment: its controls, scored beside it."""

from iit.evaluation.controls import random_subspace, vanilla
from iit.evaluation.evaluate import TRUST, Trust, evaluate
from iit.evaluation.outcomes import outcomes

__all__ = ["TRUST", "Trust", "evaluate", "outcomes", "random_subspace", "vanilla"]
