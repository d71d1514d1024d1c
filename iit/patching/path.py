"""Path patching: what one part sends to another.

All other paths are held at the base's values.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from iit.intervened import Activations, ActivationStore, Edit, IntervenedModel
from iit.intervened.edit import as_sites
from iit.intervened.positions import columns, counts
from iit.intervention import LambdaIntervention, VanillaIntervention
from iit.network.inputs import prepare
from iit.patching.cell_runs import BEHIND, CellGroup, CellRows, EditedCells, effects_of
from iit.patching.contrast import AnyNetwork, Contrasted, contrast_of, prompts_of
from iit.patching.effects import Effects
from iit.patching.grid import MapCell, grid, n_blocks, whole_sites
from iit.patching.metric import MetricChoice
from iit.patching.replacement import Replacement
from iit.site import Site

SUBLAYERS = ("attention", "mlp")
SENDERS: dict[str, Any] = {
    "components": "attention_value_output",
    "heads": "all",
    "positions": ("last",),
}
"""The senders of a path by default: every head at the last token."""

# When each component is computed inside its block.
_ORDER = {
    **dict.fromkeys(("embedding_output", "block_input"), 0),
    **dict.fromkeys(
        ("attention_input", "query_output", "key_output", "value_output", "attention_weight"), 1
    ),
    **dict.fromkeys(("attention_value_output", "attention_output", "attention_write"), 2),
    **dict.fromkeys(("mlp_input", "router_output"), 3),
    **dict.fromkeys(("mlp_activation", "mlp_output", "mlp_write"), 4),
    **dict.fromkeys(("block_output", "final_norm_output"), 5),
}


def path_patch(
    network: AnyNetwork,
    pairs: Contrasted,
    receivers: Site | Sequence[Site] = (),
    *,
    through: Sequence[str] = (),
    direction: str = "noising",
    metric: MetricChoice = "logit_difference",
    store: ActivationStore | None = None,
    batch_size: int = 64,
    **where: Any,
) -> Effects:
    """The effect of each sender on the answer by way of the receivers alone.

    There are two runs, one after the other, and nothing is linearised. In the first the sender has
    the source's activation, and the writes of all later sublayers have the base's. So the receivers
    see the sender through the residual stream alone, and what they see is kept. In the second the
    base is run with that in the receivers' place, and everything else follows. Without receivers
    the answer is read in the first run: the direct effect on the logits.

    MLPs are held, too, unless `through` names them. The paper on IOI (arXiv 2211.00593) lets MLPs
    follow the sender: its figures are those of through=["mlp"].

    Arguments:
        receivers: sites to be reached, all at once: a later head's `query_output`, `key_output`,
            `value_output`, an `mlp_input`, ….
        through: sublayers that are not held but follow the sender: "mlp", "attention". With both,
            and without receivers, this is activation patching.
        where: the senders, as `patch` takes them; by default every head at the last token. Senders
            that lie before no receiver are left out of a product.
        direction, metric, store, batch_size: as `patch` takes them.

    Raises:
        ValueError: for a sublayer that is neither, senders that lie before no receiver, sites that
            are no components, and answers of several tokens.

    References:
        arXiv 2211.00593, 2304.05969.
    """
    for name in through:
        if name not in SUBLAYERS:
            raise ValueError(f"through={name!r} is none of {', '.join(SUBLAYERS)}.")

    contrast = contrast_of(network, pairs, direction)
    if contrast.label.shape[1] > 1:
        raise ValueError(
            "Path patching holds the prompts' activations at the base's; answers of several tokens "
            "are not prompts."
        )

    receivers = as_sites(receivers)
    early, late = [], []
    for site in whole_sites(grid(contrast, **SENDERS | where)):
        if not receivers or any(_when(site) < _when(receiver) for receiver in receivers):
            early.append(MapCell(site))
        else:
            late.append(MapCell(site))

    # A product may hold senders that lead nowhere. Cells that were named may not.
    if late and (where.get("cells") is not None or not early):
        reached = ", ".join(map(str, receivers))
        raise ValueError(f"The sender {late[0]} lies before none of the receivers {reached}.")

    senders = Replacement(contrast, early, contrast.source)
    edit_of = partial(_two_runs, senders, receivers, through)
    return effects_of(contrast, early, edit_of, "PathPatching", metric, store, batch_size)


def _two_runs(
    senders: Replacement, receivers: Sequence[Site], through: Sequence[str], group: CellGroup
) -> EditedCells:
    """The first run of each sender, followed by the second where there are receivers."""
    network = group.contrast.network
    held = _held(group, through)
    received: dict[Site, Tensor] = {}

    def keep(site: Site, activation: Tensor) -> Tensor:
        # A checked batch runs several times, all alike; the last run stays.
        received[site] = activation.detach().clone()
        return activation

    swap = VanillaIntervention()
    edits: dict[Any, Any] = {"cell": Edit(group.site, swap)}
    edits |= dict.fromkeys(held, swap)
    for site in receivers:
        # An edit that changes nothing: it notes what the receiver gets.
        edits[f"activation at {site}"] = Edit(site, LambdaIntervention(partial(keep, site)))
    first = IntervenedModel(network, edits)
    second = IntervenedModel(network, dict.fromkeys(receivers, swap))

    def logits(rows: CellRows) -> Tensor:
        prompts = prompts_of(rows.base)
        # What is held swaps in the base's own activations.
        sources: dict[Any, Any] = dict.fromkeys(held, prompts)
        sources["cell"] = senders.of(group, rows)
        direct = first.answer_logits(rows.base, sources)
        if not receivers:
            return direct

        # The store is given to the first network only after this one is made.
        second.store = first.store
        batch = prepare(first.network, prompts)
        n_received = {site: counts(columns(site, batch), batch) for site in receivers}
        return second.answer_logits(rows.base, Activations(received, n_received))

    return first, logits


def _held(group: CellGroup, through: Sequence[str]) -> list[Site]:
    """The writes behind the sender that are kept at the base's values."""
    sender = group.site
    # Tokens before the sender's position do not see it, and need not be held.
    position = None if sender.position is None else BEHIND
    sites = []
    for block, name in product(range(n_blocks(group.contrast.module)), SUBLAYERS):
        site = Site(f"{name}_write", layer=block, position=position)
        if name not in through and _when(sender) < _when(site):
            sites.append(site)
    return sites


def _when(site: Site) -> tuple[float | int, int]:
    """When a run computes a site; sites of one rank do not reach each other."""
    if site.component is None:
        raise ValueError(
            f"{site} is no component: it does not say before or behind which others it is computed."
        )
    layer = site.layer
    if layer is None:
        # Components without a layer stand at the network's ends.
        layer = -1 if site.component == "embedding_output" else torch.inf
    return layer, _ORDER[site.component]
