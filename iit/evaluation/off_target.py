"""What the edit of a variable does where another variable's value is to be swapped."""

import logging
from dataclasses import replace

import numpy as np
import torch

from iit.alignment import Alignment
from iit.batch import at_rows
from iit.data import EncodedPairs
from iit.evaluation.outcomes import edits_of, evaluating
from iit.evaluation.rows import Group
from iit.evaluation.scoring import Scoring
from iit.result import Arm, Row, correct

log = logging.getLogger(__name__)


def off_target_rows(scoring: Scoring) -> list[Row]:
    """IIA of each variable's edit where another variable is to be swapped.

    The rows are the other variable's, with the control `off_target` and the draw VARIABLE. There
    are none where the pairs are of a single variable.
    """
    rows = []
    if len(scoring.pairs.variables) == 1:
        return rows
    right = _off_target(scoring.alignment, scoring.encoded, scoring.batch_size)
    for variables, group in scoring.groups():
        if len(variables) != 1:
            continue
        for variable in right:
            # A variable's own edit is on target in its own pairs.
            if variable not in variables:
                rows += _rows(variable, right[variable], group)
    return rows


def _off_target(
    alignment: Alignment, pairs: EncodedPairs, batch_size: int
) -> dict[str, np.ndarray]:
    """Is the label the answer when another variable's edit is done with the pair's source?

    The pairs that count interchange one variable alone, other than the edit's. The label is that of
    their interchange. A share above what random subspaces give says that the edit carries the other
    variable, too.

    Returns:
        {the edit's variable: bool[n]}, False in pairs that do not count.
    """
    edits = edits_of(alignment)
    right = {variable: np.zeros(len(pairs), dtype=bool) for variable in edits}
    # The one variable that a pair interchanges; "" where there are several.
    alone = np.array([names[0] if len(names) == 1 else "" for names in pairs.interchanged])
    with evaluating(alignment):
        for batch in pairs.batches(batch_size, alignment.n_columns):
            swapped = alone[batch["row"].numpy()]
            for variable, edit in edits.items():
                active = {name: name == variable for name in alignment.variables}
                for other in sorted({*swapped} - {variable, ""}):
                    rows = torch.from_numpy(np.flatnonzero(swapped == other))
                    base = at_rows(batch["base"], rows)
                    source = None
                    if edit.intervention.needs_source:
                        # This variable's edit reads the other variable's source.
                        source = {variable: at_rows(batch["sources"][other], rows)}
                    logits = alignment.answer_logits(base, source, active).cpu()
                    right[variable][batch["row"][rows]] = correct(logits, base["answer"])
    return right


def _rows(variable: str, right: np.ndarray, group: Group) -> list[Row]:
    """The rows of a variable's edit among the pairs of another variable.

    Arguments:
        right: bool[n], what `_off_target` gives.
        group: pairs that interchange the other variable. Of these only those count in which no
            other variable differs: there an edit that carries its own variable alone changes
            nothing. Where none of those is changing, the whole group counts.
    """
    alone = replace(group, among=group.among & (group.kinds == group.cell_columns["variable"]))
    if alone.changing.any():
        group = alone
    return group.rows("iia", right, Arm("off_target", variable))


def task_off_target_rows(scoring: Scoring) -> list[Row]:
    """Rows of the edit on pairs that interchange the task's other variables: control `off_target`.

    They are for alignments of one variable. The pairs are sampled as the alignment's were, from the
    same split's words.
    """
    alignment, pairs = scoring.alignment, scoring.pairs
    if len(alignment.variables) != 1 or pairs.sampler is None:
        return []
    rows, sampler = [], pairs.sampler
    # Only the test pairs are used, so the other splits are small.
    alike = replace(
        sampler.options,
        n=None,
        n_train=2,
        n_val=2,
        n_test=min(len(scoring.encoded), 200),
        separate=(),
        together=False,
        fresh=False,
        natural=False,
    )
    for other in sampler.task.variables:
        if other in pairs.variables:
            continue
        try:
            sampled = replace(alike, variable=other)(sampler.task, sampler.network)
        except ValueError as error:  # a variable that cannot be interchanged by itself in this way
            log.info("off_target: no pairs for %s: %s", other, error)
            continue
        encoded = EncodedPairs(sampled.split("test"), other, scoring.network)
        # The rows are the other variable's, but the edit that they describe is this one's.
        columns = scoring.cell_columns(pairs.variables) | {"variable": other}
        every = np.ones(len(encoded), dtype=bool)
        group = Group(encoded, every, columns, scoring.trust.resamples)
        right = _off_target(alignment, encoded, scoring.batch_size)
        for variable in right:
            rows += _rows(variable, right[variable], group)
    return rows
