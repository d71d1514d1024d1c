"""What the edit of a variable does where another variable's value is to be swapped."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from iit.alignment import Alignment
from iit.alignment.stacked import rows_of
from iit.data import EncodedPairs
from iit.evaluation.outcomes import evaluating
from iit.evaluation.rows import scores
from iit.intervened.sources import variables_of
from iit.result import Row, correct, where
from iit.result.vocabulary import OFF_TARGET


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
                    base = rows_of(batch["base"], rows)
                    # The other variable's source, although it is this variable's edit that reads
                    # it.
                    source = (
                        {variable: rows_of(batch["sources"][other], rows)}
                        if reads[variable]
                        else None
                    )
                    active = {name: name == variable for name in alignment.variables}
                    logits = alignment.answer_logits(base, source, active).cpu()
                    is_right[batch["row"][rows].numpy()] = correct(logits, base["answer"]).numpy()
    return right


def off_target_rows(
    variable: str,
    right: np.ndarray,
    encoded: EncodedPairs,
    among: np.ndarray,
    facts: Mapping[str, Any],
    resamples: int,
) -> list[Row]:
    """IIA of a variable's edit where another variable is to be swapped.

    The rows are the other variable's, with the control `off_target/VARIABLE`.

    Arguments:
        right: bool[n], what `off_target` found.
        among: bool[n], pairs that interchange the other variable, which `facts` names. Of these
            only those count in which no other variable differs: there an edit that carries its own
            variable alone changes nothing. Where none of those is changing, all of `among` count.
    """
    alone = among & np.array(
        [kind == facts["variable"] for kind in encoded.kinds or [""] * len(encoded)]
    )
    among = alone if (alone & encoded.changing.numpy()).any() else among
    rows = where(scores({None: right}, encoded, among, facts, resamples), metric="iia")
    return [
        replace(row, control=f"{OFF_TARGET}{variable}")
        for row in rows
        if row.subset in ("all", "changing")
    ]
