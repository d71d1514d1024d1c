"""Hypotheses: causal models, and tasks that write their inputs as prompts."""

from iit.causal.abstraction import drop, marginalise, merge
from iit.causal.comparison import separating_share
from iit.causal.model import CausalModel, Setting
from iit.causal.task import Columns, Inputs, Pools, Prompt, Task

__all__ = [
    "CausalModel",
    "Columns",
    "Inputs",
    "Pools",
    "Prompt",
    "Setting",
    "Task",
    "drop",
    "marginalise",
    "merge",
    "separating_share",
]
