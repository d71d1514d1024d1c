"""What one GPU gives, in at most eight minutes: `python -m benchmarks.gpu`.

Each part is a process of its own, and has its own time. The results are written after each part, so
a stop keeps what there is. A part that fails or takes too long leaves its error in the results, the
other parts run, and the exit status is 1.

parts:
  step_fp32, step_bf16
             a step of training das_ioi's subspace at batch 32 and 256: whole, and resumed from the
             store; the peak of memory
  sharded    half of the blocks on the GPU, the others in the CPU's memory (device_map): logits and
             gradients are compared with those of the network on one device
  das_ioi_fp32, das_ioi_bf16
             the experiment das_ioi from end to end; its test IIA has an interval, in which the
             CPU's IIA (experiments/das_ioi/result.json) has to be
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.settings import RESULTS

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 8.0
ROLE, LR = "s2", 5e-3
N_STEPS = 8
SMALL = (
    *("data.right_only=false", "data.n_train=32", "data.n_val=16", "data.n_test=16"),
    *("trainer.max_epochs=1", "trainer.batch_size=16", "trust.resamples=100"),
    *("trust.random_subspaces=1", "rank=4", "site.layer=2"),
)
"""Overrides of das_ioi on a small network."""
TOLERANCE = 1e-4
"""Of the largest logit or gradient: two devices round differently."""


class Size(NamedTuple):
    """The network (a name or a folder), the edited block, the rank, and the batch sizes."""

    network: str
    layer: int
    rank: int
    batches: tuple[int, ...]


class Part(NamedTuple):
    """A measurement (`measure(device, size)` gives its results), and the seconds that it has."""

    measure: Callable[[str, Size], dict[str, Any]]
    seconds: int


class FailedError(Exception):
    """A figure is not what it has to be.

    Arguments:
        results: what was measured nevertheless.
    """

    def __init__(self, message: str, results: dict[str, Any]):
        super().__init__(message)
        self.results = results


def size_of(small: str | None) -> Size:
    """That of das_ioi; small: the folder of a small network."""
    return Size(small, 2, 4, (4, 8)) if small else Size("smollm2", 17, 64, (32, 256))


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def forget_peak(device: str) -> None:
    """Begin to measure a GPU's memory."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: str) -> dict[str, int | None]:
    """The peak of the process's resident memory, and of what its tensors took of the GPU, in MiB.

    The first is since the process began, the second since `forget_peak`.
    """
    import resource

    import torch

    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The unit is KiB, but bytes on a Mac.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    gpu = None
    if device.startswith("cuda"):
        gpu = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return {"process_peak_mib": round(process / unit), "gpu_peak_mib": gpu}


def steps(dtype: str) -> Callable[[str, Size], dict[str, Any]]:
    """What measures a step of training in a dtype."""

    def measure(device: str, size: Size) -> dict[str, Any]:
        import torch

        import iit

        network: Any = iit.load_network(size.network, device=device, dtype=dtype)
        cases = []
        for batch_size in size.batches:
            batches = batches_of(network, batch_size)
            for stored in (False, True):
                forget_peak(device)
                seconds, losses = timed_steps(network, batches, size, stored)
                case = {
                    "batch": batch_size,
                    "run": "resumed" if stored else "whole",
                    "median_s": round(median(seconds), 5),
                    "range_s": [round(min(seconds), 5), round(max(seconds), 5)],
                    "losses": [round(loss, 4) for loss in losses],
                }
                cases.append(case | peaks(device))
        return {"dtype": str(next(network.model.parameters()).dtype), "cases": cases} | {
            "tf32": torch.backends.cuda.matmul.allow_tf32
        }

    return measure


def batches_of(network: Any, batch_size: int, n: int = 2) -> list[dict[str, Any]]:
    """Batches of IOI pairs of one template; whether the network answers rightly makes no difference
    to their cost.
    """
    from benchmarks.workload import one_template
    from iit.data import EncodedPairs

    pairs = one_template(network, n * batch_size, n_held_out=2)
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    rows = [range(k * batch_size, (k + 1) * batch_size) for k in range(n)]
    return [
        {"base": batch["base"], "source": batch["sources"][pairs.variable]}
        for batch in map(encoded.batch, rows)
    ]


def alignment_of(network: Any, size: Size) -> Any:
    """An alignment with a first frame that is the same everywhere."""
    import torch

    import iit

    width = network.model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(width, size.rank, generator=generator))[0]
    intervention = iit.LowRankRotatedSpaceIntervention(width, rank=size.rank)
    intervention.load_state_dict({"basis.weight": frame})
    site = iit.Site("block_output", layer=size.layer, position=ROLE)
    return iit.Alignment(network, {site: intervention})


