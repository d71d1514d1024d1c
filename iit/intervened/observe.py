"""Reading activations: one run, any sites."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from iit.batch import Batch
from iit.intervened.positions import SiteColumns, counts
from iit.site import ResolvedSite, Site, Sites


class Activations(dict[Site, Tensor]):
    """{site: Tensor[batch, position, width]}, what `capture` returns.

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


class _Enough(Exception):  # noqa: N818 — a signal, not an error
    """Every site has been read: the rest of the network need not run."""


def observe(
    network: nn.Module,
    batch: Batch,
    places: dict[Site, SiteColumns],
    *,
    grad: bool = False,
    resolved: dict[Site, ResolvedSite] | None = None,
    stop_early: bool = True,
) -> Activations:
    """Run the network once, and read every site.

    Arguments:
        places: {site: its columns in the batch}.
        grad: whether the graph is kept.
        resolved: the sites of this network, where they were resolved before.
        stop_early: whether the run ends once every site is read. This is only done where every
            site is a component: an arbitrary module may be run twice, and that has to be noticed.

    Raises RuntimeError when a site's module was not run, or was run more than once.
    """
    activations: dict[Site, Tensor] = {}
    resolved = Sites(network) if resolved is None else resolved
    if grad:
        for site in places:
            resolved[site].refuse_recomputed()

    stop_early = stop_early and all(site.component is not None for site in places)

    def reader(site: Site) -> Callable[[Tensor], None]:
        def read(activation: Tensor) -> None:
            if site in activations:
                raise RuntimeError(
                    f"Site {site} was run more than once in one forward; name a module "
                    "that runs once."
                )
            activations[site] = places[site].read(activation)
            # An exception leaves the forward from inside of a hook.
            if stop_early and len(activations) == len(places):
                raise _Enough

        return read

    with ExitStack() as stack, torch.set_grad_enabled(grad):
        for site in places:
            stack.callback(resolved[site].attach(reader(site)).remove)
        with suppress(_Enough):
            batch.through(network)

    missing = [str(site) for site in places if site not in activations]
    if missing:
        raise RuntimeError(f"The forward never ran the module of {', '.join(missing)}.")

    # In the order of `places`, not in the order of the run.
    return Activations(
        {site: activations[site] for site in places},
        {site: counts(site_columns, batch) for site, site_columns in places.items()},
    )
