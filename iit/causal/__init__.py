"""Hypotheses: causal models, and tasks that write their inputs as prompts."""

from iit.causal.ioi import ioi
from iit.causal.model import CausalModel, Setting
from iit.causal.task import Prompt, Task

__all__ = ["CausalModel", "Prompt", "Setting", "Task", "ioi"]
