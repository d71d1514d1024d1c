"""Sweeps and runs from the command line: records, folders, going on, errors in words."""

import errno
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import yaml
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra

import iit.run
from iit.job.folders import exclusive, last_checkpoint
from iit.report import write_summary
from iit.result import read_metrics, write_metrics
from iit.result.record import read_record, write_record
from iit.result.select import validation_iia
from tests.result.test_result import ROW

TEST = replace(ROW, split="test")
EQUALITY = ("+experiment=das_equality_by_hand", "+debug=default", "logger=csv")
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled")
CONFIG = Path(__file__).parents[2] / "conf" / "config.yaml"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Give a command in this process, and return its exit status or its last words.

    It has a config of few keys, which composes fast; its folders are those of conf/config.yaml.
    """
    config = yaml.safe_load(CONFIG.read_text())
    few = {key: config[key] for key in ("paths", "hydra", "dry_run", "seed", "rank", "name")}
    few |= {"optimizer": {"lr": 0.1}, "logger": None, "start": "random"}
    few["defaults"] = ["_self_", {"objective": "cross_entropy"}]
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "few.yaml").write_text(yaml.safe_dump(few))

    def give(*overrides, real=False):
        GlobalHydra.instance().clear()
        # A command that has run in this process has set it.
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1" if "frames" in overrides else "0")
        overrides = [override for override in overrides if override != "frames"]
        start = EQUALITY if real else ()
        config = () if real else ("--config-dir", str(folder), "--config-name", "few")
        if "paths.outputs" not in str(overrides):
            overrides += [f"paths.outputs={tmp_path / 'outputs'}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides, *start, *QUIET, *config])
        try:
            iit.run.main()
        except SystemExit as leaving:
            return leaving.code
        return 0

    yield give
    # Hydra's quiet silences the loggers of the process, which other tests read.
    logging.root.setLevel(logging.WARNING)
    for logger in logging.root.manager.loggerDict.values():
        logger.disabled = False


@pytest.fixture
def ran(monkeypatch):
    """The ranks of the jobs that were run; nothing is trained, and rank 99999 fails."""
    ranks = []

    def run(cfg):
        ranks.append(cfg.rank)
        if cfg.rank == 99999:
            raise ValueError("rank=99999 is too high")
        if cfg.rank == 77:
            raise OSError(errno.ENOSPC, "No space left on device")
        cell = {"rank": cfg.rank, "seed": cfg.seed, "value": cfg.rank / 10 + cfg.seed / 100}
        rows = [replace(row, **cell) for row in (ROW, TEST)]
        write_metrics(cfg.paths.run, rows)
        return validation_iia(rows)

    monkeypatch.setattr("iit.run.run", run)
    return ranks


def sweeps(tmp_path):
    return sorted(path.parent for path in tmp_path.rglob("sweep.yaml"))


def summary_of(sweep):
    return json.loads((sweep / "summary.json").read_text())


@pytest.mark.parametrize(
    ("more", "real"),
    [
        ((), False),
        pytest.param((), True, marks=pytest.mark.long),
        pytest.param(("hydra.sweeper.max_batch_size=1",), False, marks=pytest.mark.long),
    ],
)
def test_a_failed_job_is_listed_with_its_error_and_touches_no_other(
    command, ran, tmp_path, capsys, more, real
):
    assert command("-m", "rank=99999,1", *more, real=real) == 1
    assert ran == [99999, 1]
    (sweep,) = sweeps(tmp_path)
    jobs = summary_of(sweep)["jobs"]
    assert [(job["job"], job["rank"], job["validation_iia"]) for job in jobs] == [
        ("0", 99999, None),
        ("1", 1, 0.1),
    ]
    assert jobs[0]["failure"].startswith("rank=99999 is too high (log: ")
    record = read_record(sweep / "0" / "job.yaml")
    assert (record["status"], record["overrides"]) == ("failed", {"rank": 99999})
    assert "Traceback" in Path(record["log"]).read_text()
    told = capsys.readouterr()
    assert "Job 0 failed: rank=99999 is too high" in told.out
    assert "Traceback" not in told.out + told.err
    facts = yaml.safe_load((sweep / "sweep.yaml").read_text())
    assert (facts["swept"], facts["launcher"], facts["jobs"]) == (["rank"], "basic", 2)
    assert "rank=99999,1" in facts["overrides"]
    assert facts["command"][0] == "train.py"


def test_the_same_command_runs_what_is_missing(command, ran, tmp_path, capsys):
    sweep = tmp_path / "it's a=1, sweep"
    again = ("-m", "rank=1,2,3,4", f'hydra.sweep.dir="{sweep}"')
    assert command(*again) == 0
    undisturbed = (sweep / "summary.csv").read_bytes()
    # Killed between the result and the record; killed before the result; never started.
    for name in ("1", "2"):
        record = read_record(sweep / name / "job.yaml")
        write_record(sweep / name / "job.yaml", record | {"status": "running"})
    (sweep / "2" / "metrics.json").unlink()
    (sweep / "3" / "metrics.json").unlink()
    (sweep / "3" / "job.yaml").unlink()
    assert not write_summary(sweep)
    told = capsys.readouterr().out
    assert "Job 2 failed: did not finish" in told
    assert "1 of 4 jobs have not started" in told
    ran.clear()
    assert command(*again) == 0
    assert ran == [3, 4]
    assert (sweep / "summary.csv").read_bytes() == undisturbed


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("rank=1,2,3", "seed=0"), "differ in ['rank=1,2', 'rank=1,2,3']"),
        pytest.param(
            ("rank=1,2", "seed=0", "start=pca"), "differ in ['start=pca']", marks=pytest.mark.long
        ),
        pytest.param(("seed=0", "rank=1,2"), "differ in their order", marks=pytest.mark.long),
    ],
)
def test_another_sweep_is_refused(command, ran, tmp_path, overrides, said):
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert command("-m", "rank=1,2", "seed=0", folder) == 0
    before = sorted(tmp_path.rglob("*"))
    assert said in command("-m", *overrides, folder)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert "no sweep.yaml" in command("-m", "rank=1,2", f"hydra.sweep.dir={tmp_path / 'other'}")


def test_a_job_that_is_refused_is_no_success(command, ran, tmp_path):
    """What the command composes to has changed, so the summary would mix two sweeps."""
    folder = tmp_path / "sweep"
    assert command("-m", "rank=1,2", f"hydra.sweep.dir={folder}") == 0
    record = read_record(folder / "0" / "job.yaml")
    write_record(folder / "0" / "job.yaml", record | {"config": "another"})
    message = command("-m", "rank=1,2", f"hydra.sweep.dir={folder}")
    assert "holds a run of another configuration" in message


def test_a_dry_run_leaves_the_folder_to_the_sweep(command, ran, tmp_path, monkeypatch):
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert command("-m", "rank=1,2", folder, "dry_run=true") == 0
    assert not sweeps(tmp_path)
    for result in tmp_path.rglob("metrics.json"):
        # The stand-in of a run writes one in a dry run, too.
        result.unlink()
    assert command("-m", "rank=1,2", folder) == 0
    assert len(summary_of(tmp_path / "sweep")["jobs"]) == 2


@pytest.mark.parametrize("mode", ["run", "sweep"])
def test_ctrl_c_ends_with_its_status_and_says_how_to_go_on(
    command, monkeypatch, tmp_path, capsys, mode
):
    def interrupted(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr("iit.run.run", interrupted)
    folder = f"hydra.{mode}.dir={tmp_path / 'folder'}"
    assert command(*(["-m"] if mode == "sweep" else []), "rank=1", folder) == 130
    assert f"The same command with {folder} goes on." in capsys.readouterr().out


@pytest.mark.long
def test_a_job_of_another_configuration_is_never_overwritten(command, ran, tmp_path):
    """The command is the same, what it composes to is not."""
    folder = tmp_path / "sweep"
    assert command("-m", "rank=1,2", f"hydra.sweep.dir={folder}") == 0
    result = (folder / "0" / "metrics.json").read_bytes()
    record = read_record(folder / "0" / "job.yaml")
    write_record(folder / "0" / "job.yaml", record | {"config": "another"})
    (folder / "1" / "job.yaml").write_text("{")
    message = command("-m", "rank=1,2", f"hydra.sweep.dir={folder}")
    assert "holds a run of another configuration" in message
    assert ran == [1, 2]
    assert (folder / "0" / "metrics.json").read_bytes() == result
    assert "job.yaml is damaged" in summary_of(folder)["jobs"][1]["failure"]


@pytest.mark.long
def test_the_choice_is_the_best_mean_over_seeds(command, ran, tmp_path, monkeypatch):
    run = iit.run.run

    def luck(cfg):
        """Rank 1 has the best seed, rank 2 the best mean."""
        value = {(1, 0): 0.9, (1, 1): 0.1, (2, 0): 0.6, (2, 1): 0.7}[cfg.rank, cfg.seed]
        run(cfg)
        rows = [replace(row, value=value) for row in read_metrics(cfg.paths.run).rows]
        write_metrics(cfg.paths.run, rows)

    monkeypatch.setattr("iit.run.run", luck)
    assert command("-m", "rank=1,2", "seed=0,1") == 0
    (sweep,) = sweeps(tmp_path)
    summary = summary_of(sweep)
    assert [(job["rank"], job["seed"], job["chosen"]) for job in summary["jobs"]] == [
        (1, 0, False),
        (1, 1, False),
        (2, 0, True),
        (2, 1, True),
    ]
    assert [job["seed_mean"] for job in summary["jobs"]] == pytest.approx([0.5, 0.5, 0.65, 0.65])
    assert {row["rank"] for row in summary["test"]} == {2}
    (mean,) = summary["seeds"]
    assert mean["values"] == {"0": 0.6, "1": 0.7}


@pytest.mark.parametrize("key", ["objective", pytest.param("optimizer.lr", marks=pytest.mark.long)])
def test_what_is_swept_has_a_column(command, ran, tmp_path, capsys, key):
    values = {"objective": "cross_entropy,kl", "optimizer.lr": "0.1,0.01"}[key]
    assert command("-m", f"{key}={values}") == 0
    (sweep,) = sweeps(tmp_path)
    assert [str(job[key]) for job in summary_of(sweep)["jobs"]] == values.split(",")
    assert (sweep / "summary.csv").read_text().startswith(f"job,{key},")
    assert values.split(",")[1] in capsys.readouterr().out


class OneSecond:
    @staticmethod
    def now():
        return OneSecond()

    def strftime(self, pattern):
        return "12-00"


def test_a_folder_is_made_by_one_process_alone(tmp_path):
    base = exclusive(tmp_path / "a" / "12-00-00")
    assert [base.name, exclusive(base).name, exclusive(base).name] == [
        "12-00-00",
        "12-00-00_2",
        "12-00-00_3",
    ]


@pytest.mark.long
def test_what_starts_in_one_second_has_folders_of_its_own(command, ran, tmp_path, monkeypatch):
    monkeypatch.setattr("hydra.core.utils.datetime", OneSecond)
    assert [command("rank=1"), command("rank=2")] == [0, 0]
    assert [command("-m", "rank=1"), command("-m", "rank=2")] == [0, 0]
    folders = {path.parent for path in (tmp_path / "outputs").rglob(".hydra")}
    assert {str(folder.relative_to(tmp_path / "outputs" / "run")) for folder in folders} == {
        "12-00",
        "12-00_2",
        "12-00_3/0",
        "12-00_4/0",
    }
    assert len(list(tmp_path.rglob("metrics.json"))) == 4


def test_a_finished_run_is_not_run_again_and_never_overwritten(command, ran, tmp_path):
    same = f"hydra.run.dir={tmp_path / 'named'}"
    assert command("rank=1", same) == 0
    hydra = tmp_path / "named" / ".hydra" / "config.yaml"
    before = hydra.read_bytes()
    assert "holds a run of another configuration" in command("rank=2", same)
    assert hydra.read_bytes() == before, "not even Hydra writes to a folder that is refused"
    ran.clear()
    assert command("rank=1", same) == 0
    assert ran == [], "it was finished already"
    (tmp_path / "named" / "job.yaml").unlink()
    assert "holds a run of another configuration" in command("rank=1", same)


def test_a_job_that_another_process_runs_is_left_alone(command, ran, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / "job.lock"):
        assert "Another process runs the job" in command("rank=1", f"hydra.run.dir={folder}")
    assert ran == []
    assert command("rank=1", f"hydra.run.dir={folder}") == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rank=99999", "rank=99999 is too high"),
        pytest.param("rnak=1", "Could not override 'rnak'", marks=pytest.mark.long),
        pytest.param(
            "hydra/launcher=nowhere",
            "Could not find 'hydra/launcher/nowhere'",
            marks=pytest.mark.long,
        ),
        pytest.param("hydra.run.dir=${nothing}", "'nothing' not found", marks=pytest.mark.long),
        ("hydra.job.chdir=x", "'x' is not a valid bool"),
    ],
)
def test_an_error_is_a_message_without_frames(command, ran, override, said, capsys):
    message = command(override)
    told = capsys.readouterr()
    assert said in message
    assert "Traceback" not in message + told.out + told.err


def test_a_fault_of_the_program_says_where_its_traceback_is(command, monkeypatch, tmp_path):
    monkeypatch.setattr("iit.run.run", lambda cfg: 1 + cfg.name)
    message = command(f"hydra.run.dir={tmp_path / 'run'}")
    assert message.startswith("TypeError: ")
    assert "The log in the run's folder has the traceback" in message
    (log,) = (tmp_path / "run").glob("*.log")
    assert "TypeError" in log.read_text()
    with pytest.raises(TypeError):
        command("frames", f"hydra.run.dir={tmp_path / 'another'}")


def test_a_full_disk_loses_no_result_and_says_what_to_do(command, ran, tmp_path, capsys):
    assert command("-m", "rank=77,1", f"hydra.sweep.dir={tmp_path / 'sweep'}") == 1
    told = capsys.readouterr().out
    assert "No space left on device. No finished result is lost. Remove the cause" in told
    assert f"The same command with hydra.sweep.dir={tmp_path / 'sweep'} goes on." in told
    jobs = summary_of(tmp_path / "sweep")["jobs"]
    assert [job["validation_iia"] for job in jobs] == [None, 0.1]


@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_a_folder_that_cannot_be_made_ends_the_command(command, ran, tmp_path, mode):
    (tmp_path / "file").touch()
    message = command(*mode, f"paths.outputs={tmp_path / 'file'}")
    assert "Remove the cause" in message
    assert ran == []


@pytest.mark.long
def test_a_file_in_place_of_a_jobs_folder_hides_no_result(command, ran, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    assert command("-m", "rank=1,2", f"hydra.sweep.dir={sweep}") == 0
    for path in sorted((sweep / "1").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (sweep / "1").rmdir()
    (sweep / "1").touch()
    assert not write_summary(sweep)
    assert "1 of 2 jobs have not started" in capsys.readouterr().out
    message = command("-m", "rank=1,2", f"hydra.sweep.dir={sweep}")
    assert "Remove the cause" in message
    assert summary_of(sweep)["jobs"][0]["validation_iia"] == 0.1


class Once(L.Callback):
    """Interrupts the first training that gets to the second epoch, as Ctrl-C does."""

    def __init__(self, flag):
        self.flag = Path(flag)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and not self.flag.exists():
            self.flag.touch()
            raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_run_goes_on_to_the_same_figures(command, tmp_path, capsys):
    given = ("trainer.max_epochs=2", "callbacks=default", "+callbacks.once={_target_: tests.job.")
    given = (*given[:2], given[2] + f"test_going_on.Once, flag: {tmp_path / 'flag'}}}")
    folder = tmp_path / "run"
    assert command(*given, f"hydra.run.dir={folder}", real=True) == 130
    assert not (folder / "metrics.json").exists()
    assert read_record(folder / "job.yaml")["status"] == "running"
    last = folder / "checkpoints" / "last.ckpt"
    assert last_checkpoint(folder) == last
    assert command(*given, f"hydra.run.dir={folder}", real=True) == 0
    assert command(*given, f"hydra.run.dir={tmp_path / 'whole'}", real=True) == 0
    assert read_metrics(folder).rows == read_metrics(tmp_path / "whole").rows
    last.write_bytes(last.read_bytes()[:-100])
    assert last_checkpoint(folder) is None, "half a checkpoint is not believed"
