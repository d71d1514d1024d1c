"""Several processes that train one alignment: each runs its share of every batch.

The process that calls `fit` is the first. It starts the others for the length of the training, so
all that a run does besides happens in it alone. Every process knows the whole batch, and gathers
what the others' shares of it gave. Losses and figures are therefore those of a single process.
"""

import multiprocessing
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import cloudpickle
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn


def n_processes(trainer: Any, device: torch.device, batch_size: int) -> int:
    """How many processes train: the `devices` of a trainer whose `strategy` is ddp.

    Arguments:
        trainer: makes the trainer, as `fit` takes it. A `functools.partial` says what it asks for.
        device: the network's.
        batch_size: the smallest number of pairs a batch.

    Raises ValueError for processes that do not fit the trainer, the machine, the batches, or those
    that torchrun or SLURM has started.
    """
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        size = os.environ.get(name, "1")
        if size != "1":
            raise ValueError(
                f"{name}={size} in the environment: torchrun or SLURM has started several "
                "processes, each of which would do the whole job. Start one (--ntasks=1): "
                "strategy=ddp (trainer=ddp) starts devices=N of them on this machine."
            )
    asked = {"devices": 1, "strategy": "auto", "num_nodes": 1} | getattr(trainer, "keywords", {})
    n, strategy, n_nodes = map(asked.get, ("devices", "strategy", "num_nodes"))
    most = batch_size if strategy == "ddp" else 1
    if device.type == "cuda":
        most = min(most, torch.cuda.device_count())
    if n not in range(1, most + 1) or strategy not in ("auto", "ddp") or n_nodes != 1:
        raise ValueError(
            f"devices={n}, strategy={strategy}, num_nodes={n_nodes}: this training takes 1 to "
            f"{most} devices. More than one takes strategy=ddp (trainer=ddp). They are at most the "
            f"pairs of a batch ({batch_size}) and the GPUs that this process sees "
            "(CUDA_VISIBLE_DEVICES), of one machine. fsdp and other strategies are refused: "
            "none was seen to train rightly; network.device_map spreads a frozen network over GPUs."
        )
    return n


def trainer_options(n: int, device: torch.device) -> dict[str, Any]:
    """What Lightning's trainer has to know of n processes and the network's device."""
    first = (device.index or 0) - int(os.environ.get("LOCAL_RANK", 0))
    ddp = DDPStrategy(
        cluster_environment=LightningEnvironment(),
        # An edit may be inactive in all pairs of a share, and so without a gradient.
        find_unused_parameters=True,
        # All begin alike, and torch 2.13 cannot send a single frame of rank 1 to the others.
        init_sync=False,
    )
    return {
        "accelerator": device.type,
        "devices": list(range(first, first + n)) if device.type == "cuda" else n,
        "strategy": ddp if n > 1 else "auto",
        # Every process has all batches.
        "use_distributed_sampler": False,
    }


def share(n: int) -> Any:
    """Which of n rows this process runs: an index, equally long in each process.

    The last row fills up what is lacking; `gathered` leaves it out.
    """
    if not distributed.is_initialized():
        return slice(None)
    step = distributed.get_world_size()
    return torch.arange(distributed.get_rank(), n + -n % step, step).clamp(max=n - 1)


def gathered(part: Tensor, n: int) -> Tensor:
    """All n rows, Tensor[n, …], of which each process has run its share.

    Gradients flow to this process's share only. They are multiplied by the number of processes, as
    DDP takes the mean over these.
    """
    if not distributed.is_initialized():
        return part
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
    # Without gradients: DDP alone communicates in the backward pass, in an order of its own.
    distributed.all_gather(parts, part.detach().contiguous())
    if part.requires_grad:
        part.register_hook(lambda gradient: gradient * len(parts))
    parts[distributed.get_rank()] = part
    return torch.stack(parts, 1).flatten(0, 1)[:n]


@contextmanager
def started(n: int, device: torch.device, call: Any) -> Iterator[None]:
    """Within the context n − 1 other processes make the call, and this one is the first of n.

    Raises a ProcessRaisedException of torch, with the error of a process that has ended early.
    """
    # A process that was started so starts no others.
    if n == 1 or distributed.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="iit-") as folder, ExitStack() as stack:
        # Functions without a name to import, such as lambdas, travel as their code.
        torch.save(call, f"{folder}/call", pickle_module=cloudpickle)
        n_threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, n_threads)
        group = folder, n, device, n_threads // n or 1
        # In a worker of joblib it is joblib's own, which no other process knows.
        if multiprocessing.get_start_method() == "loky":
            multiprocessing.set_start_method("spawn", force=True)
        others: Any = spawn(_other, group, n - 1, join=False)
        for process in others.processes:
            stack.callback(process.kill)
        # The call, and what the others and their meeting leave.
        while len(os.listdir(folder)) < n + 1:
            others.join(0.1)
        stack.callback(os.environ.pop, "LOCAL_RANK")
        _join(0, *group)
        stack.callback(distributed.destroy_process_group)
        try:
            yield
            others.join()
        except RuntimeError:
            # Where one of them has ended, its error is the reason.
            others.join(30)
            raise


def _join(rank: int, folder: str, n: int, device: torch.device, n_threads: int) -> None:
    """Make this process one of n; a file takes the place of a port."""
    torch.set_num_threads(n_threads)
    os.environ["LOCAL_RANK"] = str(rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=n)


def _other(number: int, folder: str, *group: Any) -> None:
    """What each of the other processes does: the call, of which the first one says it all."""
    # Ctrl-C is for the first process, which ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    os.environ["TTY_INTERACTIVE"] = "0"
    rank = number + 1
    # Dropout is another in each share.
    torch.manual_seed(rank)
    call = torch.load(
        f"{folder}/call",
        map_location={f"cuda:{i}": f"cuda:{i + rank}" for i in range(torch.cuda.device_count())},
        # A frozen network is in memory once.
        mmap=True,
        weights_only=False,
    )
    open(f"{folder}/{rank}", "w").close()
    _join(rank, folder, *group)
    call()
