"""What an atlas costs, here and in pyvene: `python -m benchmarks.atlas` writes
`results/atlas.json`.

A rank-16 cell at every layer × role (s1, io, s2, last) of SmolLM2: 20 steps of 32 pairs and one
validation of 60 pairs each. With an argument (`NAME`) it is one contender in a process of its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from rich.console import Console

import iit
from benchmarks import contender
from benchmarks.das_step import described
from benchmarks.floor import matmul_rate, of_step
from benchmarks.settings import FULL, RESULTS, THREADS
from benchmarks.workload import one_template
from iit.alignment import one
from iit.data import EncodedPairs
from iit.intervened import ActivationStore
from iit.report import Table

ROLES, RANK, BATCH, STEPS, LR = ("s1", "io", "s2", "last"), 16, 32, 20, 5e-3
LAYERS = range(30)
STRATA = LAYERS if FULL else (2, 7, 12, 17, 22, 27)
TIMED_STEPS = 4  # of pyvene's, after one that is not timed; they cost alike


def ours() -> dict[str, Any]:
    """This framework: the cells of a layer side by side, every prompt run once for all layers. The
    store starts empty.
    """
    network: Any = iit.load_network("smollm2")
    pairs = one_template(network, STEPS * BATCH)
    start = time.perf_counter()
    store = ActivationStore(network.model, layers=[layer + 1 for layer in LAYERS])
    encoded = [
        EncodedPairs(pairs.split(split), pairs.variables, network)
        for split in ("train", "validation")
    ]
    batches = [batch for split in encoded for batch in split.batches(BATCH)]
    store.fill([side for batch in batches for side in (batch["base"], *batch["sources"].values())])
    fixed, losses = time.perf_counter() - start, {}
    start = time.perf_counter()
    for layer in STRATA:
        cells = {}
        for role in ROLES:
            site = iit.Site("block_output", layer=layer, position=role)
            cells[role] = one(
                network,
                pairs.variable,
                site,
                lambda width: iit.LowRankRotatedSpaceIntervention(width, RANK),
            )
            cells[role].store = store
        with tempfile.TemporaryDirectory() as folder:
            found = iit.fit(
                cells, pairs, trainer=_quiet, batch_size=BATCH, max_epochs=1, folder=folder
            )
        losses[layer] = {role: fitted.value for role, fitted in found.items()}
    seconds = time.perf_counter() - start
    n = len(STRATA) * len(ROLES)
    whole = [
        EncodedPairs(pairs.split(split), pairs.variables, network)
        for split in ("train", "validation")
    ]
    train, validation = ([{"base": part.batch(range(len(part)))["base"]}] for part in whole)
    # Forward and backward of all training pairs, forward (half of it) of the validation pairs.
    flops = [
        of_step(train, layer, role) + of_step(validation, layer, role) / 2
        for layer in STRATA
        for role in ROLES
    ]
    told = {
        "fixed_s": fixed,
        "cell_s": seconds / n,
        "n_cells": n,
        "floor_gflop_a_cell": round(sum(flops) / n / 1e9),
    }
    return told | {"validation_iia": losses}


def _quiet(**kwargs: Any) -> L.Trainer:
    return L.Trainer(enable_progress_bar=False, enable_model_summary=False, **kwargs)


def pyvene() -> dict[str, Any]:
    """pyvene 0.1.8: one cell after another; measured on one role a layer of the strata."""
    network: Any = iit.load_network("smollm2")
    pairs = one_template(network, STEPS * BATCH)
    train, validation = (
        EncodedPairs(pairs.split(split), pairs.variables, network)
        for split in ("train", "validation")
    )
    seconds = []
    for number, layer in enumerate((2, 7, 12, 17, 22, 27)):
        torch.manual_seed(0)
        work = {
            "dtype": "fp32",
            "layer": layer,
            "role": ROLES[number % len(ROLES)],
            "frame": torch.linalg.qr(torch.randn(576, RANK))[0],
        }
        made = contender.pyvene(work)
        optimizer = torch.optim.Adam(made.parameters, lr=LR)
        step = 0.0
        for which in range(TIMED_STEPS + 1):
            batch = _pair(train.batch(range(which * BATCH, (which + 1) * BATCH)), pairs.variable)
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(made.logits(batch), batch["base"]["answer"][:, 0]).backward()
            optimizer.step()
            step += time.perf_counter() - start if which else 0.0
        start = time.perf_counter()
        with torch.no_grad():
            made.logits(_pair(validation.batch(range(len(validation))), pairs.variable))
        seconds.append(STEPS * step / TIMED_STEPS + time.perf_counter() - start)
    return {
        "fixed_s": 0.0,
        "cell_s": sum(seconds) / len(seconds),
        "n_cells": len(seconds),
        "range_s": [min(seconds), max(seconds)],
    }


def _pair(batch: dict[str, Any], variable: str) -> dict[str, Any]:
    return {"base": batch["base"], "source": batch["sources"][variable]}


CONTENDERS = {"iit": ours, "pyvene": pyvene}


def main() -> None:
    """Time every contender, write the results and print them."""
    found: dict[str, Any] = {}
    rate = matmul_rate()
    every = len(LAYERS) * len(ROLES)
    for name in CONTENDERS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.atlas", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = json.loads(
            next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
        )
        whole = told["fixed_s"] + every * told["cell_s"]
        found[name] = told | {"seconds": round(whole, 1), "extrapolated": told["n_cells"] < every}
    ratio = found["pyvene"]["seconds"] / found["iit"]["seconds"]
    settings = {
        "cells": every,
        "rank": RANK,
        "batch": BATCH,
        "steps": STEPS,
        "roles": ROLES,
        "validation_pairs": 60,
    }
    rate = max(rate, matmul_rate())
    at_floor = found["iit"]["floor_gflop_a_cell"] / rate
    shares = {
        "share_of_floor": round(at_floor / found["iit"]["cell_s"], 2),
        "ratio_at_floor": round(found["pyvene"]["cell_s"] / at_floor, 1),
    }
    result = (
        described(rate)
        | {"settings": settings, "contenders": found, "ratio": round(ratio, 1)}
        | shares
    )
    (RESULTS / "atlas.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    header = ("", "seconds", "seconds a cell", "measured cells", "peak MiB")
    lines = []
    for name, told in found.items():
        mark = " (extrapolated)" if told["extrapolated"] else ""
        line = [
            name + mark,
            f"{told['seconds']:.0f}",
            f"{told['cell_s']:.1f}",
            str(told["n_cells"]),
            str(told["peak_mib"]),
        ]
        lines.append(line)
    Console().print(Table(f"An atlas of {every} cells", header, lines).rich())
    Console().print(
        f"pyvene takes {ratio:.1f} times as long; nothing but the floor's products would be "
        f"{shares['ratio_at_floor']:.1f} times as fast"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        torch.set_num_threads(THREADS)
        measured = CONTENDERS[sys.argv[1]]()
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
        print(json.dumps(measured | {"peak_mib": peak}), flush=True)
    else:
        main()
