"""How close a dry run's estimate of memory is to what a run takes: `python -m benchmarks.memory`
writes `results/memory.json`.

Networks like Llama with random weights are saved to a folder, with SmolLM2's tokenizer. Each run is
a process of its own. What it takes is the peak of its resident memory, less what the imports took.
With overrides of the config as arguments it is one such run. `BENCH=full` adds the network of 0.9B
parameters.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.settings import FULL, RESULTS, THREADS

# {name: (width, layers, heads, key-value heads, width of the MLP)}; vocabulary 49,152, tied.
SIZES = {
    "tiny": (72, 4, 9, 3, 96),  # of benchmarks.gpu --small
    "50M": (448, 12, 7, 7, 1280),
    "135M": (576, 30, 9, 3, 1536),
    "500M": (1280, 22, 20, 5, 3840),
    "0.9B": (1792, 24, 28, 7, 4864),
}
COMMON = (
    *("data.right_only=false", "logger=csv", "trainer.max_epochs=1"),
    *("trust.resamples=100", "trust.random_subspaces=1"),
)
# {size: pairs for training}; the larger the network, the fewer prompts can be run in some minutes.
N_TRAIN = {"50M": 64, "135M": 96, "500M": 32, "0.9B": 16}


def make(name: str, folder: str) -> None:
    """Save a network with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import iit

    width, layers, heads, key_value_heads, intermediate = SIZES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    smollm2: Any = iit.load_network("smollm2")
    smollm2.tokenizer.save_pretrained(folder)


def resident(entry: str) -> int:
    """An entry of the process's status, in bytes: VmRSS is now, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"This system does not tell {entry}.")


def one_run(overrides: list[str]) -> None:
    """A run, or a dry run, in this process; prints the bytes that it took, or says it will take."""
    import torch
    from hydra import compose, initialize_config_module

    from iit.job.dry_run import dry_run
    from iit.run import run

    torch.set_num_threads(THREADS)
    with initialize_config_module("iit.conf", version_base="1.3"):
        cfg = compose("config", overrides)
    # Whatever is imported later counts as taken by the run.
    if cfg.dry_run:
        result = dry_run(cfg).memory
    else:
        before = resident("VmRSS")
        run(cfg)
        result = {"measured": resident("VmHWM") - before}
    print(json.dumps(result), flush=True)


def child(*arguments: str) -> dict[str, int]:
    """What a process of its own prints last."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure every size, write the results and print them."""
    results = {}
    for name, n in N_TRAIN.items():
        if name == "0.9B" and not FULL:
            continue
        with tempfile.TemporaryDirectory() as folder:
            child("make", name, folder)
            overrides = (
                "+experiment=das_ioi",
                *COMMON,
                "network=hub",
                f"network.name={folder}",
                f"site.layer={SIZES[name][1] // 2}",
                f"data.n_train={n}",
                f"data.n_val={n // 2}",
                f"data.n_test={n // 2}",
                f"paths.run={folder}/run",
            )
            estimate = child(*overrides, "dry_run=true")
            measured = child(*overrides)["measured"]
        ratio = sum(estimate.values()) / measured
        results[name] = estimate | {"measured": measured, "ratio": round(ratio, 3)}
        print(name, results[name], flush=True)
    text = json.dumps(results, indent=1) + "\n"
    (RESULTS / "memory.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(*sys.argv[2:])
        print("{}")
    elif sys.argv[1:]:
        one_run(sys.argv[1:])
    else:
        main()
