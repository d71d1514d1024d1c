"""Two processes train what one trains: the same weights, epochs and figures, up to rounding."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import distributed
from torch.multiprocessing import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

import iit
from iit.alignment import DAS, IIT, EarlyStopping
from iit.alignment.processes import n_processes, started, trainer_options
from iit.data import Pairs
from iit.intervened import ActivationStore, store
from iit.network import mlp
from iit.result import read_metrics
from iit.tasks import equality

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def quiet(**options):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **options
    )


TWO = partial(quiet, strategy="ddp", devices=2)


class CountsRuns(L.Callback):
    """Notes, for each process, how many prompts the store runs."""

    def __init__(self, folder):
        self.folder = folder

    def setup(self, trainer, pl_module, stage):
        self.before, self.n = store.observe, 0

        def counting(resolved, batch, *args, **kwargs):
            self.n += batch.size
            return self.before(resolved, batch, *args, **kwargs)

        store.observe = counting

    def teardown(self, trainer, pl_module, stage):
        store.observe = self.before
        Path(self.folder, f"runs-{os.environ.get('LOCAL_RANK', 0)}").write_text(str(self.n))


class SeesTheIntervention(L.Callback):
    """Checks that DDP, and what a checkpoint holds, has the intervention's weights and no other."""

    def on_train_start(self, trainer, pl_module):
        (alignment,) = pl_module.members.values()
        weights = {id(parameter) for parameter in alignment.interventions.parameters()}
        seen = trainer.strategy.model
        assert isinstance(seen, DistributedDataParallel) == distributed.is_initialized()
        assert {id(parameter) for parameter in seen.parameters()} == weights != set()
        assert len(pl_module.state_dict()) == len(alignment.state_dict())


def counted(folder):
    return [int(path.read_text()) for path in sorted(folder.glob("runs-*"))]


def checkpoints(folder):
    return ModelCheckpoint(
        Path(folder, "kept"), "last", every_n_epochs=1, enable_version_counter=False
    )


def written(folder):
    return {path.name for path in folder.rglob("*") if not path.name.startswith("runs-")}


def toy_alignment(network):
    torch.manual_seed(0)
    site = iit.Site("block_output", layer=0, position="place")
    edit = iit.Edit(
        [site], iit.LowRankRotatedSpaceIntervention(network.model.config.hidden_size, 4)
    )
    return iit.Alignment(network, {"subject_position": edit})


def test_a_training_on_two_processes(toy, tmp_path):
    """The last batch of an epoch has 13 pairs, in shares of 7 and 6; of validation 2, then 1."""
    network, pairs = toy

    def fitted(name, trainer, **options):
        alignment = toy_alignment(network)
        alignment.store = ActivationStore(network.model)
        folder = tmp_path / name
        folder.mkdir()
        fit = iit.fit(
            alignment,
            pairs,
            module=lambda alignment: DAS(alignment, penalty=0.0),
            trainer=trainer,
            callbacks=[checkpoints(folder), CountsRuns(folder), SeesTheIntervention()],
            loggers=[CSVLogger(folder, name="csv", version="")],
            batch_size=35,
            eval_batch_size=5,
            max_epochs=2,
            folder=folder,
            **options,
        )
        return alignment, fit, folder

    one, fit_of_one, alone = fitted("one", quiet)
    two, fit_of_two, together = fitted("two", TWO)
    torch.testing.assert_close(two.state_dict(), one.state_dict(), atol=1e-5, rtol=0)
    assert fit_of_two._replace(value=0) == fit_of_one._replace(value=0)
    assert fit_of_two.value == pytest.approx(fit_of_one.value)
    assert not distributed.is_initialized()
    assert "LOCAL_RANK" not in os.environ
    # Each prompt is run once, whichever process needs it first, and the first one has it all.
    assert len(counted(together)) == 2
    assert sum(counted(together)) == sum(counted(alone)) > 0
    assert len(two.store) == len(one.store)
    # One process writes, and it counts each figure once.
    assert written(together) == written(alone)
    curves = [pd.read_csv(folder / "csv" / "metrics.csv") for folder in (alone, together)]
    pd.testing.assert_frame_equal(curves[1], curves[0], atol=1e-5, rtol=0)
    # What two processes have begun, one can end.
    kept = together / "kept" / "last.ckpt"
    assert fitted("rest", quiet, ckpt_path=kept)[1]._replace(value=0) == fit_of_one._replace(
        value=0
    )


