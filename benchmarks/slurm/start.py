"""A single-node SLURM on this machine, and a sweep on it: python -m benchmarks.slurm.start

It takes the daemons of Debian's packages slurmctld, slurmd, slurm-client and munge, and starts them
without systemd in a temporary folder: munged, slurmctld, slurmd. Then it runs `train.py` with
`hydra/launcher=submitit_slurm` and prints what SLURM and the jobs say. At the end it stops what it
started, each process by its own id.

`--prefix FOLDER` takes packages that were unpacked there (`dpkg -x PACKAGE.deb FOLDER`) and not
installed. Arguments after `--` take the place of the sweep.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from getpass import getuser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWEEP = (
    "+experiment=das_equality_by_hand +debug=default logger=csv callbacks=none rank=1,2 "
    "hydra.launcher.cpus_per_task=1 hydra.launcher.mem_gb=4"
).split()
DAEMONS = ("munged", "slurmctld", "slurmd")
WAIT_S = 60


def main():
    """Start SLURM, run the sweep, and stop SLURM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prefix", type=Path, default=Path("/"), help="where the packages are")
    parser.add_argument("sweep", nargs="*", default=SWEEP, help="arguments of train.py, after --")
    arguments = parser.parse_args()
    programs = programs_in(arguments.prefix)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    write_configuration(folder, programs)
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{programs['sbatch'].parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }

    processes = []
    try:
        for command in daemons(folder, programs):
            name = Path(command[0]).name
            log = (folder / f"{name}.out").open("w")
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            processes.append(process)
            print(f"{name} has process {process.pid}; {folder} has its log", flush=True)
            if "munged" in name:
                wait_for(lambda: (folder / "munge.socket").exists(), name, folder)
        wait_for(lambda: "idle" in state_of_the_node(environment), "the node", folder)
        subprocess.run(["sinfo", "--Node", "--long"], env=environment, check=True)
        status = sweep(folder / "sweep", arguments.sweep, environment)
    finally:
        # The last one started stops first.
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=WAIT_S)
    sys.exit(status)


def programs_in(prefix):
    """The paths of SLURM's and munge's programs. Debian's have another name than its links."""
    programs = {"plugins": prefix / "usr/lib/x86_64-linux-gnu/slurm-wlm"}
    places = [
        ("sbin", ("munged", "slurmctld", "slurmd", "slurmstepd")),
        ("bin", ("sbatch", "srun", "sinfo")),
    ]
    for place, names in places:
        for name in names:
            folder = prefix / "usr" / place
            paths = [path for path in (folder / f"{name}-wlm", folder / name) if path.exists()]
            if not paths:
                sys.exit(
                    f"{folder} has no {name}. Install Debian's packages slurmctld, slurmd, "
                    "slurm-client and munge, or name the folder they were unpacked to (--prefix)."
                )
            programs[name] = paths[0]
    return programs


def write_configuration(folder, programs):
    """A key for munge, and a slurm.conf of one node with this machine's cores and memory."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    # SLURM asks munge who its caller is.
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    cores = len(os.sched_getaffinity(0))
    mebibytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    ports = [free_port(), free_port()]
    lines = [
        "ClusterName=iit",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmUser={getuser()}",
        f"SlurmdUser={getuser()}",
        f"SlurmctldPort={ports[0]}",
        f"SlurmdPort={ports[1]}",
        f"AuthInfo=socket={folder}/munge.socket",
        f"PluginDir={programs['plugins']}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd.log",
        # No control groups: a container may not make them.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/affinity",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "ReturnToService=2",
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={mebibytes} State=UNKNOWN",
        "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join([*lines, ""]))


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def daemons(folder, programs):
    """The commands of the three daemons, in the foreground."""
    munge = {
        "socket": "munge.socket",
        "key-file": "munge.key",
        "pid-file": "munged.pid",
        "log-file": "munged.log",
        "seed-file": "munged.seed",
    }
    options = [f"--{option}={folder / name}" for option, name in munge.items()]
    return [
        [programs["munged"], "--foreground", "--force", *options],
        [programs["slurmctld"], "-D", "-i"],
        [programs["slurmd"], "-D", "-d", programs["slurmstepd"]],
    ]


def state_of_the_node(environment):
    """What sinfo says of the node; an empty text where it says nothing yet."""
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    ).stdout


def wait_for(is_there, what, folder):
    """Wait until a condition holds. Exits with the daemons' logs where it does not come true."""
    for _ in range(WAIT_S):
        if is_there():
            return
        time.sleep(1)
    logs = [f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.[lo]*[gt]"))]
    sys.exit("\n".join([f"{what} is not there after {WAIT_S} s", *logs]))


def sweep(folder, arguments, environment):
    """Run the sweep, and print its exit status and what its jobs wrote."""
    command = [sys.executable, "-W", "ignore", "train.py", "-m", "hydra/launcher=submitit_slurm"]
    command += [*arguments, f"hydra.sweep.dir={folder}"]
    print(" ".join(map(str, command)), flush=True)
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    print(f"exit status {done.returncode} after {time.monotonic() - start:.0f} s")
    for script in sorted(folder.glob(".submitit/*/*.sh")):
        print(f"{script}:\n{script.read_text()}")
    for path in sorted(folder.glob("*/metrics.json")):
        metrics = json.loads(path.read_text())
        print(f"{path}: {len(metrics['rows'])} rows, {metrics['facts']['threads']} threads")
    print(shutil.which("srun", path=environment["PATH"]), "ran them; logs are in", folder.parent)
    return done.returncode


if __name__ == "__main__":
    main()
