"""Figures of a run.

When a pair is right, intervals, rows, the file that holds the rows, and how a cell is chosen.
"""

from iit.result.accuracy import correct, log_probability, logit_difference
from iit.result.interval import Interval, clustered_interval, over_seeds
from iit.result.metrics import SCHEMA, Metrics, read_metrics, write_metrics, write_text
from iit.result.row import ROW_FIELDS, TRAINED, Arm, Row
from iit.result.select import SCORE, Cell, Rows, rows_of, scores_of, select, where

__all__ = [
    "ROW_FIELDS",
    "SCHEMA",
    "SCORE",
    "TRAINED",
    "Arm",
    "Cell",
    "Interval",
    "Metrics",
    "Row",
    "Rows",
    "clustered_interval",
    "correct",
    "log_probability",
    "logit_difference",
    "over_seeds",
    "read_metrics",
    "rows_of",
    "scores_of",
    "select",
    "where",
    "write_metrics",
    "write_text",
]
