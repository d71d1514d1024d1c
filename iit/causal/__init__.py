"""Hypotheses: causal models, and tasks that write their inputs as prompts."""

from iit.causal.abstraction import drop, marginalise, merge
from iit.causal.addition import addition
from iit.causal.attribute import attribute
from iit.causal.comparison import separating_share
from iit.causal.equality import equality
from iit.causal.facts import facts
from iit.causal.greater_than import greater_than
from iit.causal.ioi import ioi
from iit.causal.mcqa import mcqa
from iit.causal.model import CausalModel, Setting
from iit.causal.modular_sum import modular_sum
from iit.causal.price_tag import price_tag
from iit.causal.pvr import pvr
from iit.causal.task import Prompt, Task

__all__ = [
    "CausalModel",
    "Prompt",
    "Setting",
    "Task",
    "addition",
    "attribute",
    "drop",
    "equality",
    "facts",
    "greater_than",
    "ioi",
    "marginalise",
    "mcqa",
    "merge",
    "modular_sum",
    "price_tag",
    "pvr",
    "separating_share",
]
