"""What the edit of a variable does where another variable's value is to be swapped."""

import logging
from dataclasses import replace

import numpy as np
import torch

from iit.alignment import Alignment
from iit.batch import at_rows
from iit.data import EncodedPairs
from iit.evaluation.outcomes import evaluating
from iit.evaluation.rows import Group
from iit.evaluation.scoring import Scoring
from iit.intervened.sources import variables_of
from iit.result import Arm, Row, correct

log = logging.getLogger(__name__)


def off_target(
    alignment: Alignment, pairs: EncodedPairs, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Is the label the answer when another variable's edit is done with the pair's source?

    The pairs that count interchange one variable alone, other than the edit's. The label is that of
    their interchange. A share above what random subspaces give says that the edit carries the other
    variable, too.

    Returns:
        {the edit's variable: bool[n]}, False in pairs that do not count. Nothing where the pairs
        are of a single variable, and the alignment has it.
    """
    right = {str(variable): np.zeros(len(pairs), dtype=bool) for variable in alignment.variables}
    if set(right) >= set(pairs.variables) and len(pairs.variables) == 1:
        return {}
    # Edits that read no source are given none.
    reads = {
        str(v): e.intervention.needs_source
        for key, e in alignment.edits.items()
        for v in variables_of(key, e)
    }
    # The one variable that a pair interchanges; "" where there are several.
    alone = np.array([names[0] if len(names) == 1 else "" for names in pairs.interchanged])
    with evaluating(alignment):
        for batch in pairs.batches(batch_size, alignment.n_columns):
            swapped = alone[batch["row"].numpy()]
            for variable, is_right in right.items():
                for other in sorted({*swapped} - {variable, ""}):
                    rows = torch.from_numpy(np.flatnonzero(swapped == other))
                    base = at_rows(batch["base"], rows)
                    # The other variable's source, although it is this variable's edit that reads
                    # it.
                    source = (
                        {variable: at_rows(batch["sources"][other], rows)}
                        if reads[variable]
                        else None
                    )
                    active = {name: name == variable for name in alignment.variables}
                    logits = alignment.answer_logits(base, source, active).cpu()
                    is_right[batch["row"][rows].numpy()] = correct(logits, base["answer"]).numpy()
    return right


def off_target_rows(variable: str, right: np.ndarray, group: Group) -> list[Row]:
    """IIA of a variable's edit where another variable is to be swapped.

    The rows are the other variable's, with the control `off_target` and the draw VARIABLE.

    Arguments:
        right: bool[n], what `off_target` found.
        group: pairs that interchange the other variable. Of these only those count in which no
            other variable differs: there an edit that carries its own variable alone changes
            nothing. Where none of those is changing, the whole group counts.
    """
    kinds = np.array(group.encoded.kinds or [""] * len(group.encoded))
    alone = replace(group, among=group.among & (kinds == group.facts["variable"]))
    group = alone if alone.changing.any() else group
    return [
        group.row("iia", right, chosen, subset, Arm("off_target", variable))
        for subset, chosen in (("all", group.among), ("changing", group.changing))
        if chosen.any()
    ]


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
    sizes = {"n": None, "n_train": 2, "n_val": 2, "n_test": min(len(scoring.encoded), 200)}
    alike = replace(
        sampler.options, **sizes, separate=(), together=False, fresh=False, natural=False
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
        ((variable, right),) = off_target(alignment, encoded, scoring.batch_size).items()
        # The rows are the other variable's, but the edit that they describe is this one's.
        facts = scoring.facts(pairs.variables) | {"variable": other}
        every = np.ones(len(encoded), dtype=bool)
        rows += off_target_rows(
            variable, right, Group(encoded, every, facts, scoring.trust.resamples)
        )
    return rows
