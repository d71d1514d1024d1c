"""How often label and source's answer agree up to a site at the answer's own tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs
from iit.intervened.sources import variables_of
from iit.network.answering import ANSWER_ROLE, IGNORED
from iit.result import Row, clustered_interval


def agreement_rows(
    alignment: Alignment,
    encoded: EncodedPairs,
    variables: Sequence[str],
    among: np.ndarray,
    facts: Mapping[str, Any],
    resamples: int,
) -> list[Row]:
    """Rows `answer_agreement`: how often label and source's answer agree up to the site.

    The base is teacher-forced with the label, the source with its own answer. Where these differ,
    the site has seen other answer tokens in the source than in the base, and they may be what is
    swapped. There are no rows where no site of these variables is at an answer token, nor where the
    pairs do not know the source's answer.

    Arguments:
        variables: those that the pairs interchange.
        among: bool[n], the pairs that count.
        facts: the columns that say which cell the rows belong to.
        resamples: of the bootstrap behind the interval.
    """
    # The largest k among the sites at `answer[k]`; −1 where there is none.
    last = -1
    for key, edit in alignment.edits.items():
        if set(variables) & set(variables_of(key, edit)):
            matches = (ANSWER_ROLE.fullmatch(role) for site in edit.sites for role in site.roles)
            last = max([last, *(int(match[1]) for match in matches if match)])
    answers = [encoded.alternatives.get(f"source/{variable}") for variable in variables]
    if last < 0:
        return []
    label = encoded.batch(range(len(encoded)))["base"]["answer"]
    agree = np.ones(len(encoded), dtype=bool)
    for answer in answers:
        if answer is None:
            return []
        for k in range(min(last + 1, label.shape[1], answer.shape[1])):
            # The label's padding counts as equal: it has no token there that could differ.
            agree &= ((label[:, k] == answer[:, k]) | (label[:, k] == IGNORED)).numpy()
    rows = []
    for subset, chosen in (("all", among), ("changing", among & encoded.changing.numpy())):
        if chosen.any():
            interval = clustered_interval(
                agree[chosen], encoded.clusters[chosen], resamples=resamples
            )
            rows.append(
                Row(
                    **facts,
                    subset=subset,
                    control=None,
                    metric="answer_agreement",
                    **interval._asdict(),
                )
            )
    return rows
