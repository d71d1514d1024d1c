"""Tasks: each function here returns a filled `Task`."""

from iit.tasks.addition import addition
from iit.tasks.attribute import attribute
from iit.tasks.equality import equality
from iit.tasks.facts import facts
from iit.tasks.greater_than import greater_than
from iit.tasks.ioi import ioi
from iit.tasks.mcqa import mcqa
from iit.tasks.modular_sum import modular_sum
from iit.tasks.price_tag import price_tag
from iit.tasks.pvr import pvr

__all__ = [
    "addition",
    "attribute",
    "equality",
    "facts",
    "greater_than",
    "ioi",
    "mcqa",
    "modular_sum",
    "price_tag",
    "pvr",
]