def loss_of(alignment: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """The logits at the answer, Tensor[batch, vocab], and their cross-entropy."""
    import torch.nn.functional as F

    logits = alignment.answer_logits(batch["base"], batch["source"])[:, 0].float()
    answers = batch["base"]["answer"][:, 0].to(logits.device)
    return logits, F.cross_entropy(logits, answers)


def timed_steps(
    network: Any, batches: list[dict[str, Any]], size: Size, stored: bool
) -> tuple[list[float], list[float]]:
    """Seconds a step after one pass over the batches, and the losses of all steps."""
    import torch

    from iit.intervened import ActivationStore

    alignment = alignment_of(network, size)
    if stored:
        alignment.store = ActivationStore(network.model)
    optimizer = torch.optim.Adam(alignment.parameters(), lr=LR)
    device = str(network.device)
    seconds, losses = [], []
    for number in range(len(batches) + N_STEPS):
        synchronise(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        _, loss = loss_of(alignment, batches[number % len(batches)])
        loss.backward()
        optimizer.step()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    return seconds[len(batches) :], losses


def sharded(device: str, size: Size) -> dict[str, Any]:
    """A network over two devices beside the same network on one: logits, gradients, time, memory.

    On a CPU alone the second half of the blocks is on disk.
    """
    import iit

    away = "disk" if device == "cpu" else "cpu"
    whole: Any = iit.load_network(size.network, device=device)
    batch = batches_of(whole, size.batches[0], 1)[0]
    near = 0 if device == "cuda" else device
    modules = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"))
    device_map: dict[str, Any] = dict.fromkeys(modules, near)
    n_layers = whole.model.config.num_hidden_layers
    for layer in range(n_layers):
        device_map[f"model.layers.{layer}"] = near if layer < n_layers // 2 else away

    answers = {}
    results: dict[str, Any] = {"device_map": [str(near), away]}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one device", "two devices"):
            network = whole
            if name == "two devices":
                options = {"offload_folder": folder} if away == "disk" else {}
                network = iit.load_network(size.network, device_map=device_map, options=options)
            forget_peak(device)
            alignment = alignment_of(network, size)
            logits, loss = loss_of(alignment, batch)
            loss.backward()
            (parameter,) = alignment.parameters()
            answers[name] = [logits.detach().cpu(), parameter.grad.detach().cpu()]
            seconds, _ = timed_steps(network, [batch], size, stored=False)
            results[name] = {"median_s": round(median(seconds), 5)} | peaks(device)
            del network, alignment, logits, loss, parameter

    for kind, one, two in zip(("logits", "gradient"), *answers.values(), strict=True):
        difference = float((one - two).abs().max() / one.abs().max())
        results[f"{kind}_difference"] = difference
        if not difference <= TOLERANCE:
            message = f"{kind} differ by {difference:.1e} of their largest, not {TOLERANCE}."
            raise FailedError(message, results)
    return results


def das_ioi(dtype: str) -> Callable[[str, Size], dict[str, Any]]:
    """What runs the experiment das_ioi in a dtype."""

    def measure(device: str, size: Size) -> dict[str, Any]:
        started = time.perf_counter()
        forget_peak(device)
        row, fingerprint = das_ioi_job(device, dtype, size)
        results: dict[str, Any] = {
            "iia": row.value,
            "low": row.low,
            "high": row.high,
            "n": row.n,
            "seconds": round(time.perf_counter() - started, 1),
        }
        results |= peaks(device)
        cpu, cpu_fingerprint = cpu_das_ioi(size)
        results |= {"cpu_iia": cpu.value, "same_pairs": fingerprint == cpu_fingerprint}
        if not row.low <= cpu.value <= row.high:
            interval = f"{row.low:.3f} to {row.high:.3f}"
            message = f"The CPU's IIA of {cpu.value:.3f} is outside of the interval, {interval}."
            raise FailedError(message, results)
        return results

    return measure


def das_ioi_job(device: str, dtype: str, size: Size) -> tuple[Any, str]:
    """Run the experiment: the row of the test IIA on changing pairs, and what its pairs are."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    from iit.result import read_metrics
    from iit.run import run

    with tempfile.TemporaryDirectory() as folder:
        overrides = ["+experiment=das_ioi", "logger=csv", f"paths.run={folder}"]
        if size.network != "smollm2":
            overrides += ["network=hub", f"network.name={size.network}", *SMALL]
        overrides += [f"network.device={device}", f"network.dtype={dtype}"]
        GlobalHydra.instance().clear()
        with initialize_config_module("iit.conf", version_base="1.3"):
            cfg = compose("config", overrides)
        run(cfg)
        return test_iia(read_metrics(folder))


def cpu_das_ioi(size: Size) -> tuple[Any, str]:
    """What the experiment gives on a CPU in fp32; a small network's is measured here."""
    from iit.result import read_metrics

    if size.network != "smollm2":
        return das_ioi_job("cpu", "fp32", size)
    return test_iia(read_metrics(ROOT / "experiments" / "das_ioi" / "result.json"))


def test_iia(metrics: Any) -> tuple[Any, str]:
    """The row of the test IIA on changing pairs, and the fingerprint of the pairs."""
    from iit.result import where

    (row,) = where(metrics.rows, metric="iia", split="test", subset="changing", control=None)
    return row, metrics.facts["data"]["fingerprint"]


PARTS = {
    "step_fp32": Part(steps("fp32"), 55),
    "step_bf16": Part(steps("bf16"), 50),
    "sharded": Part(sharded, 60),
    "das_ioi_fp32": Part(das_ioi("fp32"), 170),
    "das_ioi_bf16": Part(das_ioi("bf16"), 125),
}
"""In the order in which they run: the quick ones first. Together they stay within the limit."""


def apart(name: str, device: str, small: str | None, seconds: float) -> dict[str, Any]:
    """The results of a part in a process of its own, which is stopped when its time is over."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--child", name]
    command += ["--device", device]
    if small:
        command += ["--network", small]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"It was stopped after its {seconds:.0f} s."}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = done.stderr.strip().splitlines() or [f"It ended with status {done.returncode}."]
    return {"error": reason[-1], "traceback": reason[-30:]}


def here(name: str, device: str, small: str | None) -> dict[str, Any]:
    """The results of a part in this process."""
    start = time.perf_counter()
    try:
        results = PARTS[name].measure(device, size_of(small))
    except FailedError as failure:
        results = failure.results | {"error": str(failure)}
    return results | {"part_s": round(time.perf_counter() - start, 1)}


def described(device: str) -> dict[str, Any]:
    """The machine, the device, the versions, and the revision."""
    import os

    import torch

    from iit.job.provenance import provenance

    facts: dict[str, Any] = {"device": device, "cores": os.cpu_count()}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_mib": properties.total_memory // 2**20}
        facts |= {"cuda": torch.version.cuda}
    return {"machine": facts} | provenance()


def check_device(device: str) -> str | None:
    """Why this machine cannot run on a device, or None."""
    import torch

    if device == "cpu":
        return None
    if not device.startswith("cuda"):
        return f"--device {device} is neither cpu nor cuda (cuda:1 for the second GPU)."
    if not torch.cuda.is_available():
        return "No GPU is to be seen: torch.cuda.is_available() is False. Try --device cpu --small."
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"--device {device}: this machine has {torch.cuda.device_count()} GPU(s)."
    return None


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:N, or cpu")
    parser.add_argument(
        "--small",
        action="store_true",
        help="a small random network and few pairs, to see that the script works: seconds, also on "
        "a CPU; the CPU's IIA is then measured, not read",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        metavar="PART",
        help="only these; default: all",
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"for all parts; default: {MINUTES:.0f}"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "gpu.json",
        help="the file for the results; default: benchmarks/results/gpu.json",
    )
    parser.add_argument("--child", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if reason := check_device(options.device):
        parser.error(reason)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts, write the results after each, and return the exit status."""
    start = time.monotonic()
    options = arguments_of(arguments)
    if options.child:
        print(json.dumps(here(options.child, options.device, options.network)), flush=True)
        return 0

    results = described(options.device) | {"small": options.small, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        small = None
        if options.small:
            from benchmarks.memory import make

            make("tiny", folder)
            small = folder
        for name in options.parts:
            left = options.minutes * 60 - (time.monotonic() - start)
            part = {"error": "No time was left for it."}
            if left > 1:
                part = apart(name, options.device, small, min(left, PARTS[name].seconds))
            results["parts"][name] = part
            results["seconds"] = round(time.monotonic() - start, 1)
            write(options.out, results)
            print(name, part.get("error") or "done", flush=True)
    return int(any("error" in part for part in results["parts"].values()))


def write(path: Path, results: dict[str, Any]) -> None:
    """Write the results; at any moment the file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    # A part must not outlive this process: an exception stops it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
