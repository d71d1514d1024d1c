"""Comparing hypotheses: how often two causal models answer an interchange differently."""

from collections.abc import Iterable, Mapping

from iit.causal.model import CausalModel, Setting, same
from iit.causal.task import Inputs

Interchange = tuple[Inputs, Mapping[str, Inputs]]
"""The base's inputs, and variable → the inputs of its source."""


def separating_share(a: CausalModel, b: CausalModel, pairs: Iterable[Interchange]) -> float:
    """The share of pairs on which two models' outputs differ after the same interchange; in [0, 1].

    Only such pairs can tell which of the two describes a network.

    Arguments:
        pairs: (base, {variable: source}), as `interchange` takes them. They may hold an input that
            only one of the models has. The other model does not get it.

    Raises ValueError for no pairs, for variables that either model lacks, and for inputs that both
    lack.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("There are no pairs to compare the models on.")
    outputs = []
    for model, other in ((a, b), (b, a)):
        unread = other.inputs.keys() - model.inputs.keys()
        column = []
        for base, sources in pairs:
            read = {variable: _read(source, unread) for variable, source in sources.items()}
            column.append(model.interchange(_read(base, unread), read)[model.output])
        outputs.append(column)
    n_different = len(pairs) - sum(map(same, *outputs))
    return n_different / len(pairs)


def _read(inputs: Inputs, unread: set[str]) -> Inputs:
    """The inputs without those that only the other model reads. A setting stays as it is."""
    if isinstance(inputs, Setting):
        return inputs
    return {name: value for name, value in inputs.items() if name not in unread}
