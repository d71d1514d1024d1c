"""How far to believe an alignment: its accuracy, beside that of its controls."""

from iit.alignment.references import vanilla
from iit.evaluation.abstraction_error import abstraction_error
from iit.evaluation.angles import principal_angles
from iit.evaluation.controls import fresh, random_subspace
from iit.evaluation.evaluate import evaluate, scored_rows
from iit.evaluation.outcomes import outcomes
from iit.evaluation.rows import describe
from iit.evaluation.scoring import Scoring
from iit.evaluation.subspace import subspaces
from iit.evaluation.sweep import sweep
from iit.evaluation.trust import TRUST, Trust, train_alike
from iit.evaluation.verdict import Verdict, verdict

__all__ = [
    "TRUST",
    "Scoring",
    "Trust",
    "Verdict",
    "abstraction_error",
    "describe",
    "evaluate",
    "fresh",
    "outcomes",
    "principal_angles",
    "random_subspace",
    "scored_rows",
    "subspaces",
    "sweep",
    "train_alike",
    "vanilla",
    "verdict",
]
