"""One contender in a process of its own: `python -m benchmarks.contender NAME WORK.pt` takes a DAS
step for each line on stdin.

WORK.pt holds the batches of encoded pairs, the site, and the first frame, the same for every
contender. Each line of stdin is the number of a batch; the answer is a line of JSON with the step's
seconds and its loss.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import iit
from iit.intervened import ActivationStore


class Contender(NamedTuple):
    """logits: a batch → Tensor[batch, vocab], at the answer. parameters: what is trained. network:
    what says which prompts are answered.
    """

    logits: Callable[[dict[str, Any]], torch.Tensor]
    parameters: list[torch.nn.Parameter]
    network: Any


def ours(work: dict[str, Any]) -> Contender:
    """This framework, as `fit` uses it: with a store of activations."""
    network = iit.load_network("smollm2", dtype=work["dtype"])
    site = iit.Site("block_output", layer=work["layer"], position=work["role"])
    intervention = iit.LowRankRotatedSpaceIntervention(*work["frame"].shape)
    intervention.load_state_dict({"basis.weight": work["frame"]})
    edited = iit.Alignment(network, {site: intervention})
    edited.store = ActivationStore(network.model)

    def logits(batch: dict[str, Any]) -> torch.Tensor:
        return edited.answer_logits(batch["base"], batch["source"])[:, 0]

    return Contender(logits, list(edited.parameters()), edited)


def pyvene(work: dict[str, Any]) -> Contender:
    """pyvene 0.1.8 as its tutorials use it."""
    import pyvene as pv

    network = iit.load_network("smollm2", dtype=work["dtype"])
    rank = work["frame"].shape[1]
    config = pv.IntervenableConfig(
        [
            {
                "layer": work["layer"],
                "component": "block_output",
                "low_rank_dimension": rank,
                "intervention_type": pv.LowRankRotatedSpaceIntervention,
            }
        ]
    )
    model = pv.IntervenableModel(config, network.model)
    model.disable_model_gradients()
    intervention: Any = next(iter(model.interventions.values()))
    intervention.rotate_layer.weight = work["frame"].clone()

    def logits(batch: dict[str, Any]) -> torch.Tensor:
        base, source = batch["base"], batch["source"]
        where = [
            batch[side]["positions"][work["role"]][:, :1].tolist() for side in ("source", "base")
        ]
        _, out = model(
            {key: base[key] for key in ("input_ids", "attention_mask")},
            [{key: source[key] for key in ("input_ids", "attention_mask")}],
            {"sources->base": ([where[0]], [where[1]])},
        )
        last = base["attention_mask"].sum(1) - 1
        return out.logits[torch.arange(len(last)), last]

    return Contender(logits, [p for p in intervention.parameters() if p.requires_grad], network)


CONTENDERS = {"iit": ours, "pyvene": pyvene}


def main(name: str, path: str) -> None:
    """Serve steps until stdin ends."""
    work = torch.load(path, weights_only=True)
    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    contender = CONTENDERS[name](work)
    optimizer = torch.optim.Adam(contender.parameters, lr=work["lr"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        batch, start = work["batches"][int(line)], time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(contender.logits(batch).float(), batch["base"]["answer"][:, 0])
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            json.dumps({"seconds": seconds, "loss": loss.item(), "peak_mib": round(peak)}),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
