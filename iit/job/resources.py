"""What one job of a sweep takes of its machine: cores and a GPU."""

import os
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from filelock import FileLock, Timeout


def share_machine(hydra: Any) -> None:
    """Limit this process to its share of the machine, so that jobs do not slow each other.

    This is for launchers that start jobs on this machine. The threads of jobs that work at once
    are at most the cores, and fewer where `OMP_NUM_THREADS` says so. submitit_local starts all jobs
    at once: those that find no free cores wait. Each job sees one GPU. SLURM and Ray divide a
    machine themselves.

    Arguments:
        hydra: Hydra's own config in a job of a multirun.
    """
    if hydra.runtime.choices["hydra/launcher"] not in ("joblib", "submitit_local"):
        return
    # Comes with these launchers, and knows the limits of processes and containers.
    from joblib import cpu_count

    cores = cpu_count()
    n_jobs = hydra.launcher.get("n_jobs") or cores // hydra.launcher.cpus_per_task or 1
    if n_jobs < 0:
        # -1 means one job a core.
        n_jobs = cores
    torch.set_num_threads(min(torch.get_num_threads(), cores // n_jobs or 1))

    number, _ = _seat(hydra.sweep.dir, n_jobs)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else range(torch.cuda.device_count())
    if devices:
        # CUDA reads this when it is first used, so a worker of joblib keeps its GPU in later jobs.
        os.environ["CUDA_VISIBLE_DEVICES"] = str(devices[number % len(devices)])


@cache
def _seat(folder: str, n: int) -> tuple[int, FileLock]:
    """This process's number among the n that may work at once; it waits until one is free.

    The process keeps the lock until it ends. The system frees it then, also of a killed process.
    """
    while True:
        for number in range(n):
            lock = FileLock(f"{folder}/.seat-{number}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0.1)
                return number, lock
