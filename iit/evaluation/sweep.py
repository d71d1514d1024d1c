"""Vanilla patching at every component, layer, head and position, as rows."""

from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.rows import Group, describe, mean_rows, scores
from iit.intervened import ActivationStore, Edit
from iit.intervention import VanillaIntervention
from iit.network import Network
from iit.patching import Contrast, patch
from iit.patching.grid import grid, whole_sites
from iit.result import TRAINED, Rows


def sweep(
    network: Network,
    pairs: Pairs,
    *,
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    resamples: int = 2000,
    seed: int | None = None,
    experiment: str | None = None,
    **where: Any,
) -> Rows:
    """The IIA of vanilla patching at every component × layer × head × position, on one split.

    The rows are as `evaluate` gives them, a cell for each site. There is no control, as nothing is
    trained. Choose by validation rows.

    Arguments:
        variable: whose source is read; by default the pairs' variable.
        store, batch_size: as `iit.patching.patch` takes them.
        resamples: of the bootstrap behind the intervals.
        where: components, layers, heads and positions, as `grid` takes them. By default the
            position is every index that all prompts of the split have. It is the same index in base
            and source, which suits prompts of one template.

    Raises:
        ValueError: for sites the network lacks, and positions a prompt lacks.
    """
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
    variable = variable or pairs.variable
    # All pairs are run, changing or not.
    contrast = Contrast.of(network, encoded, variable=variable, every=True)
    sites = whole_sites(grid(contrast, **where))
    effects = patch(
        network,
        contrast,
        cells=sites,
        metric=("iia", "logit_difference"),
        store=store,
        batch_size=batch_size,
    )
    # bool[n]: only pairs that interchange the variable count.
    among = np.array([variable in names for names in encoded.interchanged])
    # Both are of all pairs: bool[site, pair] and float[site, pair].
    figures = effects.of("iia").astype(bool), effects.of("logit_difference")
    rows = Rows()
    for site, right, difference in zip(sites, *figures, strict=True):
        # Only `describe` reads it: it says which cell the rows belong to.
        cell = Alignment(network, {variable: Edit(site, VanillaIntervention())})
        run = {"seed": seed, "split": split, "experiment": experiment}
        columns = describe(cell, pairs, (variable,)) | run
        group = Group(encoded, among, columns, resamples)
        rows += scores({TRAINED: right}, group)
        rows += mean_rows({TRAINED: difference}, group)
    return rows
