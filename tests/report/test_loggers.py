"""Each logger gets a run's results under the same names, and none of them can cost a result."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import wandb
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import OmegaConf, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from iit.report.loggers import log_results, logged_metrics
from iit.result import read_metrics, write_metrics
from iit.run import run
from tests.conftest import SMALL, composing
from tests.report.test_report import TEST
from tests.result.test_result import ROW
from tests.wandb_file import wandb_run

ROOT = Path(__file__).parents[2]
EQUALITY = ("+experiment=das_equality_by_hand", *SMALL, "logger=default")


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Compose a job that runs on no language model."""
    return composing(None, tmp_path, monkeypatch)


def in_sweep(folder, *swept):
    """Let the job that was composed last be one of a sweep."""
    cfg = HydraConfig.instance().cfg
    OmegaConf.set_readonly(cfg.hydra, False)
    with open_dict(cfg):
        cfg.hydra.mode = RunMode.MULTIRUN
        cfg.hydra.sweep.dir = str(folder)
    if swept:
        folder.mkdir(exist_ok=True)
        OmegaConf.save({"overrides": [], "swept": list(swept)}, folder / "sweep.yaml")


@pytest.mark.filterwarnings("ignore")
def test_an_offline_run_holds_config_metrics_summary_table_images_and_alignment(
    configured, tmp_path
):
    cfg = configured(
        *EQUALITY, "rank=2", "seed=3", "+logger.wandb.config={my_rank: ${rank}}", "data.n_val=40"
    )
    in_sweep(tmp_path / "study", "rank", "seed")
    board = OmegaConf.load(ROOT / "conf" / "logger" / "tensorboard.yaml").tensorboard
    with open_dict(cfg):
        cfg.logger.tensorboard = board
    run(cfg)
    folder = tmp_path / "run"
    metrics, told = read_metrics(folder), wandb_run(folder)

    assert told.run.display_name == "rank=2 seed=3"
    assert told.run.run_group == "study"
    assert told.run.job_type == "align"
    assert told.run.project == "iit"
    names = {"das_equality_by_hand", "equality", "equality_by_hand", "left_equal"}
    assert set(told.run.tags) == names
    assert told.run.run_id == (folder / "wandb_id").read_text()
    assert told.exit_code == 0

    resolved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert told.config["site"] == resolved["site"]
    assert told.config["module"]["optimizer"] == resolved["module"]["optimizer"]
    assert told.config["rank"] == told.config["my_rank"] == 2
    assert told.config["folder"] == str(folder)
    assert not {"paths", "logger", "store"} & set(told.config)

    # One name for one figure, in every logger.
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        in_csv = set(next(csv.reader(file))) - {"step", "epoch"}
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    in_board = set(events.Tags()["scalars"]) - {"epoch"}
    in_wandb = {name for name in told.history if re.match("(train|val|validation|test)/", name)}
    assert in_csv == in_board == in_wandb
    assert {"train/loss", "val/loss", "val/iia_changing", "test/changing/trained/iia"} <= in_csv

    assert set(told.summary["val/iia_changing"]) == {"max"}
    (row,) = [
        row
        for row in metrics.rows
        if (row.split, row.subset, row.control, row.metric) == ("test", "changing", None, "iia")
    ]
    for end, value in (("", row.value), ("/low", row.low), ("/high", row.high)):
        assert told.summary[f"test/changing/trained/iia{end}"] == pytest.approx(value)
        assert events.Scalars(f"test/changing/trained/iia{end}")[0].value == pytest.approx(value)
    (verdict,) = metrics.facts["verdict"]
    assert told.summary["verdict"] == verdict["outcome"]

    table = json.loads((told.files / "files" / told.history["rows/path"]).read_text())
    assert len(table["data"]) == len(metrics.rows)
    assert table["columns"] == list(row.to_dict())
    for picture in ("training_curve", "causal_model"):
        (file,) = told.history[f"{picture}/filenames"]
        assert (told.files / "files" / file).is_file()

    alignment = told.artifacts["alignment"]
    assert alignment.name == "das_equality_by_hand"
    assert json.loads(alignment.metadata)["verdict"] == metrics.facts["verdict"]
    contents = {content.path for content in alignment.manifest.contents}
    assert contents == {path.name for path in (folder / "alignment").iterdir()}

    # What training logs is documented, and what the dashboard compares is there.
    page = (ROOT / "docs" / "dashboards.md").read_text()
    documented = set(re.findall(r"`((?:train|val)/[a-z_/]+)`", page))
    assert {name for name in in_wandb if re.match("(train|val)/", name)} <= documented
    panels = (ROOT / "iit" / "dashboard.yaml").read_text()
    compared = set(re.findall(r"(?:train|val|validation)/[a-z_/]+\b(?=[\]},\n])", panels))
    assert len(compared) > 8
    assert compared <= in_wandb


class Raising(Logger):
    name = version = "raising"

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if "test/all/trained/iia" in metrics:
            raise OSError("no space")


