"""Reading activations: one run, any sites."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial

import torch
from torch import Tensor

from iit.batch import Batch
from iit.intervened.positions import SiteColumns, counts
from iit.network.answering import head_at
from iit.site import Site, Sites


class Activations(dict[Site, Tensor]):
    """{site: Tensor[batch, position, width]}, what `capture` returns. It prints as shapes.

    An edit takes them in place of a source batch.

    Arguments:
        found: the activations.
        counts: {site: Tensor[batch]}, how many positions each example has, where that is known. An
            activation is zero at the positions beyond.
    """

    def __init__(
        self, found: Mapping[Site, Tensor], counts: Mapping[Site, Tensor | None] | None = None
    ):
        super().__init__(found)
        self.counts = dict(counts or {})

    def __repr__(self) -> str:
        lines = (f"{site}: {[*x.shape]}, {x.dtype}" for site, x in self.items())
        return "\n  ".join(["Activations", *lines])


class _Enough(Exception):  # noqa: N818 — a signal, not an error
    """Every site has been read: the rest of the network need not run."""


def observe(
    resolved: Sites,
    batch: Batch,
    site_columns: dict[Site, SiteColumns],
    *,
    grad: bool = False,
    stop_early: bool = True,
) -> Activations:
    """Run the network once, and read every site.

    Arguments:
        resolved: the sites of the network.
        site_columns: {site: its columns in the batch}.
        grad: whether the graph is kept.
        stop_early: whether the run ends once every site is read. This is only done where every
            site is a component: an arbitrary module may be run twice, and that has to be noticed.

    Raises RuntimeError when a site's module was not run, or was run more than once.
    """
    activations: dict[Site, Tensor] = {}
    stop_early = stop_early and all(site.component is not None for site in site_columns)

    def read(site: Site, activation: Tensor) -> None:
        if site in activations:
            raise RuntimeError(
                f"Site {site} was run more than once in one forward; name a module that runs once."
            )
        # They lie together where the batch is, wherever their modules are.
        activations[site] = site_columns[site].read(activation).to(batch.device)
        # An exception leaves the forward from inside of a hook.
        if stop_early and len(activations) == len(site_columns):
            raise _Enough

    with ExitStack() as stack, torch.set_grad_enabled(grad):
        for site in site_columns:
            if grad:
                resolved[site].refuse_recomputed()
            stack.callback(resolved[site].attach(partial(read, site)).remove)
        if "labels" not in batch.kwargs:
            # Nothing reads the logits: the head runs at one column of one example.
            modules = (site.module for site in resolved.values())
            stack.enter_context(head_at(resolved.network, torch.tensor([[0]]), modules))
        with suppress(_Enough):
            batch.through(resolved.network)

    # In the order of `site_columns`, not in the order of the run.
    in_order = Activations({})
    for site, selected in site_columns.items():
        if site not in activations:
            raise RuntimeError(f"The forward never ran the module of {site}.")
        in_order[site] = activations[site]
        in_order.counts[site] = counts(selected, batch)
    return in_order
