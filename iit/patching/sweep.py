"""Vanilla patching of many sites, pair by pair; `iit.sweep` makes rows of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iit.data import EncodedPairs
from iit.intervened import ActivationStore
from iit.network import Network
from iit.patching.contrast import Contrast
from iit.patching.patch import patch
from iit.site import Site


class Patched(NamedTuple):
    """What patching one site does to the pairs, in their order.

    right: bool[n], whether the label is the argmax at every answer token.
    difference: float[n], logit of the label − logit of the base's own answer; NaN where that is not
        known.
    """

    right: np.ndarray
    difference: np.ndarray


def patched(
    network: Network,
    pairs: EncodedPairs,
    sites: Sequence[Site],
    *,
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[Site, Patched]:
    """Swap the whole vector of each site from source to base, one site at a time.

    All pairs are run, changing or not.

    Arguments:
        variable: whose source is read; needed where the pairs are of several.
        store, batch_size, progress: as `patch` takes them.

    Raises:
        ValueError: for a site the network lacks, a position a prompt lacks, and a variable the
            pairs do not have.
    """
    contrast = Contrast.of(network, pairs, variable=variable, every=True)
    effects = patch(
        network,
        contrast,
        cells=sites,
        metric=("iia", "logit_difference"),
        store=store,
        batch_size=batch_size,
        progress=progress,
    )
    right = effects.of("iia").astype(bool)
    difference = effects.of("logit_difference")
    return dict(zip(sites, map(Patched, right, difference), strict=True))