@cache
def sampled(**options):
    sizes = {"n_train": 49, "n_val": 21, "n_test": 16}
    return Pairs.sample(
        equality(n_objects=60), variable=["left_equal", "right_equal"], **sizes, **options
    )


def claims(n=1):
    torch.manual_seed(0)
    network = mlp(n_inputs=16, n_classes=2, width=16, depth=2)
    alignments = []
    for _ in range(n):
        edits = {}
        for variable, half in {"left_equal": 0, "right_equal": 1}.items():
            sites = [iit.Site(module=f"layers.{half}", side="output")]
            edits[variable] = iit.Edit(sites, iit.LowRankRotatedSpaceIntervention(16, 2 + half))
        alignments.append(iit.Alignment(network, edits))
    return network, alignments


def trainings(folder, trainer):
    """Weights and figures of several trainings; 49 pairs leave one for the last batch of 16."""
    options = {"trainer": trainer, "batch_size": 16, "eval_batch_size": 8, "max_epochs": 3}
    results = {}

    def note(name, network, alignments, fits):
        weights = [p.detach().clone() for a in alignments for p in a.parameters()]
        results[name] = [*weights, *(p.detach().clone() for p in network.model.parameters())], fits

    network, (claim,) = claims()
    parts = partial(DAS, weights={"cause": 1.0, "isolate": 0.5})
    note("parts", network, [claim], [iit.fit(claim, sampled(), module=parts, **options)])

    network, (one, other) = claims(2)
    stopping = {"callbacks": [EarlyStopping(patience=1)]}
    fits = iit.fit(
        {"one": one, "other": other}, sampled(), **options | stopping | {"max_epochs": 5}
    )
    note("side by side", network, [one, other], list(fits.values()))

    network, (claim,) = claims()
    several = partial(trainer, accumulate_grad_batches=2, gradient_clip_val=0.1)
    fit = iit.fit(claim, sampled(fresh=True), module=IIT, **options | {"trainer": several})
    note("IIT on fresh pairs", network, [claim], [fit])

    network, (claim,) = claims()
    module = partial(IIT, trained=["left_equal"], weights={"behaviour": 0.0}, source_grad=True)
    first = options | {"max_epochs": 1, "batch_size": 2, "callbacks": [checkpoints(folder)]}
    iit.fit(claim, sampled(), module=module, **first)
    again = {"max_epochs": 2, "batch_size": 2, "ckpt_path": Path(folder, "kept", "last.ckpt")}
    network, (claim,) = claims()
    fit = iit.fit(claim, sampled(), module=module, **options | again)
    note("IIT, resumed, some batches train nothing", network, [claim], [fit])
    return results


def test_all_that_is_trained(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = trainings(alone, quiet)
    # The processes are started once for all of these trainings.
    with started(2, CPU, partial(trainings, together, TWO)):
        results = trainings(together, TWO)
    for name, (weights, fits) in expected.items():
        torch.testing.assert_close(results[name][0], weights, atol=1e-5, rtol=0, msg=name)
        for fit, of_one in zip(results[name][1], fits, strict=True):
            assert fit.value == pytest.approx(of_one.value), name
            assert fit._replace(value=0) == of_one._replace(value=0), name


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"devices": 2}, "More than one takes strategy=ddp"),
        ({"devices": 0, "strategy": "ddp"}, "devices=0, .* 1 to 8"),
        ({"devices": 9, "strategy": "ddp"}, r"devices=9, .* 1 to 8 .*pairs of a batch \(8\)"),
        ({"devices": "auto", "strategy": "ddp"}, "devices=auto"),
        ({"devices": [0]}, r"devices=\[0\]"),
        ({"devices": 2, "strategy": "fsdp"}, "strategy=fsdp.*none was seen to train rightly"),
        ({"devices": 2, "strategy": "ddp", "num_nodes": 2}, "num_nodes=2"),
    ],
)
def test_processes_that_do_not_fit_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        n_processes(partial(quiet, **asked), CPU, 8)


