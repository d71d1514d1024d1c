"""Comparing hypotheses: how often two causal models answer an interchange differently."""

from collections.abc import Iterable, Mapping
from typing import Any

from iit.causal.model import CausalModel, Setting, same

Interchange = tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]
"""The base's inputs, and variable → the inputs of its source."""


def separating_share(a: CausalModel, b: CausalModel, pairs: Iterable[Interchange]) -> float:
    """The share of pairs on which two models' outputs differ after the same interchange; in [0, 1].

    Only such pairs can tell which of the two describes a network. pairs: (base, {variable:
    source}), as `interchange` takes them. An input that only one of them reads may be there; the
    other one is not given it. Raises ValueError for no pairs, for variables that either model
    lacks, and for inputs that both do.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("There are no pairs to compare the models on.")
    said = []
    for model, other in ((a, b), (b, a)):
        unread = {name for name in other.inputs if name not in model.inputs}
        said.append([_answer(model, unread, base, sources) for base, sources in pairs])
    return sum(not same(one, other) for one, other in zip(*said, strict=True)) / len(pairs)


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
