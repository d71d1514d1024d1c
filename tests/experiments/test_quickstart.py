"""The short files of experiments/quickstart, run as they are but for how long they train."""

import re
import runpy
from functools import partial
from pathlib import Path

import pytest

import iit

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "quickstart"


@pytest.fixture
def start(smollm2, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(iit, "load_network", lambda name: smollm2)

    def run(name):
        assert len((FOLDER / name).read_text(encoding="utf-8").splitlines()) < 60
        runpy.run_path(str(FOLDER / name))
        return capsys.readouterr().out

    return run


@pytest.mark.long
def test_attention_outputs(start):
    best = start("patch_attention_outputs.py").partition("─\n")[2].splitlines()[0]
    assert best.startswith("attention_output[23] @ last"), "the name movers' layer"
    assert 0.5 < float(best.split()[3]) < 1
    assert {path.suffix for path in Path("outputs/quickstart").glob("attention.*")} == {
        ".png",
        ".svg",
        ".csv",
    }


def test_a_fact(start, monkeypatch):
    real = iit.patching.trace
    monkeypatch.setattr(
        iit.patching,
        "trace",
        lambda *args, **options: real(*args, **options | {"layers": [3, 20], "draws": 1}),
    )
    lines = start("trace_a_fact.py").splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "block_output",
        "mlp_output",
        "attention_output",
    ]
    clean, corrupted, restored = (float(word) for word in lines[0].split() if word[0] == "0")
    assert clean > 0.5 > 0.1 > corrupted, "a fact the network knows"
    assert restored > 0.3
    assert "iffel" in lines[1] or "Tower" in lines[1], "MLPs restore it at the subject"
    assert {path.suffix for path in Path("outputs/quickstart").glob("fact_mlp_output.*")} == {
        ".png",
        ".svg",
        ".csv",
    }


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_rotations(start, monkeypatch):
    sample = iit.Pairs.sample
    monkeypatch.setattr(iit, "fit", partial(iit.fit, batch_size=8))
    monkeypatch.setattr(
        iit.Pairs,
        "sample",
        lambda *args, **options: sample(
            *args, **options | {"n_train": 32, "n_val": 12, "n_test": 12}
        ),
    )
    told = start("train_rotations.py").splitlines()
    scores = {line.split()[0]: line for line in told}
    trained, random = (scores[name].split("changing")[1] for name in ("trained", "random"))
    assert float(trained.split()[0]) > 0.3 > float(random.split()[0])
    assert [line.partition(":")[0] for line in told if line.startswith("rank")] == [
        "rank 1",
        "rank 64",
    ]


@pytest.mark.long
def test_steering_and_sharing(start):
    told = start("steer_and_share.py")
    assert "ship" not in told.partition("strength 1")[0]
    assert "ship" in told.partition("strength 1")[2]
    assert (Path("outputs/quickstart/steered") / "config.json").is_file()


def test_every_quickstart_has_a_test():
    tested = re.findall(r'start\("(\w+\.py)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert sorted(tested) == sorted(path.name for path in FOLDER.glob("*.py"))
