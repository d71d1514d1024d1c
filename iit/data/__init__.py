"""Prompts and pairs: sampling, labelling by interchange, splits, tokens, batches."""

from typing import TYPE_CHECKING, Any

from iit.data.encoded import EncodedPairs
from iit.data.held_out import Choice, HeldOut, freeze, hold_out
from iit.data.pairs import Pairs, Sampling
from iit.data.prompts import Prompts, draw_prompts
from iit.data.sources import STRATEGIES
from iit.data.splits import SPLITS, disjoint_pools
from iit.data.table import COLUMNS

if TYPE_CHECKING:
    from iit.data.datamodule import PairsDataModule

__all__ = [
    "COLUMNS",
    "SPLITS",
    "STRATEGIES",
    "Choice",
    "EncodedPairs",
    "HeldOut",
    "Pairs",
    "PairsDataModule",
    "Prompts",
    "Sampling",
    "disjoint_pools",
    "draw_prompts",
    "freeze",
    "hold_out",
]


def __getattr__(name: str) -> Any:
    """Import the data module when it is first asked for: Lightning takes a second to import."""
    if name != "PairsDataModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from iit.data.datamodule import PairsDataModule

    return PairsDataModule
