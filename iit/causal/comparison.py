"""Comparing hypotheses: how often two causal models answer an interchange differently."""

from collections.abc import Iterable, Mapping
from typing import Any

from iit.causal.model import CausalModel, Setting, same

Interchange = tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]
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
        unread = {name for name in other.inputs if name not in model.inputs}
        outputs.append([_answer(model, unread, base, sources) for base, sources in pairs])
    return sum(not same(one, other) for one, other in zip(*outputs, strict=True)) / len(pairs)


def _answer(
    model: CausalModel,
    unread: set[str],
    base: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
) -> Any:
    """The model's output; inputs that only the other model reads are left out."""

    def own(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return (
            inputs
            if isinstance(inputs, Setting)
            else {k: v for k, v in inputs.items() if k not in unread}
        )

    return model.interchange(
        own(base), {variable: own(source) for variable, source in sources.items()}
    )[model.output]
