"""Two processes train what one trains: the same weights, epochs and figures, up to rounding."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache, partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import distributed

import iit
from iit.alignment import DAS, IIT, EarlyStopping, processes
from iit.alignment.processes import gathered, n_processes, share, started, trainer_options
from iit.data import Pairs
from iit.intervened import ActivationStore, store
from iit.network import mlp
from iit.tasks import equality

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
CPU = torch.device("cpu")
SITE = iit.Site(module="layers.1", side="output")


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


def counted(folder):
    return [int(path.read_text()) for path in sorted(folder.glob("runs-*"))]


def toy_alignment(network):
    torch.manual_seed(0)
    site = iit.Site("block_output", layer=0, position="place")
    edit = iit.Edit([site], iit.LowRankRotatedSpaceIntervention(network.model.config.hidden_size, 4))
    return iit.Alignment(network, {"subject_position": edit})


def test_a_training_on_two_processes(toy, tmp_path):
    """The last batch of an epoch has 13 pairs, in shares of 7 and 6; of validation 2, then 1."""
    network, pairs = toy

    def fitted(name, trainer, **options):
        alignment = toy_alignment(network)
        alignment.store = ActivationStore(network.model)
        folder = tmp_path / name
        folder.mkdir()
        saved = ModelCheckpoint(f"{folder}/kept", "last", every_n_epochs=1, enable_version_counter=False)
        fit = iit.fit(
            alignment,
            pairs,
            module=lambda alignment: DAS(alignment, penalty=0.0),
            trainer=trainer,
            callbacks=[saved, CountsRuns(folder)],
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
    assert not distributed.is_initialized() and "LOCAL_RANK" not in os.environ
    # Each prompt is run once, whichever process needs it first.
    assert sum(counted(together)) == sum(counted(alone)) and len(counted(together)) == 2
    # What the processes ran is the first one's now, without a shelf.
    assert two.store is not None and len(two.store) == len(one.store)
    assert two.store._shelf is None
    # One process writes.
    files = [sorted(p.name for p in f.rglob("*") if "runs" not in p.name) for f in (alone, together)]
    assert files[0] == files[1]
    lines = [(folder / "csv" / "metrics.csv").read_text().splitlines() for folder in (alone, together)]
    assert len(lines[0]) == len(lines[1])
    # The training goes on in one process, as one that was never anything else.
    rest, fit_of_rest, _ = fitted("rest", quiet, ckpt_path=together / "kept" / "last.ckpt")
    assert fit_of_rest._replace(value=0) == fit_of_one._replace(value=0)


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
    for units in [slice(0, 8), slice(4, 12), slice(8, 16)][:n]:
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
    fits = iit.fit({"one": one, "other": other}, sampled(), **options | stopping | {"max_epochs": 5})
    note("side by side", network, [one, other], list(fits.values()))

    network, (claim,) = claims()
    several = partial(trainer, accumulate_grad_batches=2, gradient_clip_val=0.1)
    fit = iit.fit(claim, sampled(fresh=True), module=IIT, **options | {"trainer": several})
    note("IIT on fresh pairs", network, [claim], [fit])

    network, (claim,) = claims()
    module = partial(IIT, trained=["left_equal"], weights={"behaviour": 0.0}, source_grad=True)
    saved = ModelCheckpoint(f"{folder}/kept", "last", every_n_epochs=1, enable_version_counter=False)
    first = options | {"max_epochs": 1, "batch_size": 2, "callbacks": [saved]}
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
