"""Environments of packages that exclude each other, one for each. They stay in the user's cache."""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from filelock import FileLock

from iit.network.cache import cache_folder

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
"""What this package itself depends on."""


def environment(*requirements, constrained=()):
    """The Python of an environment with these requirements; it is made if it is not there.

    constrained: names of packages whose versions are those of constraints.txt.
    """
    pins = [TORCH]
    for line in CONSTRAINTS.read_text().splitlines():
        if line.partition("==")[0] in constrained:
            pins.append(line)
    wanted = json.dumps([sys.version_info[:2], pins, sorted(requirements)])
    folder = cache_folder("venvs", hashlib.sha256(wanted.encode()).hexdigest()[:16])
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = folder / "requirements.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        # The file is written last, so an installation that was interrupted begins anew.
        if not ready.exists():
            venv.create(folder, clear=True, with_pip=True)
            install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            pinned = folder / "constraints.txt"
            pinned.write_text("\n".join(pins))
            # torch comes first and alone: its pin is a CPU build where that file is at hand.
            subprocess.run([*install, TORCH], check=True)
            subprocess.run([*install, *requirements, "-c", pinned], check=True)
            ready.write_text(wanted)
    return python


def run(python, *arguments, **options):
    """Run Python there, with this checkout's package on its path. Raises with what it printed."""
    done = subprocess.run(
        [python, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def run_checks(python, name):
    """Run the tests of a file of this folder in an environment that has pytest."""
    checks = Path(__file__).with_name(name)
    # The settings of this repository's own tests need packages that are not there.
    alone = ["--noconftest", "-c", os.devnull, "--rootdir", checks.parent, "-p", "no:cacheprovider"]
    print(run(python, "-m", "pytest", "-q", "-s", *alone, checks))
