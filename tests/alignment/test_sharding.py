"""Two processes that share out a network's weights train what one trains, up to rounding."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.distributed.tensor import DTensor

import iit
from iit.alignment import IIT, processes
from iit.alignment.processes import started

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:`weights_only` was not set"),
]
quiet = partial(
    L.Trainer, enable_progress_bar=False, enable_model_summary=False, deterministic=True
)
TWO = partial(quiet, strategy="fsdp", devices=2)


class Shares(L.Callback):
    """Notes which weights are shared out during the training."""

    def on_train_start(self, trainer, pl_module):
        self.kinds = [isinstance(weight, DTensor) for weight in pl_module.network.parameters()]


def claim(network, component):
    network = deepcopy(network)
    site = iit.Site(component, layer=0, position="last")
    edits = {"subject_position": iit.Edit([site], iit.VanillaIntervention())}
    return network, iit.Alignment(network, edits)


def trainings(toy, folder, trainer):
    """Fits and weights of several trainings; the last batch of an epoch is an odd one."""
    network, pairs = toy
    options = {"batch_size": 13, "eval_batch_size": 5, "folder": folder, "module": IIT}
    results = []

    def note(component="block_output", trainer=trainer, callbacks=(), **further):
        studied, alignment = claim(network, component)
        before, shares = list(studied.model.parameters()), Shares()
        further = {"max_epochs": 2, "callbacks": [shares, *callbacks]} | options | further
        fit = iit.fit(alignment, pairs, trainer=trainer, **further)
        # The network is its own again, with the same parameters and no hooks.
        assert list(map(id, studied.model.parameters())) == list(map(id, before))
        assert all(type(weight) is torch.nn.Parameter for weight in before)
        assert type(studied.model) is type(network.model)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in studied.model.modules())
        weights = {
            name: weight.detach().clone() for name, weight in studied.model.named_parameters()
        }
        results.append((fit, weights, shares.kinds))

    # The run of the sources would end inside of a block.
    clipped = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2}
    note("mlp_output", partial(trainer, **clipped), loggers=[CSVLogger(folder)])
    by_value = {"gradient_clip_algorithm": "value", "gradient_clip_val": 0.01}
    note(trainer=partial(trainer, **by_value))
    kept = ModelCheckpoint(
        Path(folder, "kept"), "last", every_n_epochs=1, enable_version_counter=False
    )
    note(callbacks=[kept], max_epochs=1)
    note(ckpt_path=Path(folder, "kept", "last.ckpt"))
    return results


def on_processors(toy, folder):
    """The trainings on two processes of a machine without GPUs."""
    with mock.patch.object(processes, "SHARDED_ON", "cpu"):
        return trainings(toy, folder, TWO)


@pytest.mark.long
def test_a_network_in_shares(toy, tmp_path):
    expected = trainings(toy, tmp_path / "alone", quiet)
    call = partial(on_processors, toy, tmp_path / "together")
    with started(2, torch.device("cpu"), call):
        results = call()
    for (fit, weights, shares), (of_one, expected_weights, unshared) in zip(
        results, expected, strict=True
    ):
        assert all(shares)
        assert not any(unshared)
        torch.testing.assert_close(weights, expected_weights, atol=1e-4, rtol=0)
        assert fit.value == pytest.approx(of_one.value)
        assert fit._replace(value=0) == of_one._replace(value=0)


def test_other_gradients_are_refused(toy, monkeypatch):
    monkeypatch.setattr(processes, "SHARDED_ON", "cpu")
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position="last")
    edit = iit.Edit(
        [site], iit.LowRankRotatedSpaceIntervention(network.model.config.hidden_size, 4)
    )
    alignment = iit.Alignment(network, {"subject_position": edit})
    with pytest.raises(ValueError, match="edits that have no weights"):
        iit.fit(alignment, pairs, module=IIT, trainer=TWO, batch_size=8)
    _, alignment = claim(network, "block_output")
    with pytest.raises(ValueError, match="takes source_grad=false"):
        iit.fit(alignment, pairs, module=partial(IIT, source_grad=True), trainer=TWO, batch_size=8)


def test_a_frozen_network_and_a_machine_without_gpus_are_refused(toy, monkeypatch):
    network, pairs = toy
    _, alignment = claim(network, "block_output")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"strategy=fsdp.*over 2 GPUs or more"):
        iit.fit(alignment, pairs, module=IIT, trainer=TWO, batch_size=8)
    monkeypatch.setattr(processes, "SHARDED_ON", "cpu")
    with pytest.raises(ValueError, match=r"strategy=fsdp.*device_map spreads a frozen one"):
        iit.fit(alignment, pairs, trainer=TWO, batch_size=8)
