"""What a vanilla sweep costs, here, in pyvene and with plain hooks: `python -m
benchmarks.vanilla_sweep` writes `results/vanilla_sweep.json`.

Every layer × position of the residual stream, 100 pairs. With an argument (`NAME`) it is one
contender in a process of its own.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console

import iit
from benchmarks.das_step import described
from benchmarks.floor import matmul_rate, of_sweep
from benchmarks.settings import FULL, RESULTS, THREADS
from benchmarks.workload import of_one_length
from iit.data import EncodedPairs
from iit.patching import Contrast, patch
from iit.report import Table

N_PAIRS, BATCH = 100, 50
# the layers of the cells that slow contenders are measured on; positions are spread
STRATA = (2, 7, 12, 17, 22, 27)
Cell = tuple[int, int]
Right = list[int]


def ours(network: iit.LanguageModel, pairs: EncodedPairs, cells: list[Cell]) -> dict[Cell, Right]:
    """This framework: all cells in one call, from an empty store on."""
    sites = [iit.Site("block_output", layer=layer, position=position) for layer, position in cells]
    contrast = Contrast.of(network, pairs, every=True)
    metric = ("iia", "logit_difference")
    effects = patch(network, contrast, cells=sites, metric=metric, batch_size=BATCH)
    return dict(zip(cells, effects.of("iia").astype(int).tolist(), strict=True))


def hooks(network: iit.LanguageModel, pairs: EncodedPairs, cells: list[Cell]) -> dict[Cell, Right]:
    """Forward hooks on transformers: the sources run once, a whole forward a cell, the head at the
    last token only.
    """
    model: Any = network.model
    found: dict[Cell, Right] = {cell: [] for cell in cells}
    states: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda module, args, output: states.update({layer: output})

    def patch(layer: int, position: int) -> Callable[..., torch.Tensor]:
        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, position] = states[layer][:, position]
            return output

        return hook

    for base, source in _batches(pairs):
        kept = [
            block.register_forward_hook(keep(layer))
            for layer, block in enumerate(model.model.layers)
        ]
        model(input_ids=source["input_ids"], logits_to_keep=1)
        for handle in kept:
            handle.remove()
        for layer, position in cells:
            handle = model.model.layers[layer].register_forward_hook(patch(layer, position))
            logits = model(input_ids=base["input_ids"], logits_to_keep=1).logits
            handle.remove()
            found[layer, position] += (
                (logits[:, -1].argmax(-1) == base["answer"][:, 0]).int().tolist()
            )
    return found


def _batches(pairs: EncodedPairs) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for start in range(0, N_PAIRS, BATCH):
        batch = pairs.batch(range(start, start + BATCH))
        yield batch["base"], next(iter(batch["sources"].values()))


def pyvene(network: iit.LanguageModel, pairs: EncodedPairs, cells: list[Cell]) -> dict[Cell, Right]:
    """pyvene 0.1.8 as its tutorials use it: an intervenable model a cell, source and base run each
    time.
    """
    import pyvene as pv

    found: dict[Cell, Right] = {cell: [] for cell in cells}
    for layer, position in cells:
        config = pv.IntervenableConfig(
            [
                {
                    "layer": layer,
                    "component": "block_output",
                    "intervention_type": pv.VanillaIntervention,
                }
            ]
        )
        model = pv.IntervenableModel(config, network.model)
        for base, source in _batches(pairs):
            inputs = ({"input_ids": side["input_ids"]} for side in (base, source))
            _, out = model(next(inputs), [next(inputs)], {"sources->base": position})
            found[layer, position] += (
                (out.logits[:, -1].argmax(-1) == base["answer"][:, 0]).int().tolist()
            )
    return found


CONTENDERS: dict[str, Callable[..., dict[Cell, Right]]] = {
    "iit": ours,
    "hooks": hooks,
    "pyvene": pyvene,
}


def contend(name: str, whole: bool) -> None:
    """Sweep, and print the seconds and the pairs that were right as JSON."""
    torch.set_num_threads(THREADS)
    network = iit.load_network("smollm2")
    pairs, length = of_one_length(network, N_PAIRS)
    config: Any = network.model.config
    n_layers: int = config.num_hidden_layers
    every = [(layer, position) for layer in range(n_layers) for position in range(length)]
    # Of the strata each cell has another position, from the first token to the last.
    some = [(layer, round(i * (length - 1) / (len(STRATA) - 1))) for i, layer in enumerate(STRATA)]
    cells = every if whole else some
    if name != "iit":
        with torch.no_grad():
            # a warm-up, which this framework goes without: its store is to be empty
            CONTENDERS[name](network, pairs, some[:1])
    start = time.perf_counter()
    with torch.no_grad():
        found = CONTENDERS[name](network, pairs, cells)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    right = {f"{layer},{position}": sum(pairs) for (layer, position), pairs in found.items()}
    told = {"seconds": seconds, "n_cells": len(cells), "of_cells": len(every), "length": length}
    print(json.dumps(told | {"peak_mib": round(peak), "right": right}), flush=True)


def main() -> None:
    """Time every contender, write the results and print them."""
    found: dict[str, Any] = {}
    rate = matmul_rate()
    for name in CONTENDERS:
        whole = name == "iit" or FULL
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.vanilla_sweep",
            name,
            *(["whole"] if whole else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = json.loads(
            next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
        )
        scale = told["of_cells"] / told["n_cells"]
        found[name] = told | {
            "seconds": round(told["seconds"] * scale, 1),
            "extrapolated": scale > 1,
        }
    for name in CONTENDERS:
        differing = {
            cell: right
            for cell, right in found[name]["right"].items()
            if abs(right - found["iit"]["right"][cell]) > 0
        }
        found[name]["cells_that_differ"] = len(differing)
    seconds = {name: told["seconds"] for name, told in found.items()}
    rate, flops = max(rate, matmul_rate()), of_sweep(N_PAIRS, found["iit"]["length"])
    result = described(rate) | {
        "settings": {
            "network": "smollm2",
            "pairs": N_PAIRS,
            "batch": BATCH,
            "cells": found["iit"]["of_cells"],
        },
        "contenders": found,
        "ratios": {
            name: round(value / seconds["iit"], 1)
            for name, value in seconds.items()
            if name != "iit"
        },
        "floor_gflop": round(flops / 1e9),
        "share_of_floor": round(flops / 1e9 / rate / seconds["iit"], 2),
    }
    (RESULTS / "vanilla_sweep.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )
    title = f"A vanilla sweep over {found['iit']['of_cells']} cells, {N_PAIRS} pairs"
    header = ("", "seconds", "times ours", "peak MiB", "cells that differ")
    lines = []
    for name, told in found.items():
        mark = " (extrapolated)" if told["extrapolated"] else ""
        ratio = f"{told['seconds'] / seconds['iit']:.1f}×"
        line = [
            name + mark,
            f"{told['seconds']:.0f}",
            ratio,
            str(told["peak_mib"]),
            str(told["cells_that_differ"]),
        ]
        lines.append(line)
    Console().print(Table(title, header, lines).rich())
    Console().print(f"Share of the floor's rate: {result['share_of_floor']:.0%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        contend(sys.argv[1], "whole" in sys.argv[2:])
    else:
        main()
