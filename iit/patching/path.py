"""Path patching: what one part sends to another, with all other paths held at the base's values."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iit.data import EncodedPairs, Pairs
from iit.intervened import Activations, ActivationStore, Edit, IntervenedModel
from iit.intervened.batch import prepare
from iit.intervened.positions import columns, counts
from iit.intervention import LambdaIntervention, VanillaIntervention
from iit.network import Network
from iit.network.components import blocks_of
from iit.patching.contrast import Contrast
from iit.patching.effects import Cell, Effects
from iit.patching.metric import Metric, metrics_of
from iit.patching.patch import Position, from_source, of, sites_of
from iit.patching.running import BEHIND, Run, run_cells
from iit.site import Site

SUBLAYERS = ("attention", "mlp")

# When each component is computed inside its block.
_ORDER = {
    **dict.fromkeys(("embedding_output", "block_input"), 0),
    **dict.fromkeys(("attention_input", "query_output", "key_output", "value_output", "attention_weight"), 1),
    **dict.fromkeys(("attention_value_output", "attention_output", "attention_write"), 2),
    **dict.fromkeys(("mlp_input", "router_output"), 3),
    **dict.fromkeys(("mlp_activation", "mlp_output", "mlp_write"), 4),
    **dict.fromkeys(("block_output", "final_norm_output"), 5),
}


def path_patch(
    network: Network | nn.Module,
    pairs: Pairs | EncodedPairs | Contrast,
    receivers: Site | Sequence[Site] = (),
    *,
    components: str | Sequence[str] = "attention_value_output",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | str | None = "all",
    positions: Sequence[Position] | None = ("last",),
    sites: Sequence[Site] | None = None,
    through: Sequence[str] = (),
    direction: str = "noising",
    metric: str | Metric | Sequence[str] | Mapping[str, Metric] = "logit_difference",
    split: str = "validation",
    variable: str | None = None,
    store: ActivationStore | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Effects:
    """The effect of each sender on the answer by way of the receivers alone (arXiv 2211.00593, 2304.05969).

    Two runs, one after the other, nothing linearised. In the first the sender has the source's activation, and the writes of all
    later sublayers have the base's, so that the receivers see the sender through the residual stream alone; what they see is kept.
    In the second the base is run with that in the receivers' place, and all else follows. Without receivers the answer is read
    in the first run: the direct effect on the logits.

    MLPs are held, too, unless `through` names them. The paper on IOI (arXiv 2211.00593) lets MLPs follow the sender: its
    figures are those of through=["mlp"].

    receivers: sites to be reached, all at once: a later head's `query_output`, `key_output`, `value_output`, an `mlp_input`, ….
    components, layers, heads, positions: of the senders, as `patch` takes them; those that lie before no receiver are left out.
    sites: the senders, in place of their product.
    through: sublayers that are not held but follow the sender: "mlp", "attention". With both, and without receivers, this is
        activation patching.
    The others: as `patch` takes them.

    Raises ValueError for a sublayer that is neither, sites that lie before no receiver, sites that are no components, and
    answers of several tokens.
    """
    unknown = [name for name in through if name not in SUBLAYERS]
    if unknown:
        raise ValueError(f"through={unknown[0]!r} is none of {', '.join(SUBLAYERS)}.")
    contrast = of(network, pairs, split, variable, direction)
    if contrast.label.shape[1] > 1:
        raise ValueError("Path patching holds the prompts' activations at the base's; answers of several tokens are not prompts.")
    receivers = (receivers,) if isinstance(receivers, Site) else tuple(receivers)
    found = list(sites) if sites is not None else sites_of(contrast, components, layers, heads, positions)
    before = [site for site in found if not receivers or any(_when(site) < _when(receiver) for receiver in receivers)]
    if not before or (sites is not None and len(before) < len(found)):
        late = next(site for site in found if site not in before)
        raise ValueError(f"The sender {late} lies before none of the receivers {', '.join(map(str, receivers))}.")
    n_blocks = len(blocks_of(network.model if isinstance(network, Network) else network)[1])
    take = from_source(contrast)

    def runner(site: Site, cells: Sequence[Cell]) -> tuple[IntervenedModel, Run]:
        held = {str(s): Edit(s, VanillaIntervention()) for s in _held(site, n_blocks, through)}
        seen: dict[str, Tensor] = {}
        readers = {f"seen at {s}": Edit(s, LambdaIntervention(_keeper(seen, str(s)))) for s in receivers}
        model = IntervenedModel(network, {"cell": Edit(site, VanillaIntervention()), **held, **readers})
        second = IntervenedModel(network, {str(s): Edit(s, VanillaIntervention()) for s in receivers})
        given = take(model, site, cells)

        def run(which: Tensor, pairs: Tensor, base: dict[str, Any]) -> Tensor:
            own = {key: value for key, value in base.items() if key != "answer"}
            theirs = {"cell": given(which, pairs, base), **dict.fromkeys(held, own)}
            logits = model.answer_logits(base, theirs)
            if not receivers:
                return logits
            second.store = model.store
            batch = prepare(model.network, own)
            many = {s: counts(columns(s, batch), batch) for s in receivers}
            return second.answer_logits(base, {str(s): Activations({s: seen[str(s)]}, {s: many[s]}) for s in receivers})

        return model, run

    return run_cells(
        contrast,
        [Cell(site) for site in before],
        runner,
        metrics_of(metric),
        method="PathPatching",
        store=store,
        batch_size=batch_size,
        progress=progress,
    )


def _when(site: Site) -> tuple[float | int, int]:
    """Sites in the order in which a run computes them; those of one rank do not reach each other."""
    if site.component is None:
        raise ValueError(f"{site} is no component: it does not say before or behind which others it is computed.")
    layer = site.layer if site.layer is not None else -1 if site.component == "embedding_output" else torch.inf
    return layer, _ORDER[site.component]


def _held(sender: Site, n_blocks: int, through: Sequence[str]) -> list[Site]:
    """The writes behind the sender that are kept at the base's values."""
    layer, order = _when(sender)
    position = None if sender.position is None else BEHIND
    return [
        Site(f"{name}_write", layer=block, position=position)
        for block in range(n_blocks)
        for name in SUBLAYERS
        if name not in through and (layer, order) < (block, _ORDER[f"{name}_write"])
    ]


def _keeper(seen: dict[str, Tensor], name: str) -> Any:
    """Notes what a receiver sees and leaves it as it is; of a checked batch the last run's, all of them being alike."""

    def keep(activation: Tensor) -> Tensor:
        seen[name] = activation.detach().clone()
        return activation

    return keep
