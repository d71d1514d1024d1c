"""Activation patching: the source's activation in place of the base's, one cell at a time."""

from typing import Any

from iit.intervened import ActivationStore
from iit.patching.cell_runs import effects_of
from iit.patching.contrast import AnyNetwork, Contrasted, contrast_of
from iit.patching.effects import Effects
from iit.patching.grid import grid
from iit.patching.metric import MetricChoice
from iit.patching.replacement import Replacement


def patch(
    network: AnyNetwork,
    pairs: Contrasted,
    *,
    direction: str = "noising",
    metric: MetricChoice = "logit_difference",
    store: ActivationStore | None = None,
    batch_size: int = 64,
    **where: Any,
) -> Effects:
    """Activation patching of every component × layer × head × position × unit, one at a time.

    Arguments:
        pairs: a `Contrast`; pairs stand for the changing ones of validation, of their one variable.
        direction: "noising" runs the base with the source's activations, "denoising" the source
            with the base's.
        metric: names of `iit.patching.METRICS`, also with "normalised_" before them, or functions
            (logits, answers) → Tensor[batch].
        store: activations that earlier runs left.
        batch_size: pairs in a batch of the longest runs; of shorter runs up to four times as many.
        where: the cells. Either components=["block_output"], layers=[3, 4], heads="all",
            positions=["s2", -1], units=[0, 5], each with a default; or cells=[…], one by one.
            `grid` says what each takes.

    Raises:
        ValueError: for sites the network lacks, positions a prompt lacks, and what `grid` and
            `Contrast` refuse.

    References:
        arXiv 2202.05262, 2309.16042.
    """
    contrast = contrast_of(network, pairs, direction)
    cells = grid(contrast, **where)
    replacement = Replacement(contrast, cells, contrast.source)
    method = "VanillaIntervention" + ("" if direction == "noising" else ", denoising")
    return effects_of(contrast, cells, replacement.edit_of, method, metric, store, batch_size)
