"""Vanilla patching at every component, layer, head and position, as rows."""

from collections.abc import Sequence

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.rows import Group, describe, readout, scores
from iit.intervened import ActivationStore, Edit
from iit.intervention import VanillaIntervention
from iit.network import Network
from iit.patching import Contrast, patched
from iit.patching.grid import Position, grid
from iit.result import TRAINED, Row


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
    """The IIA of vanilla patching at every component × layer × head × position, on one split.

    The rows are as `evaluate` gives them, a cell for each site. There is no control, as nothing is
    trained. Choose by validation rows.

    Arguments:
        layers: all blocks by default.
        heads: of the components that have any, one at a time (or several as one site); none by
            default.
        positions: roles or token indices; by default every index that all prompts of the split
            have. It is the same index in base and source, which suits prompts of one template.
        variable: whose source is read; by default the pairs' variable.
        store, batch_size, progress: as `patched` takes them.
        resamples: of the bootstrap behind the intervals.

    Raises:
        ValueError: for sites the network lacks, and positions a prompt lacks.
    """
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
    variable = variable or pairs.variable
    # For the grid alone: `patched` makes a contrast of its own.
    contrast = Contrast.of(network, encoded, variable=variable, every=True)
    cells = grid(contrast, components=components, layers=layers, heads=heads, positions=positions)
    sites = [cell.site for cell in cells]
    by_site = patched(
        network,
        encoded,
        sites,
        variable=variable,
        store=store,
        batch_size=batch_size,
        progress=progress,
    )
    # bool[n]: only pairs that interchange the variable count.
    among = np.array([variable in names for names in encoded.interchanged])
    rows = []
    # Both are of all pairs: bool[n] and float[n].
    for site, (right, difference) in by_site.items():
        # Only `describe` reads it: it says which cell the rows belong to.
        cell = Alignment(network, {variable: Edit(site, VanillaIntervention())})
        facts = describe(cell, pairs, (variable,)) | {
            "seed": seed,
            "split": split,
            "experiment": experiment,
        }
        group = Group(encoded, among, facts, resamples)
        rows += scores({TRAINED: right}, group)
        rows += readout({TRAINED: difference}, group)
    return rows
