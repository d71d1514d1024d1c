"""Schedules count optimizer steps, act as declared, and go on where a run was left."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint

import iit
from iit.alignment import DAS, LogitDifference, Schedule, one
from iit.data import EncodedPairs
from tests.seeds import shifted


def quiet(**kwargs):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **kwargs
    )


def boundless(network, seed=0):
    torch.manual_seed(shifted(seed))
    site = iit.Site("block_output", layer=0, position="place")
    return one(
        network,
        "subject_position",
        site,
        lambda width: iit.BoundlessRotatedSpaceIntervention(width, temperature=8.0),
    )


class Seen(L.Callback):
    """At each step the temperature, and what was logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gate = pl_module.alignments[0].interventions[0].gate
        told = {
            k: float(v)
            for k, v in trainer.callback_metrics.items()
            if k.startswith(("schedule/", "train/"))
        }
        self.steps.append(told | {"temperature": float(gate.temperature)})


def test_a_schedule_goes_from_start_to_stop():
    assert [Schedule(1.0, 0.0, 4).at(step, 99) for step in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]
    assert [
        Schedule(1.0, 0.01, shape="exponential").at(step, 4) for step in (0, 2, 4)
    ] == pytest.approx([1.0, 0.1, 0.01])


def test_temperature_penalty_and_weights_act_as_declared_and_are_logged(toy, tmp_path):
    network, pairs = toy
    seen = Seen()

    def module(alignment):
        return DAS(
            alignment,
            temperature=Schedule(1.0, 0.25, 6, "exponential"),
            penalty=Schedule(0.0, 2.0),
            weights={"cause": Schedule(1.0, 3.0, 2), "isolate": 0.5},
        )

    def trainer(**kwargs):  # an optimizer step every two batches
        return quiet(accumulate_grad_batches=2, **kwargs)

    alignment = boundless(network)
    iit.fit(
        alignment,
        pairs,
        module=module,
        trainer=trainer,
        batch_size=12,
        max_epochs=2,
        folder=tmp_path,
        callbacks=[seen],
    )
    assert len(seen.steps) == 8
    for number, told in enumerate(seen.steps):
        step = number // 2
        assert told["temperature"] == pytest.approx(8.0 * 0.25 ** (step / 6))
        assert told["schedule/temperature"] == pytest.approx(0.25 ** (step / 6))
        assert told["schedule/penalty"] == pytest.approx(2.0 * step / 4)
        assert told["schedule/cause"] == pytest.approx(1 + 2 * min(step / 2, 1))
        parts = told["schedule/cause"] * told["train/cause"] + 0.5 * told["train/isolate"]
        if step:
            parts += told["schedule/penalty"] * told["train/penalty"]
        assert told["train/loss"] == pytest.approx(parts, rel=1e-5)
    assert "schedule/isolate" not in seen.steps[0]


def test_learned_gates_may_have_a_rate_of_their_own(toy):
    network, _ = toy
    alignment = boundless(network)
    gate = alignment.interventions[0].gate
    frame = alignment.interventions[0].basis
    groups = DAS(alignment, gate_lr=1e-2).configure_optimizers().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates.pop(id(p)) for p in gate.parameters()} == {1e-2}
    assert {rates.pop(id(p)) for p in frame.parameters()} == {5e-3}
    assert not rates
    site = iit.Site("block_output", layer=0, position="place")
    ungated = one(
        network,
        "subject_position",
        site,
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 2),
    )
    with pytest.raises(ValueError, match="no intervention has a learned gate"):
        DAS(ungated, gate_lr=1e-2)


def test_isolate_is_held_by_a_margin_under_the_logit_difference(toy):
    network, pairs = toy
    alignment = boundless(network)
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(24))
    logits = alignment.answer_logits(batch["base"], batch["sources"])[:, 0]
    label, own, changing = batch["base"]["answer"], batch["base_answer"], batch["changing"]
    others = logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)
    cause = (
        F.relu(2.0 - logits.gather(1, label) + logits.gather(1, own)).squeeze(1)[changing].mean()
    )
    isolate = F.relu(2.0 - logits.gather(1, label) + others).squeeze(1)[~changing].mean()
    module = DAS(alignment, weights={"cause": 1.5, "isolate": 0.5}, objective=LogitDifference(2.0))
    module.log = lambda *args, **kwargs: None
    torch.testing.assert_close(module.training_step(batch, 0), 1.5 * cause + 0.5 * isolate)
    assert float(isolate.detach()) > 0


def test_a_continued_training_has_the_schedule_of_an_uninterrupted_one(toy, tmp_path):
    network, pairs = toy

    def module(alignment):
        return DAS(
            alignment,
            temperature=Schedule(1.0, 0.01, 16, "exponential"),
            penalty=Schedule(0.0, 1.0, 16),
        )

    options = {"module": module, "trainer": quiet, "batch_size": 12, "folder": tmp_path}
    whole, seen = boundless(network), Seen()
    iit.fit(whole, pairs, max_epochs=4, callbacks=[seen], **options)
    part, later = boundless(network), Seen()
    kept = ModelCheckpoint(
        dirpath=tmp_path / "half", filename="last", save_top_k=-1, enable_version_counter=False
    )
    iit.fit(part, pairs, max_epochs=2, callbacks=[kept], **options)
    (checkpoint,) = (tmp_path / "half").glob("*.ckpt")
    part = boundless(network, seed=7)
    iit.fit(part, pairs, max_epochs=4, callbacks=[later], ckpt_path=checkpoint, **options)
    assert later.steps == seen.steps[8:]


def test_boundless_has_the_numbers_of_its_paper(configured, toy):
    cfg = configured("+experiment=das_equality", "module=boundless", "module.optimizer.lr=1e-3")
    module = instantiate(cfg.module)(boundless(toy[0]))
    intervention = instantiate(configured("intervention=boundless").intervention)(width=4)
    schedule = module._numbers["temperature"]
    assert [
        float(intervention.gate.temperature) * schedule.at(step, 10) for step in (0, 5, 10)
    ] == pytest.approx([50.0, 25.05, 0.1])
    assert module._numbers["penalty"] == 1.0
    groups = module.configure_optimizers().param_groups
    assert sorted(group["lr"] for group in groups) == [1e-3, 1e-2]


def test_schedules_that_cannot_be_are_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="at least one step"):
        Schedule(1.0, 0.0, steps=0)
    with pytest.raises(ValueError, match="none of"):
        Schedule(1.0, 0.0, shape="cubic")
    with pytest.raises(ValueError, match="stays above 0"):
        Schedule(1.0, 0.0, shape="exponential")
    with pytest.raises(ValueError, match="max_epochs"):
        Schedule(1.0, 0.0).at(3, float("inf"))
    network, _ = toy
    for weights, said in (
        ({"cause": 0.0}, "one part has to count"),
        ({"cause": -1.0}, "negative"),
        ({"cause": Schedule(1.0, -1.0)}, "negative"),
        ({"effect": 1.0}, r"\['effect'\] are no parts"),
    ):
        with pytest.raises(ValueError, match=said):
            DAS(boundless(network), weights=weights)
