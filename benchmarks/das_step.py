"""What one DAS step costs, here and in pyvene: `python -m benchmarks.das_step` writes
`results/das_step.json` and prints a table.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

import iit
from benchmarks.floor import matmul_rate, of_step
from benchmarks.settings import FULL, RESULTS, THREADS
from benchmarks.workload import Everything
from iit.data import EncodedPairs
from iit.data.datamodule import AlikeBatches
from iit.job.provenance import provenance
from iit.report import Table
from iit.tasks import ioi

BATCH, RANK, LR = 32, 16, 5e-3
WARM_UP = 1  # rounds; the store of activations is full after them
ROUNDS = 3
LAYERS = (5, 17, 25) if FULL else (17, 25)
CASES = [
    (layer, role, dtype)
    for dtype in (("fp32", "bf16") if FULL else ("fp32",))
    for layer in LAYERS
    for role in ("s2", "last")
]


def main() -> None:
    """Time every case, write the results and print them."""
    rate = matmul_rate()
    cases = [_case(rate, *case) for case in CASES]
    result = described(rate) | {
        "settings": {
            "network": "smollm2",
            "batch": BATCH,
            "rank": RANK,
            "lr": LR,
            "warm_up": WARM_UP,
            "rounds": ROUNDS,
        },
        "cases": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "das_step.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    Console().print(_table(cases).rich())


def described(rate: float | None = None) -> dict[str, Any]:
    """Where and with what something was measured."""
    told = provenance()
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": THREADS,
            "matmul_gflops": round(matmul_rate() if rate is None else rate),
        },
        "versions": told["versions"] | {"pyvene": version("pyvene")},
        "git": told["git"],
    }


def _batches(layer: int, role: str, n: int = 4) -> list[dict[str, Any]]:
    """The same pairs for everyone, in batches as `fit` draws them; whether the network answers
    rightly does not matter to their cost.
    """
    network: Any = iit.load_network("smollm2")
    pairs = iit.Pairs.sample(
        ioi(), Everything(network), n_train=n * BATCH, n_val=60, n_test=60, seed=0
    )
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    cell = iit.IntervenedModel(
        network, {iit.Site("block_output", layer=layer, position=role): iit.VanillaIntervention()}
    )
    cut = [
        encoded.batch(rows) for rows in AlikeBatches(encoded.costs(cell.n_columns), BATCH, seed=0)
    ]
    return [{"base": batch["base"], "source": batch["sources"][pairs.variable]} for batch in cut]


def _case(rate: float, layer: int, role: str, dtype: str) -> dict[str, Any]:
    batches = _batches(layer, role)
    torch.manual_seed(0)
    frame = torch.linalg.qr(torch.randn(576, RANK))[0]
    names = ("iit", "pyvene")
    # bf16 is this framework's own business: the comparison is with pyvene in fp32.
    dtypes = {"iit": dtype, "pyvene": "fp32"}
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for name in names:
            path = Path(folder) / f"{name}.pt"
            work = {
                "layer": layer,
                "role": role,
                "dtype": dtypes[name],
                "frame": frame,
                "batches": batches,
            }
            torch.save(work | {"threads": THREADS, "lr": LR}, path)
            running[name] = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.contender", name, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        steps: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        try:
            for name in names:
                _answer(running[name], name)
            for number in range((WARM_UP + ROUNDS) * len(batches)):
                for name in names:  # interleaved, so that both see the same machine
                    stdin: Any = running[name].stdin
                    stdin.write(f"{number % len(batches)}\n")
                    stdin.flush()
                    steps[name].append(_answer(running[name], name))
        finally:
            for process in running.values():
                process.kill()
    warm = {
        name: [step["seconds"] for step in told[WARM_UP * len(batches) :]]
        for name, told in steps.items()
    }
    flops = of_step(batches, layer, role)
    ours = median(warm["iit"])
    return {
        "site": f"block_output[{layer}] @ {role}",
        "dtype": dtype,
        "contenders": {
            name: {
                "dtype": dtypes[name],
                "median_s": round(median(seconds), 4),
                "range_s": [round(min(seconds), 4), round(max(seconds), 4)],
                "first_s": round(steps[name][0]["seconds"], 4),
                "peak_mib": steps[name][-1]["peak_mib"],
                "losses": [round(step["loss"], 4) for step in steps[name]],
            }
            for name, seconds in warm.items()
        },
        "ratio": round(median(warm["pyvene"]) / ours, 2),
        "floor_gflop": round(flops / 1e9, 2),
        "share_of_floor": round(flops / 1e9 / rate / ours, 2),
    }


def _answer(process: Any, name: str) -> dict[str, Any]:
    # libraries print greetings
    line = next((line for line in process.stdout if line.startswith("{")), None)
    if line is None:
        raise RuntimeError(
            f"The contender {name} ended: run `python -m benchmarks.contender` by hand to see why."
        )
    return json.loads(line)


def _table(cases: list[dict[str, Any]]) -> Table:
    header = ("site", "dtype", "iit", "pyvene", "ratio", "floor", "peak MiB")
    lines = []
    for case in cases:
        ours, theirs = case["contenders"]["iit"], case["contenders"]["pyvene"]
        line = [
            case["site"],
            case["dtype"],
            f"{ours['median_s']:.3f}",
            f"{theirs['median_s']:.3f}",
            f"{case['ratio']:.1f}×",
            f"{case['share_of_floor']:.0%}",
            f"{ours['peak_mib']} / {theirs['peak_mib']}",
        ]
        lines.append(line)
    return Table(
        f"One DAS step, batch {BATCH}, rank {RANK}: median seconds",
        header,
        lines,
        "pyvene: always fp32. Floor: the share of the floor's rate. Peak: iit / pyvene.",
        n_words=2,
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


if __name__ == "__main__":
    main()
