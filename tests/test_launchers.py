"""Launchers and the search as real commands, beside the same sweep one job after the other."""

import json
import os
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from iit.job import resources
from tests.peers.environments import OURS, environment

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SWEEP = (
    "+experiment=das_equality_by_hand",
    "+debug=default",
    "callbacks=none",
    "logger=csv",
    "rank=1,2",
)


def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="iit.conf", version_base="1.3"):
        return compose("config", ["+experiment=das_ioi", *overrides], return_hydra_config=True)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_an_entry_of_ours_builds_on_the_plugins(launcher, recwarn):
    config = composed(f"hydra/launcher={launcher}").hydra.launcher
    OmegaConf.resolve(config)
    names = [plugin.__name__ for plugin in Plugins.instance().discover()]
    assert config._target_.rpartition(".")[2] in names
    ours = {"joblib": ("n_jobs", 2), "submitit_local": ("cpus_per_task", 1)}
    key, value = ours.get(launcher, ("cpus_per_task", 4))
    assert config[key] == value
    theirs = "mmap_mode" if launcher == "joblib" else "submitit_folder"
    assert theirs in config, "what we do not set is the plugin's"
    assert not [warning for warning in recwarn if "schema" in str(warning.message)]


def test_what_is_not_installed_says_how_to_install_it():
    """The plugin for Ray is never installed beside the others: it wants another cloudpickle."""
    config = composed("hydra/launcher=ray")
    assert config.hydra.launcher.ray.remote.num_cpus == 1
    with pytest.raises(RuntimeError, match=r"ray is missing: pip install 'iit\[ray\]'"):
        Plugins.instance().instantiate_launcher(None, None, config)


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_the_search_maximises_what_a_run_returns(launcher):
    sweeper = composed("+hparams_search=optuna", f"hydra/launcher={launcher}").hydra.sweeper
    assert sweeper.direction == "maximize"
    assert sweeper.sampler.seed == 0
    assert sweeper.n_jobs == (2 if launcher == "joblib" else 1)
    assert set(sweeper.params) == {"rank", "module.optimizer.lr"}


def hydra_of(launcher, folder, **options):
    """Hydra's config in a job, as far as it is read."""
    return OmegaConf.create(
        {
            "launcher": options,
            "runtime": {"choices": {"hydra/launcher": launcher}},
            "sweep": {"dir": str(folder)},
        }
    )


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets the cores, torch's threads and the GPUs; gives what a job has then."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def job(launcher, cores, own_threads=64, n_gpus=0, taken=0, **options):
        monkeypatch.setattr("joblib.cpu_count", lambda: cores)
        monkeypatch.setattr("torch.cuda.device_count", lambda: n_gpus)
        counts = [own_threads]
        monkeypatch.setattr("torch.get_num_threads", lambda: counts[-1])
        monkeypatch.setattr("torch.set_num_threads", counts.append)
        # Other jobs hold the first seats. A job keeps its own until its process ends.
        resources._seat.cache_clear()
        locks = [FileLock(tmp_path / f".seat-{number}.lock") for number in range(taken)]
        for lock in locks:
            lock.acquire(timeout=0)
        resources.share_machine(hydra_of(launcher, tmp_path, **options))
        for lock in locks:
            lock.release()
        return counts[-1], os.environ.get("CUDA_VISIBLE_DEVICES")

    yield job
    resources._seat.cache_clear()
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)


@pytest.mark.parametrize(
    ("launcher", "options", "cores", "own_threads", "threads"),
    [
        ("joblib", {"n_jobs": 2}, 2, 64, 1),
        ("joblib", {"n_jobs": 2}, 16, 64, 8),
        ("joblib", {"n_jobs": 3}, 8, 64, 2),
        ("joblib", {"n_jobs": -1}, 8, 64, 1),
        ("joblib", {"n_jobs": 9}, 8, 64, 1),
        ("joblib", {"n_jobs": 2}, 16, 3, 3),
        ("submitit_local", {"cpus_per_task": 4}, 16, 64, 4),
        ("submitit_local", {"cpus_per_task": 4}, 2, 64, 2),
        ("submitit_slurm", {"cpus_per_task": 4}, 16, 64, 64),
        ("basic", {}, 16, 64, 64),
    ],
)
def test_threads_of_all_jobs_are_no_more_than_the_cores(
    machine, launcher, options, cores, own_threads, threads
):
    assert machine(launcher, cores, own_threads, **options) == (threads, None)


