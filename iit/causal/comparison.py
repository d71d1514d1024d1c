"""Comparing hypotheses: how often two causal models answer an interchange differently."""

from collections.abc import Iterable, Mapping
from typing import Any

from iit.causal.model import CausalModel, same

Interchange = tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]
"""The base's inputs, and variable → the inputs of its source."""


def separating_share(a: CausalModel, b: CausalModel, pairs: Iterable[Interchange]) -> float:
    """The share of pairs on which two models' outputs differ after the same interchange; in [0, 1].

    Only such pairs can tell which of the two describes a network. pairs: (base, {variable: source}), as `interchange` takes them.
    Raises ValueError for no pairs, and for variables and inputs that either model lacks.
    """
    by_variables: dict[tuple[str, ...], list[Interchange]] = {}
    for base, sources in pairs:
        by_variables.setdefault(tuple(sources), []).append((base, sources))
    n = sum(map(len, by_variables.values()))
    if not n:
        raise ValueError("There are no pairs to compare the models on.")
    apart = 0
    for variables, group in by_variables.items():
        bases = _columns([base for base, _ in group])
        chosen = {v: _columns([sources[v] for _, sources in group]) for v in variables}
        one, other = (model.interchange_batch(bases, chosen)[model.output] for model in (a, b))
        apart += sum(not same(x, y) for x, y in zip(one, other, strict=True))
    return apart / n


def _columns(rows: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    lacking = [i for i, row in enumerate(rows) if row.keys() != rows[0].keys()]
    if lacking:
        raise ValueError(f"All inputs need the same names; {sorted(rows[0])} and {sorted(rows[lacking[0]])} are given.")
    return {name: [row[name] for row in rows] for name in rows[0]}
