"""Vanilla patching of every layer × position × component, as rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.rows import describe, readout, scores
from iit.intervened import ActivationStore, Edit
from iit.intervention import VanillaIntervention
from iit.network import Network
from iit.network.components import HEADED, UNLAYERED, blocks_of
from iit.patching import patched
from iit.result import Row
from iit.site import Site

Position = str | int | tuple[str, ...] | tuple[int, ...] | None


def sweep(
    network: Network,
    pairs: Pairs,
    *,
    components: Sequence[str] = ("block_output",),
    layers: Sequence[int] | None = None,
    heads: Sequence[int | Sequence[int]] | None = None,
    positions: Sequence[Position] | None = None,
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    resamples: int = 2000,
    seed: int | None = None,
    experiment: str | None = None,
    progress: bool = False,
) -> list[Row]:
    """Interchange intervention accuracy of the whole vector at every component × layer × head × position, on one split.

    Rows as `evaluate` gives them, a cell for each site; no control, for nothing is trained. Choose by validation rows.

    layers: all blocks by default. heads: of the components that have any, one at a time (or several as one site); none by default. positions: roles or token indices; by default every index that all
    prompts of the split have (of the base and the source the same one, which suits prompts of one template).
    store, batch_size, progress: as `patched` takes them. resamples: of the bootstrap behind the intervals.

    Raises ValueError for sites the network lacks, and positions a prompt lacks.
    """
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
    variable = variable or pairs.variable
    sites = _sites(network, components, layers, heads, _indices(encoded, variable) if positions is None else positions)
    found = patched(network, encoded, sites, variable=variable, store=store, batch_size=batch_size, progress=progress)
    among = np.array([variable in names for names in encoded.interchanged])
    rows = []
    for site, (right, difference) in found.items():
        cell = Alignment(network, {variable: Edit(site, VanillaIntervention())})
        facts = describe(cell, pairs, (variable,)) | {"seed": seed, "split": split, "experiment": experiment}
        rows += scores({None: right}, encoded, among, facts, resamples)
        rows += readout({None: difference}, encoded, among, facts, resamples)
    return rows


def _indices(encoded: EncodedPairs, variable: str) -> list[Position]:
    whole = encoded.batch(range(len(encoded)))
    shortest = min(int(side["attention_mask"].sum(1).min()) for side in (whole["base"], whole["sources"][variable]))
    return list(range(shortest))


def _sites(network: Any, components: Sequence[str], layers: Any, heads: Any, positions: Sequence[Position]) -> list[Site]:
    every = range(len(blocks_of(network.model)[1])) if layers is None else layers
    return [
        Site(component, layer=layer, head=head, position=position)
        for component in components
        for layer in ((None,) if component in UNLAYERED else every)
        for head in (heads if heads and component in HEADED else (None,))
        for position in positions
    ]
