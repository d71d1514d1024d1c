"""`capture`: the activations of one run at any sites, also of an edited run."""

from collections.abc import Sequence

import torch
from torch import nn

from iit.batch import Inputs
from iit.intervened.edit import as_sites, sites_of
from iit.intervened.intervened_model import IntervenedModel
from iit.intervened.observe import Activations, observe
from iit.intervened.positions import columns, prepare_at
from iit.intervened.sources import Active, SourceInputs
from iit.network import Network
from iit.site import Site


def capture(
    network: Network | nn.Module | IntervenedModel,
    batch: Inputs,
    sites: Site | Sequence[Site],
    *,
    sources: SourceInputs = None,
    active: Active = None,
    grad: bool = False,
) -> Activations:
    """{site: Tensor[batch, position, width]} of one run; entries of absent positions are zero.

    Arguments:
        network: a network; or an `IntervenedModel`, whose edits are then applied. A site that is
            edited is read after its edit. The result may be a source of a further run, for
            interchanges one after another.
        sources, active: as the `IntervenedModel` takes them.
        grad: whether the graph is kept; by default the run is under `no_grad`.

    Raises ValueError for sites the network lacks, roles and positions the batch lacks, and sources
    without an intervened model.
    """
    sites = as_sites(sites)
    if not isinstance(network, IntervenedModel):
        if sources is not None or active is not None:
            raise ValueError(
                "`sources` and `active` belong to an IntervenedModel; the network given "
                "here is not one."
            )
        network = IntervenedModel(network, {})
    edited = sites_of(network.edits.values())
    prepared = prepare_at(network.network, batch, [*sites, *edited])
    site_columns = {site: columns(site, prepared) for site in sites}
    # The edits' hooks come first, so the hooks that read see what the edits wrote.
    with torch.set_grad_enabled(grad), network.edited_run(prepared, sources, active).applied():
        return observe(network.resolved, prepared, site_columns, grad=grad, stop_early=not edited)
