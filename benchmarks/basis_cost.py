"""What a frame costs a step, by rank: `python -m benchmarks.basis_cost` writes
`results/basis_cost.json` and prints a table.

One step: an interchange of a batch of activations in the frame, a loss, its gradient, and Adam.
Nothing else is run. With an argument (`NAME RANK`) it is one contender in a process of its own.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.das_step import described
from benchmarks.floor import matmul_rate, of_frame
from benchmarks.settings import FULL, RESULTS, THREADS
from iit.report import Table

WIDTH, BATCH = 4096, 32
RANKS = (1, 4, 16, 64, 256, 512) if FULL else (1, 16, 64)
SECONDS = 60.0 if FULL else 8.0  # a contender takes steps for that long, or takes one


def ours(rank: int) -> tuple[Callable[[Tensor, Tensor], Tensor], list[nn.Parameter]]:
    """This framework's trained frame."""
    import iit

    made = iit.LowRankRotatedSpaceIntervention(WIDTH, rank)
    return made, list(made.parameters())


def torch_orthogonal(rank: int) -> tuple[Callable[[Tensor, Tensor], Tensor], list[nn.Parameter]]:
    """torch's orthogonal parametrisation of a [rank, width] matrix, with its default map."""
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, rank, bias=False))
    return lambda base, source: base + layer(source - base) @ layer.weight, list(layer.parameters())


def pyvene_low_rank(rank: int) -> tuple[Callable[[Tensor, Tensor], Tensor], list[nn.Parameter]]:
    """pyvene 0.1.8, LowRankRotatedSpaceIntervention."""
    import pyvene as pv

    made = pv.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=rank)
    return made, [p for p in made.parameters() if p.requires_grad]


def pyvene_rotated(rank: int) -> tuple[Callable[[Tensor, Tensor], Tensor], list[nn.Parameter]]:
    """pyvene 0.1.8, RotatedSpaceIntervention: a rotation of the whole width, of which `rank`
    dimensions are swapped.
    """
    import pyvene as pv

    made = pv.RotatedSpaceIntervention(embed_dim=WIDTH)
    made.set_interchange_dim(rank)
    return made, [p for p in made.parameters() if p.requires_grad]


CONTENDERS = {f.__name__: f for f in (ours, torch_orthogonal, pyvene_low_rank, pyvene_rotated)}


def contend(name: str, rank: int) -> None:
    """Take steps, and print how long each took as JSON."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    edited, parameters = CONTENDERS[name](rank)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    base, source, target = torch.randn(3, BATCH, WIDTH)
    seconds: list[float] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while not seconds or sum(seconds) < SECONDS:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = (edited(base, source) - target).square().mean()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    warm = seconds[1:] or seconds
    told = {
        "median_s": median(warm),
        "range_s": [min(warm), max(warm)],
        "steps": len(warm),
        "warm_up": len(seconds) > 1,
    }
    print(json.dumps(told | {"step_mib": round((peak - before) / 2**10)}), flush=True)


def main() -> None:
    """Time every contender at every rank, write the results and print them."""
    rate, cases = matmul_rate(), []
    for rank in RANKS:
        found: dict[str, Any] = {}
        for name in CONTENDERS:
            if name == "pyvene_rotated" and cases:  # its cost does not depend on the rank
                found[name] = cases[0]["contenders"][name] | {"of_rank": RANKS[0]}
                continue
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.basis_cost",
                name,
                str(rank),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
        ratios = {
            name: round(found[name]["median_s"] / found["ours"]["median_s"], 1)
            for name in found
            if name != "ours"
        }
        gflop = of_frame(WIDTH, rank, BATCH) / 1e9
        share = gflop / rate / found["ours"]["median_s"]
        told = {"ratios": ratios, "floor_gflop": round(gflop, 4), "share_of_floor": round(share, 2)}
        cases.append({"rank": rank, "contenders": found} | told)
    result = described(rate) | {
        "settings": {"width": WIDTH, "batch": BATCH, "seconds": SECONDS},
        "cases": cases,
    }
    (RESULTS / "basis_cost.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    title = f"A step of a frame at width {WIDTH}, milliseconds (times ours)"
    header = ("rank", *CONTENDERS, "floor")
    lines = []
    for case in cases:
        told = [f"{1000 * case['contenders']['ours']['median_s']:.2f}"]
        told += [
            f"{1000 * case['contenders'][n]['median_s']:.1f} ({case['ratios'][n]:.0f}×)"
            for n in list(CONTENDERS)[1:]
        ]
        lines.append([str(case["rank"]), *told, f"{case['share_of_floor']:.0%}"])
    caption = "Floor: the share of the floor's rate."
    Console().print(Table(title, header, lines, caption, n_words=0).rich())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        contend(sys.argv[1], int(sys.argv[2]))
    else:
        main()
