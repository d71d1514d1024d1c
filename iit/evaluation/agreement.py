"""How often label and source's answer agree up to a site at the answer's own tokens."""

from collections.abc import Sequence

import numpy as np

from iit.alignment import Alignment
from iit.batch import IGNORED
from iit.evaluation.outcomes import edits_of, last_answer_token
from iit.evaluation.rows import Group
from iit.result import Row


def agreement_rows(alignment: Alignment, variables: Sequence[str], group: Group) -> list[Row]:
    """Rows `answer_agreement`: how often label and source's answer agree up to the site.

    The base is teacher-forced with the label, the source with its own answer. Where these differ,
    the site has seen other answer tokens in the source than in the base, and they may be what is
    swapped. There are no rows where no site of these variables is at an answer token, nor where the
    pairs do not know the source's answer.

    Arguments:
        variables: those that the group's pairs interchange.
    """
    encoded = group.encoded
    edits = edits_of(alignment)
    last = last_answer_token(edits[variable] for variable in variables)
    if last < 0:
        return []
    label = encoded.batch(range(len(encoded)))["base"]["answer"]
    agree = np.ones(len(encoded), dtype=bool)
    for variable in variables:
        answer = encoded.alternatives.get(f"source/{variable}")
        if answer is None:
            return []
        for k in range(min(last + 1, label.shape[1], answer.shape[1])):
            is_equal = label[:, k] == answer[:, k]
            # The label's padding counts as equal: it has no token there that could differ.
            agree &= (is_equal | (label[:, k] == IGNORED)).numpy()
    return group.rows("answer_agreement", agree)
