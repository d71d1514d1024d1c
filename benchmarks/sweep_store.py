"""A sweep with and without a shelf that its jobs share: python -m benchmarks.sweep_store

Eight jobs of das_ioi (four ranks, two seeds) run two at a time under joblib, first without and then
with a shelf that is empty at the start (`store=shared` has it in the user's cache). The ratio is
what counts: machines differ. Jobs of one seed have the same pairs, so three of four read what the
first one ran.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3
"""Of continuous figures: a shelf holds values of other batches, which differ in the last bits."""


def main():
    """Run both sweeps, print their seconds, and compare their figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=256, help="pairs to train on")
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    sweep = [
        "+experiment=das_ioi",
        "hydra/launcher=joblib",
        "rank=1,4,16,64",
        "seed=0,1",
        f"data.n_train={arguments.pairs}",
        f"data.n_val={arguments.pairs // 4}",
        f"data.n_test={arguments.pairs // 4}",
        f"trainer.max_epochs={arguments.epochs}",
        "trust.random_subspaces=1",
        "callbacks=none",
        "logger=csv",
    ]
    seconds, cpu_seconds, figures = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in {
            "without": [],
            "with": ["store=shared", f"store.shelf={folder}/shelf"],
        }.items():
            sweep_folder = Path(folder) / name
            command = [sys.executable, "-W", "ignore", "train.py", "-m", *sweep, *options]
            start, cpu_start = time.monotonic(), cpu_of_children()
            subprocess.run(
                [*command, f"hydra.sweep.dir={sweep_folder}"],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            seconds[name] = time.monotonic() - start
            cpu_seconds[name] = cpu_of_children() - cpu_start
            figures[name] = figures_of(sweep_folder)
            print(
                f"{name} a shelf: {seconds[name]:.0f} s, {cpu_seconds[name]:.0f} s of CPU time",
                flush=True,
            )
        shards = list((Path(folder) / "shelf").rglob("*.safetensors"))
        mebibytes = sum(shard.stat().st_size for shard in shards) / 2**20
    print(f"the shelf has {len(shards)} files, {mebibytes:.0f} MiB")
    print(f"gain: {seconds['without'] / seconds['with']:.2f} in seconds")
    print(f"gain: {cpu_seconds['without'] / cpu_seconds['with']:.2f} in CPU time")

    assert figures["without"].keys() == figures["with"].keys()
    differences = {
        key: abs(value - figures["with"][key]) for key, value in figures["without"].items()
    }
    worst = max(differences, key=lambda key: differences[key])
    print(
        f"{len(differences)} figures; the largest difference is {differences[worst]:.1e}, {worst}"
    )
    n_other = sum(difference > TOLERANCE for difference in differences.values())
    print(f"{n_other} of them differ by more than {TOLERANCE}")
    sys.exit(n_other > 0)


def cpu_of_children():
    """Seconds of CPU time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def figures_of(folder):
    """{(job, row without its figures): value} of a sweep."""
    figures = {}
    for path in sorted(folder.glob("*/metrics.json")):
        for row in json.loads(path.read_text())["rows"]:
            names = [
                str(value) for name, value in row.items() if name not in ("value", "low", "high")
            ]
            figures[path.parent.name, *names] = row["value"]
    assert len({job for job, *_ in figures}) == 8
    return figures


if __name__ == "__main__":
    main()
