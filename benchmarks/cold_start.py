"""From a cold start to a training IIA of 0.9, here and in pyvene: `python -m benchmarks.cold_start`
writes `results/cold_start.json`.

Everything is included: starting Python, importing, loading the network, keeping the prompts it
answers rightly, tokenizing, and DAS steps on training pairs of one template until the changing
pairs of the last four batches are right at 0.9. With an argument (`NAME LR`) it is one contender in
a process of its own.
"""

import json
import resource
import subprocess
import sys
import time
from collections import deque
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.settings import FULL, RESULTS, THREADS

N_PAIRS, BATCH, RANK, LAYER, ROLE, GOAL, LIMIT = 256, 32, 16, 17, "s2", 0.9, 200
LR = {"iit": 2e-2, "pyvene": 1e-2}  # each contender's best of LRS
LRS = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
ROUNDS = 5 if FULL else 3


def contend(name: str, lr: float) -> None:
    """Train to the goal, and print after how many steps, and the IIA on the way, as JSON."""
    from benchmarks.contender import CONTENDERS
    from benchmarks.workload import one_template
    from iit.data import EncodedPairs

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    frame = torch.linalg.qr(torch.randn(576, RANK))[0]
    contender = CONTENDERS[name]({"dtype": "fp32", "layer": LAYER, "role": ROLE, "frame": frame})
    # Both keep the prompts that the network answers.
    pairs = one_template(contender.network, N_PAIRS, n_held_out=2, right_only=True)
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, contender.network)
    optimizer = torch.optim.Adam(contender.parameters, lr=lr)
    recent: deque[torch.Tensor] = deque(maxlen=4)
    told: list[float] = []
    while len(told) < LIMIT and (len(recent) < 4 or told[-1] < GOAL):
        for rows in torch.randperm(len(encoded)).split(BATCH):
            batch = encoded.batch(rows.tolist())
            logits = contender.logits(
                {"base": batch["base"], "source": batch["sources"][pairs.variable]}
            )
            answer = batch["base"]["answer"][:, 0]
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), answer).backward()
            optimizer.step()
            recent.append((logits.argmax(-1) == answer)[batch["changing"]].float())
            told.append(float(torch.cat(list(recent)).mean()))
            if len(recent) == 4 and told[-1] >= GOAL:
                break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    result = {
        "steps": len(told),
        "iia": [round(value, 3) for value in told],
        "reached": told[-1] >= GOAL,
        "peak_mib": round(peak),
    }
    print(json.dumps(result), flush=True)


def floor(steps: int) -> float:
    """Flops of the pairs' prompts, run once to see that they are answered, and of the steps."""
    import iit
    from benchmarks.floor import of_answers, of_step
    from benchmarks.workload import one_template
    from iit.data import EncodedPairs

    network: Any = iit.load_network("smollm2")
    pairs = one_template(network, N_PAIRS, n_held_out=2, right_only=True)
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    whole = encoded.batch(range(len(encoded)))
    sides = (whole["base"], whole["sources"][pairs.variable])
    prompts = {
        tuple(ids[mask.bool()].tolist())
        for side in sides
        for ids, mask in zip(side["input_ids"], side["attention_mask"], strict=True)
    }
    step = of_step([whole], LAYER, ROLE) * BATCH / len(encoded)
    return of_answers(map(len, prompts)) + steps * step


def timed(name: str, lr: float) -> dict[str, Any]:
    """One contender's run, from before its process starts."""
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cold_start", name, str(lr)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    told = json.loads(
        next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    )
    return told | {"seconds": round(seconds, 1), "lr": lr}


def main() -> None:
    """Time every contender, write the results and print them."""
    from rich.console import Console

    from benchmarks.das_step import described  # with imports that no contender has to wait for
    from benchmarks.floor import matmul_rate
    from iit.report import Table

    rate = matmul_rate()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LR}
    for _ in range(ROUNDS):
        for name, lr in LR.items():
            runs[name].append(timed(name, lr))
    seconds = {name: median(run["seconds"] for run in found) for name, found in runs.items()}
    settings = {
        "pairs": N_PAIRS,
        "batch": BATCH,
        "rank": RANK,
        "site": f"block_output[{LAYER}] @ {ROLE}",
        "goal": GOAL,
        "lrs": LRS,
    }
    flops = floor(runs["iit"][0]["steps"])
    result = described(rate) | {
        "settings": settings,
        "contenders": runs,
        "median_s": seconds,
        "ratio": round(seconds["pyvene"] / seconds["iit"], 2),
        "ratios": [
            round(b["seconds"] / a["seconds"], 2)
            for a, b in zip(runs["iit"], runs["pyvene"], strict=True)
        ],
        "floor_gflop": round(flops / 1e9),
        "share_of_floor": round(flops / 1e9 / rate / seconds["iit"], 2),
    }
    (RESULTS / "cold_start.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    header = ("", "seconds", "range", "steps", "learning rate", "peak MiB")
    lines = []
    for name, found in runs.items():
        taken = [run["seconds"] for run in found]
        spread = f"{min(taken):.0f} to {max(taken):.0f}"
        peak = max(run["peak_mib"] for run in found)
        steps = str(found[0]["steps"])
        lines.append([name, f"{seconds[name]:.0f}", spread, steps, str(LR[name]), str(peak)])
    Console().print(Table(f"From a cold start to training IIA {GOAL}", header, lines).rich())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        contend(sys.argv[1], float(sys.argv[2]))
    else:
        main()