def test_a_process_for_each_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    ddp = partial(quiet, strategy="ddp")
    assert n_processes(partial(ddp, devices=2), torch.device("cuda", 0), 8) == 2
    assert n_processes(partial(ddp, devices=3), CPU, 8) == 3
    with pytest.raises(ValueError, match=r"devices=3, .* 1 to 2 devices.*CUDA_VISIBLE_DEVICES"):
        n_processes(partial(ddp, devices=3), torch.device("cuda", 0), 8)
    # The job of a sweep sees one.
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"devices=2, .* 1 to 1 devices"):
        n_processes(partial(ddp, devices=2), torch.device("cuda", 0), 8)
    assert n_processes(partial(ddp, devices=1), torch.device("cuda", 0), 8) == 1


@pytest.mark.parametrize(("rank", "index"), [(0, 1), (1, 2)])
def test_all_processes_name_the_same_gpus(monkeypatch, rank, index):
    """The network of the first process is on GPU 1, that of the second on GPU 2."""
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert trainer_options(2, torch.device("cuda", index))["devices"] == [1, 2]


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
@pytest.mark.parametrize("trainer", [quiet, TWO])
def test_processes_that_others_have_started_are_refused(monkeypatch, variable, trainer):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(ValueError, match=f"{variable}=4 .* Start one"):
        n_processes(trainer, CPU, 8)
    monkeypatch.setenv(variable, "1")
    n_processes(trainer, CPU, 8)


class Fails(DAS):
    """Ends in the second process, in the second epoch."""

    def on_train_epoch_start(self):
        if (self.global_rank, self.current_epoch) == (1, 1):
            raise ValueError("the second process has had enough")


class Waits(DAS):
    """Says that it is there, and then takes long."""

    def on_train_epoch_start(self):
        if self.global_rank == 0:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@pytest.mark.long
def test_the_error_of_another_process_is_the_error_of_the_fit():
    _, (claim,) = claims()
    with pytest.raises(ProcessRaisedException, match="the second process has had enough"):
        iit.fit(claim, sampled(), module=Fails, trainer=TWO, batch_size=16, max_epochs=3)
    assert not distributed.is_initialized()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_ctrl_c_ends_all_processes(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    _, (claim,) = claims()
    options = {"callbacks": [checkpoints(tmp_path)], "batch_size": 16, "max_epochs": 3}
    with pytest.raises(KeyboardInterrupt, match=r"start\.ckpt"):
        iit.fit(claim, sampled(), module=Waits, trainer=TWO, **options)
    signal.signal(signal.SIGINT, before)
    assert not distributed.is_initialized()


COMMAND = [
    *(sys.executable, "train.py", "+experiment=das_equality_by_hand", "logger=csv"),
    *("data.n_train=200", "data.n_val=100", "data.n_test=100", "trainer.max_epochs=2"),
]


def run(*overrides):
    command = [*COMMAND, *overrides]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)


@pytest.mark.long
def test_a_job_writes_once(tmp_path):
    for name, options in {"one": [], "two": ["trainer=ddp"]}.items():
        run(f"hydra.run.dir={tmp_path / name}", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert written(tmp_path / "two") == written(tmp_path / "one")
    rows = [read_metrics(tmp_path / name).rows for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1])
    for one, two in zip(*rows, strict=True):
        unknown = {"value": 0, "low": 0, "high": 0}
        assert replace(two, **unknown) == replace(one, **unknown)
        assert two.value == pytest.approx(one.value, abs=0.02)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_job_of_a_sweep_starts_its_processes(tmp_path, launcher):
    sweep = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    run("trainer=ddp", "seed=0,1", *sweep, "-m")
    for number in (0, 1):
        assert read_metrics(tmp_path / "sweep" / str(number)).rows
