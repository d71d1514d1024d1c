"""`make golden`: compares figures bit by bit with those that are kept in
`tests/golden/figures.json`.

    python -m tests.golden             compare; exit status 1 where a figure differs
    python -m tests.golden --write     keep today's figures, from a clean tree

Bits depend on the processor, the number of threads and the versions of the libraries. Where one of
these is another than it was when the figures were kept, the kept revision is run here first, in a
git worktree, and what it gives is what counts.
"""

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("figures.json")
PACKAGES = ("torch", "transformers", "lightning", "numpy", "scipy", "datasets", "tokenizers")
THREADS = 2
N_SHOWN = 8
Groups = dict[str, dict[str, str]]


def machine() -> dict[str, Any]:
    """What bits depend on beside the code."""
    import torch

    from iit.job.provenance import processor

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }


def computed() -> Groups:
    """All figures, in this process; how long each group took goes to stderr."""
    import torch

    from tests.golden.figures import measured

    torch.set_num_threads(THREADS)
    groups: Groups = {}
    start = time.perf_counter()
    for name, figures in measured():
        groups[name] = figures
        print(
            f"{name}: {len(figures)} figures, {time.perf_counter() - start:.0f} s", file=sys.stderr
        )
        start = time.perf_counter()
    return groups


def of_revision(revision: str) -> Groups:
    """The figures that this revision gives on this machine. Raises RuntimeError where it cannot be
    run.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), revision)
        try:
            output = Path(folder) / "figures.json"
            command = [sys.executable, "-m", "tests.golden", "--print", str(output)]
            # The package is installed from this checkout; the path puts the other one before it.
            subprocess.run(
                command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, check=True
            )
            return json.loads(output.read_text(encoding="utf-8"))
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"git {' '.join(arguments)} failed: {done.stderr.strip()} (golden needs the "
            "whole history)"
        )
    return done.stdout.strip()


def differences(expected: Groups, groups: Groups) -> list[str]:
    """A line for each figure that is another, new or gone."""
    lines = []
    for name in dict.fromkeys([*expected, *groups]):
        before = expected.get(name, {})
        after = groups.get(name, {})
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                lines.append(f"{name}, {key}: {_shown(before.get(key))} → {_shown(after.get(key))}")
    return lines


def _shown(value: str | None) -> str:
    """Numbers in decimals, which people read."""
    words = [
        str(float.fromhex(word)) if "0x" in word else word for word in (value or "nothing").split()
    ]
    return " ".join(words)


def _write() -> int:
    if _git("status", "--porcelain"):
        print("Golden figures are kept from a clean tree: commit first.", file=sys.stderr)
        return 1
    groups = computed()
    kept = {"machine": machine(), "revision": _git("rev-parse", "HEAD"), "figures": groups}
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"Kept {sum(map(len, groups.values()))} figures.")
    return 0


def _compare() -> int:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    groups = computed()
    expected = kept["figures"]
    here = machine()
    other = [name for name, value in here.items() if value != kept["machine"][name]]
    if other:
        print(
            f"Another {' and '.join(other)} than the figures were kept with: running "
            f"{kept['revision'][:12]} here."
        )
        expected = of_revision(kept["revision"])
    lines = differences(expected, groups)
    if lines:
        print(
            f"{len(lines)} figures differ from revision {kept['revision'][:12]}:",
            *lines[:N_SHOWN],
            sep="\n  ",
        )
        return 1
    print(f"All {sum(map(len, groups.values()))} golden figures are the same, bit by bit.")
    return 0


def main() -> int:
    """Compare, write, or print to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="keep today's figures")
    parser.add_argument(
        "--print", metavar="FILE", help="write today's figures to this file, and compare nothing"
    )
    chosen = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    warnings.simplefilter("ignore")
    for library in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "iit"):
        logging.getLogger(library).setLevel(logging.ERROR)
    import torch

    torch.set_num_threads(THREADS)
    if chosen.print:
        Path(chosen.print).write_text(json.dumps(computed()), encoding="utf-8")
        return 0
    return _write() if chosen.write else _compare()


if __name__ == "__main__":
    sys.exit(main())
