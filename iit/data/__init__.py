"""Prompts and pairs: sampling, labelling by interchange, splits, tokens, batches."""

from iit.data.datamodule import PairsDataModule
from iit.data.encoded import EncodedPairs
from iit.data.pairs import COLUMNS, Pairs
from iit.data.prompts import DrawnPrompt, Kept, draw_prompts, one_token_words
from iit.data.splits import SPLITS, disjoint_pools

__all__ = [
    "COLUMNS",
    "SPLITS",
    "DrawnPrompt",
    "EncodedPairs",
    "Kept",
    "Pairs",
    "PairsDataModule",
    "disjoint_pools",
    "draw_prompts",
    "one_token_words",
]
