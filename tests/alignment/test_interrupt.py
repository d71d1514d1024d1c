"""Ctrl-C in a fit, and what a checkpoint is compared by."""

import os
import signal
from functools import cache

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import iit
from iit.alignment import IIT
from iit.alignment.identity import check, mark
from iit.data import Pairs
from iit.evaluation import Trust, evaluate
from iit.network import mlp
from iit.tasks import equality

SITE = iit.Site(module="layers.1", side="output")
TASK = equality(n_objects=60)
FEW = Trust(random_subspaces=1, resamples=10)
SIZES = {"n_train": 32, "n_val": 16, "n_test": 16}


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A process that was started in the background ignores interrupts, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class CtrlC(L.Callback):
    """Interrupts in the second batch of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            os.kill(os.getpid(), signal.SIGINT)


def quiet(**options):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **options
    )


@cache
def sampled():
    return Pairs.sample(TASK, variable="left_equal", **SIZES)


def setting(right_only=False):
    torch.manual_seed(0)
    network = mlp(n_inputs=16, n_classes=2, width=16, depth=2)
    pairs = Pairs.sample(TASK, network, variable="left_equal", **SIZES) if right_only else sampled()
    alignment = iit.Alignment(
        network, {"left_equal": iit.Edit([SITE], iit.LowRankRotatedSpaceIntervention(16, 2))}
    )
    return network, pairs, alignment


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [iit.alignment.DAS, IIT])
@pytest.mark.parametrize(("epoch", "name"), [(0, "start"), (1, "last")])
def test_after_ctrl_c_the_message_leads_on_to_the_same_run(tmp_path, module, epoch, name):
    options = {
        "module": module,
        "trainer": quiet,
        "batch_size": 16,
        "max_epochs": 2,
        "folder": tmp_path,
    }
    network, pairs, whole = setting()
    fitted = iit.fit(whole, pairs, **options)
    expected = [
        parameter.clone() for parameter in (*whole.parameters(), *network.model.parameters())
    ]

    saved = ModelCheckpoint(
        dirpath=tmp_path, filename="last", every_n_epochs=1, enable_version_counter=False
    )
    network, pairs, part = setting()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(
        KeyboardInterrupt, match=rf"Go on, from the last epoch .*, with ckpt_path=.*{name}\.ckpt$"
    ):
        iit.fit(part, pairs, callbacks=[saved, CtrlC(epoch)], **options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not any(parameter.requires_grad for parameter in network.model.parameters())

    network, pairs, rest = setting()
    with torch.no_grad():
        for parameter in rest.parameters():
            parameter += 1.0  # what the checkpoint holds counts
    assert iit.fit(rest, pairs, ckpt_path=tmp_path / f"{name}.ckpt", **options) == fitted
    again = [*rest.parameters(), *network.model.parameters()]
    assert all(torch.equal(one, two) for one, two in zip(again, expected, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_where_nothing_was_kept_the_message_says_so(tmp_path):
    _, pairs, alignment = setting()
    with pytest.raises(KeyboardInterrupt, match="no checkpoint to go on from"):
        iit.fit(
            alignment, pairs, trainer=quiet, batch_size=16, callbacks=[CtrlC(0)], folder=tmp_path
        )


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_ends_leaves_no_checkpoint_of_its_start(tmp_path):
    _, pairs, alignment = setting()
    saved = ModelCheckpoint(dirpath=tmp_path, filename="last")
    iit.fit(
        alignment,
        pairs,
        trainer=quiet,
        batch_size=16,
        max_epochs=1,
        callbacks=[saved],
        folder=tmp_path,
    )
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_an_exit_that_is_no_interrupt_stays_one(tmp_path):
    class Leaves(L.Callback):
        def on_train_start(self, trainer, pl_module):
            raise SystemExit(3)

    _, pairs, alignment = setting()
    with pytest.raises(SystemExit, match="3"):
        iit.fit(alignment, pairs, trainer=quiet, callbacks=[Leaves()], folder=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_task_accuracy_after_iit_is_the_trained_networks(tmp_path):
    network, pairs, alignment = setting(right_only=True)
    # of the same words, and not what is fitted
    others = Pairs.sample(TASK, network, variable="left_equal", **SIZES)
    assert 0 < pairs.facts["right"]["test"] < pairs.facts["drawn"]["test"]
    iit.fit(
        alignment, pairs, module=IIT, trainer=quiet, batch_size=16, max_epochs=1, folder=tmp_path
    )
    with torch.no_grad():
        # Whatever it has learned, it now gives the answer that no kept prompt has.
        network.model.head.weight.zero_()
        network.model.head.bias.copy_(torch.tensor([0.0, 1.0]))
    assert set(pairs.split("test")["base_answer"]) == {0}
    for each in (pairs, others):
        (row,) = [row for row in evaluate(alignment, each, FEW) if row.metric == "task_accuracy"]
        assert row.value == 0.0


def compared(before, now):
    checkpoint = {}
    mark(checkpoint, before)
    check(checkpoint, now)


CONFIG = {
    "rank": 4,
    "site": {"layer": 3, "heads": (1, 2)},
    "objective": {"_target_": "a", "weights": {"x": 1.0}},
    "empty": {},
}


def test_equal_configurations_are_equal_after_json():
    compared(CONFIG, CONFIG)
    compared(CONFIG, CONFIG | {"site": {"heads": [1, 2], "layer": 3}})


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (CONFIG | {"rank": 8}, r"\(rank: 4 in the checkpoint, 8 now\)"),
        (
            CONFIG | {"site": {"layer": 4, "heads": [1, 2]}},
            r"\(site\.layer: 3 in the checkpoint, 4 now\)",
        ),
        (
            CONFIG | {"site": {"layer": 3, "heads": [2]}},
            r"\(site\.heads: \[1, 2\] in the checkpoint, \[2\] now\)",
        ),
        (
            CONFIG | {"objective": {"_target_": "a", "weights": {"x": 2}}},
            r"\(objective\.weights\.x: 1\.0 .* 2 now\)",
        ),
        (
            CONFIG | {"objective": None},
            r"\(objective\._target_: 'a' .* None now; objective\.weights\.x: 1\.0 .* None now\)",
        ),
        (CONFIG | {"more": {"key": 1}}, r"\(more\.key: None in the checkpoint, 1 now\)"),
        ({}, "empty: {} in the checkpoint, None now; objective"),
    ],
)
def test_the_keys_that_differ_are_named(now, message):
    with pytest.raises(ValueError, match=message):
        compared(CONFIG, now)


def test_a_checkpoint_of_another_program_is_refused():
    with pytest.raises(ValueError, match=r"not written by iit\.fit"):
        check({"state_dict": {}}, CONFIG)
