"""Sweeps in processes of their own: launchers, one second, and kills at any moment."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iit.result import read_metrics
from tests.seeds import shifted

ROOT = Path(__file__).parents[2]
SMALL = (
    *("+experiment=das_equality_by_hand", "logger=csv", "trust.resamples=100"),
    *("data.n_train=640", "data.n_val=200", "data.n_test=200", "trainer.max_epochs=6"),
)

pytestmark = pytest.mark.long


def started(*overrides, output=subprocess.DEVNULL):
    """A command in a process group of its own, without waiting for it."""
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", *overrides],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process):
    text, _ = process.communicate(timeout=900)
    return process.returncode, text


def lines_of(sweep):
    with (sweep / "summary.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_failing_job_is_reported_under_every_launcher(tmp_path, launcher):
    sweep = tmp_path / "sweep"
    given = ("-m", "rank=99999,1,2", f"hydra/launcher={launcher}", f"hydra.sweep.dir={sweep}")
    status, text = ended(started(*given, *SMALL, output=subprocess.PIPE))
    assert status == 1
    assert "Job 0 failed: rank=99999 does not fit a space of width 64" in text
    assert "Traceback" not in text
    assert [bool(line["failure"]) for line in lines_of(sweep)] == [True, False, False]
    assert [line["rank"] for line in lines_of(sweep)] == ["99999", "1", "2"]
    assert text.rstrip().endswith(f"The same command with hydra.sweep.dir={sweep} goes on.")


@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_two_that_start_in_one_second_lose_nothing(tmp_path, mode):
    processes = [
        started(*mode, f"rank={rank}", *SMALL, f"paths.outputs={tmp_path}") for rank in (1, 2)
    ]
    assert [ended(process)[0] for process in processes] == [0, 0]
    results = map(read_metrics, tmp_path.rglob("metrics.json"))
    assert {metrics.rows[0].rank for metrics in results} == {1, 2}


def test_a_sweep_that_is_killed_ten_times_ends_as_an_undisturbed_one(tmp_path):
    """Each kill comes at a seeded moment after the first job has begun, to the whole group."""
    given = ("-m", "rank=1,2", "seed=0,1", *SMALL)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.monotonic()
    assert ended(started(*given, f"hydra.sweep.dir={whole}"))[0] == 0
    # The work, about; to import everything takes as long as a job.
    duration = (time.monotonic() - start) * 0.8
    moments = random.Random(shifted(0))
    n_killed = 0
    for number in range(10):
        log = tmp_path / f"{number}.txt"
        with log.open("w") as file:
            process = started(*given, f"hydra.sweep.dir={killed}", output=file)
        try:
            while process.poll() is None and "Run folder" not in log.read_text():
                time.sleep(0.1)
            time.sleep(moments.uniform(0, duration / 4))
        finally:
            # The group's number is the process's; it is gone where the sweep has ended.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                n_killed += 1
            process.wait()
    assert n_killed >= 3
    assert ended(started(*given, f"hydra.sweep.dir={killed}"))[0] == 0
    assert lines_of(killed) == lines_of(whole)
    for result in whole.rglob("metrics.json"):
        again = killed / result.relative_to(whole)
        assert read_metrics(again).rows == read_metrics(result).rows
    texts = [json.loads((sweep / "summary.json").read_text()) for sweep in (whole, killed)]
    assert texts[0] == texts[1]
    assert any("Restored all states" in log.read_text() for log in tmp_path.glob("*.txt"))
