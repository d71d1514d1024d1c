"""`benchmarks/gpu.py` on the CPU, at a small size."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import gpu
from tests.report.test_report import TEST

SMALL = ["--device", "cpu", "--small"]


def run(folder, *arguments):
    path = folder / "gpu.json"
    status = gpu.main([*SMALL, "--out", str(path), *arguments])
    return status, json.loads(path.read_text())


@pytest.fixture
def in_this_process(monkeypatch):
    def apart(name, device, small, seconds):
        assert 0 < seconds <= gpu.PARTS[name].seconds
        return gpu.here(name, device, small)

    monkeypatch.setattr(gpu, "apart", apart)


STEP_DTYPES = {"step_fp32": "torch.float32", "step_bf16": "torch.bfloat16"}


def checked(results, *names):
    parts = results["parts"]
    assert list(parts) == list(names)
    for name, step in parts.items():
        if name not in STEP_DTYPES:
            continue
        assert step["dtype"] == STEP_DTYPES[name]
        assert [(case["batch"], case["run"]) for case in step["cases"]] == [
            (4, "whole"),
            (4, "resumed"),
            (8, "whole"),
            (8, "resumed"),
        ]
        for case in step["cases"]:
            low, high = case["range_s"]
            assert 0 < low <= case["median_s"] <= high
            assert case["losses"][-2:] < case["losses"][:2], "training does not lower the loss"
            assert case["process_peak_mib"] > 100
            assert case["gpu_peak_mib"] is None
        whole, resumed, *_ = step["cases"]
        tolerance = 1e-3 if name == "step_fp32" else 0.05
        assert whole["losses"] == pytest.approx(resumed["losses"], abs=tolerance)
    for name, job in parts.items():
        if not name.startswith("das_ioi"):
            continue
        assert job["low"] <= job["cpu_iia"] <= job["high"]
        assert job["n"] == 8
    split = parts["sharded"]
    assert split["logits_difference"] <= gpu.TOLERANCE
    assert results["small"]
    assert results["seconds"] > 0


def test_parts_leave_what_they_measured(tmp_path, in_this_process, monkeypatch):
    # On random weights no interchange gives the label. `test_the_command` measures it.
    row, fingerprint = gpu.cpu_das_ioi(gpu.size_of(None))
    monkeypatch.setattr(gpu, "cpu_das_ioi", lambda _: (replace(row, value=0.0), fingerprint))
    names = ("step_fp32", "sharded", "das_ioi_bf16")
    status, results = run(tmp_path, "--parts", *names)
    assert status == 0
    checked(results, *names)
    # Pairs of another size are other pairs.
    assert not results["parts"]["das_ioi_bf16"]["same_pairs"]


@pytest.mark.long
def test_the_command(tmp_path):
    path = tmp_path / "gpu.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", *SMALL, "--out", path]
    assert subprocess.run(command, cwd=gpu.ROOT, check=False).returncode == 0
    results = json.loads(path.read_text())
    checked(results, *gpu.PARTS)
    assert results["parts"]["das_ioi_fp32"]["same_pairs"]


def test_the_parts_stay_within_eight_minutes():
    # What is left is for the start of the script.
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 60 * gpu.MINUTES - 15
    assert gpu.MINUTES <= 8


def test_results_are_written_after_each_part_and_a_failure_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    seen = []

    def apart(name, *_):
        seen.append(list(json.loads(path.read_text())["parts"]) if path.exists() else [])
        return {"error": "RuntimeError: CUDA"} if name == "sharded" else {"iia": 1.0}

    monkeypatch.setattr(gpu, "apart", apart)
    status, results = run(tmp_path)
    assert status == 1
    names = list(gpu.PARTS)
    assert seen == [names[:k] for k in range(len(names))]
    assert results["parts"]["sharded"] == {"error": "RuntimeError: CUDA"}
    assert results["parts"]["das_ioi_bf16"] == {"iia": 1.0}


def test_without_time_a_part_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "apart", lambda *_: pytest.fail("no part should run"))
    status, results = run(tmp_path, "--minutes", "0", "--parts", "sharded")
    assert status == 1
    assert results["parts"] == {"sharded": {"error": "No time was left for it."}}


def test_a_process_that_fails_or_takes_too_long_leaves_an_error():
    assert "stopped after its 0 s" in gpu.apart("sharded", "cpu", None, 0.1)["error"]
    failed = gpu.apart("sharded", "nowhere", None, 60)
    assert "--device nowhere is neither cpu nor cuda" in failed["error"]
    assert "usage" in "\n".join(failed["traceback"])


@pytest.mark.parametrize(("cpu_iia", "inside"), [(0.5, True), (0.61, False), (math.nan, False)])
def test_the_cpus_figure_has_to_lie_in_the_interval(monkeypatch, cpu_iia, inside):
    row = replace(TEST, value=0.5, low=0.4, high=0.6)
    monkeypatch.setattr(gpu, "das_ioi_job", lambda *_: (row, "pairs"))
    monkeypatch.setattr(gpu, "cpu_das_ioi", lambda *_: (replace(row, value=cpu_iia), "others"))
    results = gpu.here("das_ioi_fp32", "cpu", "small")
    assert ("error" not in results) == inside
    # What was measured is kept either way.
    assert results["iia"] == 0.5
    assert results["same_pairs"] is False


def test_the_cpus_figure_is_that_of_the_experiments_page():
    row, _ = gpu.cpu_das_ioi(gpu.size_of(None))
    page = (gpu.ROOT / "experiments" / "das_ioi" / "README.md").read_text(encoding="utf-8")
    interval = f"{row.value:.3f} | {row.low:.3f} to {row.high:.3f} | {row.n}"
    assert f"| trained intervention | changing | {interval} |" in page


def test_a_split_network_that_computes_something_else_is_an_error(monkeypatch, toy):
    """Logits that differ are an error, whatever device they come from."""
    numbers = iter((1.0, 1.01))
    network, _ = toy
    monkeypatch.setattr("iit.load_network", lambda *args, **kwargs: network)
    monkeypatch.setattr(gpu, "batches_of", lambda *_: [{}])
    monkeypatch.setattr(gpu, "timed_steps", lambda *_, **__: ([1.0], []))

    def loss_of(alignment, _):
        (weights,) = alignment.parameters()
        logits = weights * next(numbers)
        return logits, logits.sum()

    monkeypatch.setattr(gpu, "loss_of", loss_of)
    with pytest.raises(gpu.FailedError, match="logits differ by 1"):
        gpu.sharded("cpu", gpu.Size("any", 1, 2, (4,)))


def test_a_device_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cuda"])
    assert "Try --device cpu --small" in capsys.readouterr().err
