"""What a repeat of a run needs beside its config."""

import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

# The packages whose versions are recorded: figures may depend on them.
PACKAGES = (
    "torch",
    "transformers",
    "lightning",
    "hydra-core",
    "datasets",
    "safetensors",
    "wandb",
    "numpy",
)


def provenance() -> dict[str, Any]:
    """What a repeat of the run needs beside its config.

    Returns:
        The command, the git revision (None without a checkout) and whether files differed from it,
        versions, the number of threads, and the processor.
    """
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": {
            "revision": _git("rev-parse", "HEAD"),
            "dirty": bool(_git("status", "--porcelain")),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }


def cost(seconds: float) -> dict[str, Any]:
    """What a job has used.

    Returns:
        The seconds; the peak memory of this process, where the system tells it; {GPU: its peak
        memory}, both in bytes. Jobs of a sweep that share a process have one peak.
    """
    used: dict[str, Any] = {"seconds": seconds}
    # Windows lacks the module.
    with suppress(ModuleNotFoundError):
        import resource

        # macOS counts bytes, Linux KiB.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used["peak_memory_bytes"] = unit * peak
    return used | {
        "gpu_peak_memory_bytes": {
            f"cuda:{gpu}, {torch.cuda.get_device_name(gpu)}": torch.cuda.max_memory_allocated(gpu)
            for gpu in range(torch.cuda.device_count())
        },
    }


def processor() -> str:
    """The processor, and the vector instructions that torch uses on it.

    Another processor rounds differently, and training magnifies the difference.
    """
    facts: dict[str, str] = {}
    # Only Linux has this file; elsewhere Python says what it knows.
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            # The file lists every core; the first one is enough.
            facts.setdefault(name.strip(), value.strip())
    names = ("model name", "cpu family", "model", "stepping")
    parts = [f"{name} {facts[name]}" for name in names if name in facts] or [
        platform.processor() or platform.machine()
    ]
    return ", ".join([*parts, torch.backends.cpu.get_cpu_capability()])


def _git(*arguments: str) -> str | None:
    """The output of a git command in the package's checkout; None where there is no checkout."""
    # The folder that holds the package. In an installed wheel it is no checkout.
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    process = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    return process.stdout.strip() if process.returncode == 0 else None