def test_a_job_sees_one_gpu_and_keeps_it(machine, monkeypatch):
    assert machine("joblib", 16, n_gpus=4, n_jobs=4)[1] == "0"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine("joblib", 16, n_gpus=4, taken=3, n_jobs=4)[1] == "3"
    assert machine("joblib", 16, n_gpus=1, n_jobs=4)[1] == "3", "in a later job, too"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert machine("joblib", 16, n_gpus=2, taken=1, n_jobs=2)[1] == "7", "among the user's"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine("joblib", 16, n_gpus=0, taken=1, n_jobs=2)[1] == "", "the user wants none"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert machine("submitit_slurm", 16, n_gpus=2, cpus_per_task=4)[1] == "0,1"


def test_a_job_beyond_the_cores_waits_until_another_process_is_gone(tmp_path):
    code = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]);"
        "lock.acquire(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".seat-0.lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ThreadPoolExecutor() as pool, subprocess.Popen(command, **pipes) as other:
        other.stdout.readline()
        waiting = pool.submit(resources._seat.__wrapped__, str(tmp_path), 1)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        other.kill()
        number, _ = waiting.result(timeout=20)
    assert number == 0


def train(*arguments, python=sys.executable, threads="1"):
    """Run train.py as a command; threads: what OMP_NUM_THREADS is, or None."""
    ray = {
        "RAY_AUTH_MODE": "disabled",
        # Ray's workers are nice by 15 of themselves, and would starve beside other work.
        "RAY_worker_niceness": "0",
    }
    environ = os.environ | {"PYTHONPATH": str(ROOT), **ray}
    environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        environ["OMP_NUM_THREADS"] = threads
    command = [python, "-W", "ignore", "train.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )


def jobs_of(folder):
    """The metrics of each job of a sweep."""
    paths = sorted(folder.glob("*/metrics.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """The rows of the sweep, one job after the other with one thread."""
    folder = tmp_path_factory.mktemp("one_by_one")
    done = train("-m", *SWEEP, f"hydra.sweep.dir={folder}")
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = jobs_of(folder)
    assert len(jobs) == 2
    return [job["rows"] for job in jobs]


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", ["hydra.launcher.n_jobs=-1"]),
        ("submitit_local", []),
        ("ray", ["hydra.launcher.ray.init.num_cpus=2"]),
    ],
)
def test_jobs_side_by_side_give_the_same_figures(launcher, options, one_by_one, tmp_path):
    python = environment_of_ray() if launcher == "ray" else sys.executable
    # No OMP_NUM_THREADS: each would take all cores. Two jobs on one core take one each.
    where = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}", *options]
    done = train("-m", *SWEEP, *where, python=python, threads=None)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    jobs = jobs_of(tmp_path)
    assert [job["facts"]["threads"] for job in jobs] == [1, 1]
    assert [job["rows"] for job in jobs] == one_by_one


def environment_of_ray():
    """The Python of an environment with the extra `ray`; it is made once."""
    return environment(*OURS, *EXTRAS["ray"], constrained=["transformers"])


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_search_goes_on_beside_a_trial_that_fails(launcher, tmp_path):
    search = (
        "+hparams_search=optuna",
        f"hydra/launcher={launcher}",
        "hydra.sweeper.n_trials=6",
        "rank=choice(1,99999)",
        "module.optimizer.lr=choice(0.00001,0.02)",
        "data.n_train=512",
        f"hydra.sweep.dir={tmp_path}",
    )
    train("-m", *SWEEP[:-1], *search)
    ranks, values = [], []
    for folder in tmp_path.iterdir():
        if not folder.name.isdigit():
            continue
        ranks.append(OmegaConf.load(folder / ".hydra" / "config.yaml").rank)
        if (folder / "metrics.json").exists():
            rows = json.loads((folder / "metrics.json").read_text())["rows"]
            values.append(validation_of(rows))
        else:
            assert ranks[-1] == 99999
    assert len(ranks) == 6
    assert 1 < len(values) < 6
    assert min(values) < max(values)
    best = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(values))
    assert best.best_params == {"rank": 1, "module.optimizer.lr": 0.02}


def validation_of(rows):
    """The validation IIA on changing pairs."""
    (value,) = [
        row["value"]
        for row in rows
        if (row["split"], row["subset"], row["control"], row["metric"])
        == ("validation", "changing", None, "iia")
    ]
    return value