def short_job(cfg, folder, loggers):
    for step in range(2):
        for logger in loggers:
            logger.log_metrics({"train/loss": 1.0}, step=step)
    return [ROW, replace(TEST, subset="all")], {}


@pytest.mark.filterwarnings("ignore")
def test_loggers_that_fail_cost_no_result(configured, tmp_path, monkeypatch, caplog):
    """One fails at the end; W&B's service dies in training, so that it cannot even be closed."""
    job = "{_target_: tests.report.test_loggers.short_job, _partial_: true}"
    cfg = configured(*EQUALITY)
    with open_dict(cfg):
        cfg.job = OmegaConf.create(job)
        cfg.logger.raising = {"_target_": "tests.report.test_loggers.Raising"}

    def gone(*args, **kwargs):
        raise ConnectionResetError("Connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(WandbLogger, "log_metrics", gone)
        patched.setattr(wandb, "finish", gone)
        assert run(cfg) == ROW.value
    wandb.finish()
    assert read_metrics(tmp_path / "run").rows
    assert "Raising failed: OSError('no space')" in caplog.text
    assert "WandbRun failed: ConnectionResetError" in caplog.text
    assert "wandb sync" in caplog.text
    assert "test/all/trained/iia" in (tmp_path / "run" / "csv" / "metrics.csv").read_text()


def test_one_failure_does_not_keep_results_from_other_loggers(tmp_path, caplog):
    write_metrics(tmp_path, [ROW, replace(TEST, subset="all")])
    good = MagicMock()
    log_results([Raising(), good], tmp_path)
    assert "test/all/trained/iia" in good.log_metrics.call_args.args[0]
    good.finalize.assert_called_once_with("success")


def test_names_that_several_cells_share_are_left_out():
    cells = [replace(TEST, layer=layer, value=layer / 10) for layer in (1, 2)]
    vanilla = replace(TEST, control="vanilla", subset="all", value=0.7)
    assert logged_metrics([*cells, vanilla]) == {"test/all/vanilla/iia": 0.7}
    assert logged_metrics([ROW, replace(cells[0], layer=ROW.layer), cells[1]]) == {
        "validation/changing/trained/iia": ROW.value,
        "validation/changing/trained/iia/low": ROW.low,
        "validation/changing/trained/iia/high": ROW.high,
        "test/changing/trained/iia": 0.1,
        "test/changing/trained/iia/low": TEST.low,
        "test/changing/trained/iia/high": TEST.high,
    }


def test_figures_of_several_variables_have_their_names():
    rows = [replace(base, variable=v) for v in "ab" for base in (ROW, TEST)]
    names = {name for name in logged_metrics(rows) if name.endswith("iia")}
    assert names == {
        f"{v}/{split}/changing/trained/iia" for v in "ab" for split in ("validation", "test")
    }


@pytest.fixture
def told(configured, tmp_path, monkeypatch):
    """The options of `wandb.init` for a composed job."""
    monkeypatch.setattr(wandb, "init", MagicMock())

    def options(*overrides, sweep=()):
        cfg = configured(*overrides)
        if sweep:
            in_sweep(*sweep)
        (tmp_path / "run").mkdir(exist_ok=True)
        OmegaConf.save(cfg, tmp_path / "run" / "config.yaml", resolve=True)
        instantiate(cfg.logger.wandb)
        return wandb.init.call_args.kwargs

    return options


def test_what_the_user_sets_wins(told, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_ENTITY", "lab")
    options = told("+experiment=das_ioi", sweep=(tmp_path / "study",))
    assert (options["project"], options["entity"], options["mode"]) == ("mine", "lab", "offline")
    options = told(
        "+experiment=das_ioi",
        "logger.wandb.project=other",
        "logger.wandb.tags=[x]",
        "logger.wandb.group=g",
        "logger.wandb.name=n",
        "logger.wandb.job_type=j",
        "+logger.wandb.config={rank: 3, note: mine}",
        sweep=(tmp_path / "study",),
    )
    kept = [options[name] for name in ("project", "tags", "group", "name", "job_type")]
    assert kept == ["other", {"x"}, "g", "n", "j"]
    assert options["config"]["rank"] == 3
    assert options["config"]["note"] == "mine"
    assert options["config"]["site"]["layer"] == 17


def test_a_run_that_goes_on_in_its_folder_has_the_same_id(told, monkeypatch):
    first = told("+experiment=das_ioi")
    assert told("+experiment=das_ioi")["id"] == first["id"]
    assert first["resume"] == "allow"
    # W&B's own agent gives the id.
    monkeypatch.setenv("WANDB_RUN_ID", "agent1")
    assert told("+experiment=das_ioi")["id"] == "agent1"


def test_a_name_says_what_differs(told, tmp_path):
    experiment = "+experiment=das_ioi"
    options = told(experiment, "rank=8")
    assert options["name"] == "das_ioi"
    assert options["group"] is None
    overrides = (experiment, "site.layer=9", "rank=8", "seed=1", "trust=quick")
    # Without a record of the sweep all overrides are told.
    options = told(*overrides, sweep=(tmp_path / "study",))
    assert options["name"] == "experiment=das_ioi layer=9 rank=8 seed=1 trust=quick"
    options = told(*overrides, sweep=(tmp_path / "study", "site.layer", "rank", "seed"))
    assert options["name"] == "layer=9 rank=8 seed=1"
    assert options["group"] == "study"


@pytest.mark.parametrize(
    ("overrides", "tags"),
    [
        (("+experiment=das_ioi_both",), {"das_ioi_both", "ioi", "smollm2", "io_name"}),
        (("+experiment=das_equality",), {"train_equality", "left_equal"}),
        (("+experiment=steering",), {"steering", "smollm2"}),
        (("data=file", "data.path=p", "variable=v", "site.layer=1"), {"run", "smollm2", "v"}),
        (("+experiment=das_ioi", f"name={'x' * 70}"), {"x" * 64}),
    ],
)
def test_tags_are_experiment_task_network_and_variables(told, overrides, tags):
    options = told(*overrides)
    assert tags <= set(options["tags"])
    assert all(isinstance(tag, str) and 0 < len(tag) <= 64 for tag in options["tags"])


def test_a_server_that_cannot_be_reached_leaves_an_offline_run(told, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    modes = []

    def init(**options):
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("no such host.")
        return MagicMock(dir="/runs/wandb/offline-run-1/files")

    monkeypatch.setattr(wandb, "init", MagicMock(side_effect=init))
    told("+experiment=das_ioi")
    assert modes == ["online", "offline"]
    assert "no such host" in caplog.text
    assert "wandb login" in caplog.text
    assert "wandb sync /runs/wandb/offline-run-1" in caplog.text
    assert "WANDB_MODE=offline" in caplog.text


def failing_job(cfg, folder, loggers):
    raise ValueError("no such place")


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_fails_is_no_finished_one_in_wandb(configured, tmp_path, caplog):
    cfg = configured(*EQUALITY)
    with open_dict(cfg):
        job = "{_target_: tests.report.test_loggers.failing_job, _partial_: true}"
        cfg.job = OmegaConf.create(job)
    with pytest.raises(ValueError, match="no such place"):
        run(cfg)
    assert wandb_run(tmp_path / "run").exit_code == 1
    assert not caplog.records, "W&B takes the status"


@pytest.mark.long
@pytest.mark.parametrize("key", ["", "a" * 40])
def test_online_without_a_network_or_a_key_ends_with_its_result(tmp_path, key):
    """Port 9 of this machine is closed."""
    environment = os.environ | {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment |= {"WANDB_API_KEY": key, "HOME": str(tmp_path)}
    process = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(ROOT / "train.py")),
            *("+experiment=das_equality_by_hand", f"paths.outputs={tmp_path}"),
            "job._target_=tests.report.test_loggers.short_job",
            "logger.wandb.settings.init_timeout=4",
        ],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=900,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (metrics,) = tmp_path.rglob("metrics.json")
    assert "W&B cannot be used online" in process.stdout + process.stderr
    assert wandb_run(metrics.parent).summary["test/all/trained/iia"] == TEST.value


SWEEP = ROOT / "experiments" / "das_ioi" / "wandb_sweep.yaml"


@pytest.mark.parametrize("number", range(3))
def test_the_command_line_of_wandbs_agent_composes(number, caplog):
    sweep = OmegaConf.to_container(OmegaConf.load(SWEEP), resolve=False)
    arguments = {}
    for name, choice in sweep["parameters"].items():
        values = choice.get("values") or [choice["min"], choice["max"], 0.00314]
        arguments[name] = {"value": values[number % len(values)]}
    filled = create_sweep_command_args({"args": arguments})["args_no_hyphens"]
    command = create_sweep_command(sweep["command"])
    at = command.index("${args_no_hyphens}")
    command[at : at + 1] = filled
    assert "WANDB_MODE=online" in command[:4]
    program = command.index("${program}")
    assert (ROOT / sweep["program"]).is_file()
    with initialize_config_module("iit.conf", version_base="1.3"):
        cfg = compose("config", command[program + 1 :])
    assert cfg.site.layer == arguments["site.layer"]["value"]
    assert cfg.module.optimizer.lr == arguments["module.optimizer.lr"]["value"]
    assert cfg.logger.wandb.name == f"layer={cfg.site.layer} rank={cfg.rank} seed={cfg.seed}"
    # The choice is made on validation, by a metric that runs log.
    assert sweep["metric"]["name"] in logged_metrics([ROW])


def test_loggers_by_name(configured):
    assert list(configured("logger=tensorboard").logger) == ["csv", "tensorboard"]
    assert list(configured().logger) == ["csv", "wandb"]


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level(logging.WARNING, logger="iit")
