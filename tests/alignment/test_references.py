"""The whole vector and a random subspace, logged beside a training that they do not touch."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import iit
from iit.alignment import DAS, IIT, side_by_side
from iit.alignment.references import random_frames, references, vanilla
from iit.data import EncodedPairs, Pairs
from iit.evaluation import outcomes
from iit.network import mlp, planted
from iit.report.curves import read_log
from iit.tasks import equality, modular_sum
from tests.seeds import shifted

SITE = iit.Site(module="read", side="input")
HIDDEN = iit.Site(module="layers.1", side="output")


def quiet(**kwargs):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **kwargs
    )


@pytest.fixture(scope="module")
def studied():
    network = planted()
    pairs = Pairs.sample(
        modular_sum(), network, n_train=64, n_val=60, n_test=20, variable="first", right_only=False
    )
    return network, pairs


def alignment_of(network, seed=0, rank=2):
    torch.manual_seed(shifted(seed))
    return iit.Alignment(
        network, {"first": iit.Edit(SITE, iit.LowRankRotatedSpaceIntervention(32, rank))}
    )


def logged(folder):
    """metric → its values, one an epoch."""
    series = read_log(next(folder.rglob("metrics.csv")))
    return {name: [value for _, value in points] for name, points in series.items()}


def fitted(alignment, pairs, folder, loggers=True, **options):
    options = {"trainer": quiet, "batch_size": 16, "max_epochs": 3, "folder": folder} | options
    return iit.fit(alignment, pairs, loggers=[CSVLogger(folder)] if loggers else (), **options)


def shares(alignment, pairs):
    """Of all and of the changing validation pairs, what is right."""
    encoded = EncodedPairs(pairs.split("validation"), pairs.variables, alignment.studied)
    right = outcomes(alignment, encoded).right[None]
    return {"iia": right.mean(), "iia_changing": right[encoded.changing.numpy()].mean()}


def vanilla_rows(alignment, pairs):
    rows = iit.evaluate(alignment, pairs, split="validation")
    return {
        row.subset: row.value for row in rows if (row.control, row.metric) == ("vanilla", "iia")
    }


def test_the_lines_are_what_evaluate_gives_and_the_random_subspace_is_of_the_same_rank(
    studied, tmp_path
):
    network, pairs = studied
    alignment = alignment_of(network)
    fitted(alignment, pairs, tmp_path)
    lines = logged(tmp_path)
    rows = vanilla_rows(alignment, pairs)
    assert 0 < rows["changing"] < 1
    assert lines["val/vanilla/iia"] == pytest.approx([rows["all"]] * 3)
    assert lines["val/vanilla/iia_changing"] == pytest.approx([rows["changing"]] * 3)
    frames = random_frames(alignment)
    assert frames.edits["first"].intervention.rank == 2
    assert not any(p.requires_grad for p in frames.parameters())
    for metric, share in shares(frames, pairs).items():
        assert lines[f"val/random_subspace/{metric}"] == pytest.approx([share] * 3)


def test_training_is_the_same_with_and_without_them(studied, tmp_path):
    network, pairs = studied
    found = []
    for loggers in (True, False):
        alignment, losses = alignment_of(network), []

        class Losses(L.Callback):
            def on_train_batch_end(
                self, trainer, pl_module, outputs, batch, batch_idx, losses=losses
            ):
                losses.append(float(outputs["loss"]))

            def on_validation_end(self, trainer, pl_module, losses=losses):
                losses.append(float(trainer.callback_metrics["val/loss"]))

        torch.manual_seed(shifted(5))
        fit = fitted(alignment, pairs, tmp_path / str(loggers), loggers, callbacks=[Losses()])
        found.append((next(alignment.parameters()).detach(), losses, fit, torch.rand(3)))
    (one, *rest, noise), (other, *others, again) = found
    assert torch.equal(one, other)
    assert rest == others
    assert torch.equal(noise, again), "no number was drawn from the generator of everybody"


def test_a_frozen_network_runs_them_once_and_a_continued_one_never(studied, tmp_path, monkeypatch):
    network, pairs = studied
    runs = []
    real = side_by_side.reference_iia
    monkeypatch.setattr(side_by_side, "reference_iia", lambda *args: runs.append(1) or real(*args))
    kept = tmp_path / "kept"
    saved = ModelCheckpoint(
        dirpath=kept, filename="last", every_n_epochs=1, enable_version_counter=False
    )
    options = {"eval_batch_size": 20}
    fitted(
        alignment_of(network), pairs, tmp_path / "first", callbacks=[saved], max_epochs=2, **options
    )
    assert len(runs) == 1
    whole, continued = alignment_of(network), alignment_of(network)
    again = fitted(
        continued, pairs, tmp_path / "again", ckpt_path=kept / "last.ckpt", max_epochs=4, **options
    )
    assert len(runs) == 1
    assert again == fitted(whole, pairs, tmp_path / "whole", max_epochs=4, **options)
    assert torch.equal(next(whole.parameters()), next(continued.parameters()))
    expected, lines = logged(tmp_path / "whole"), logged(tmp_path / "again")
    names = [name for name in expected if name.startswith(("val/vanilla", "val/random"))]
    assert len(names) == 4
    for name in names:
        assert lines[name] == expected[name][2:]


def test_cells_side_by_side_have_lines_each(studied, tmp_path):
    network, pairs = studied
    two = {"one": alignment_of(network), "two": alignment_of(network, rank=20)}
    fitted(two, pairs, tmp_path, max_epochs=2)
    lines = logged(tmp_path)
    expected = {name: shares(random_frames(cell), pairs)["iia"] for name, cell in two.items()}
    assert expected["one"] != expected["two"]
    assert lines["val/random_subspace/iia/one"] == pytest.approx([expected["one"]] * 2)
    assert lines["val/random_subspace/iia/two"] == pytest.approx([expected["two"]] * 2)


def test_blocks_and_joint_edits_have_both(toy, tmp_path):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position=["place", "last"])
    joint = iit.Alignment(
        network,
        {
            "subject_position": iit.Edit(
                site, iit.LowRankRotatedSpaceIntervention(32, 4), joint=True
            )
        },
    )
    rows = vanilla_rows(joint, pairs)
    fitted(joint, pairs, tmp_path / "joint", max_epochs=1)
    lines = logged(tmp_path / "joint")
    assert lines["val/vanilla/iia"] == pytest.approx([rows["all"]])
    assert random_frames(joint).edits["subject_position"].joint
    assert "val/random_subspace/iia" in lines

    network = planted()
    names = ["first", "second"]
    pairs = Pairs.sample(
        modular_sum(), network, n_train=32, n_val=60, n_test=20, variable=names, right_only=False
    )
    blocks = iit.Alignment(
        network, {SITE: iit.RotatedSpaceIntervention(32, blocks={"first": 2, "second": 3})}
    )
    fitted(blocks, pairs, tmp_path / "blocks", max_epochs=1)
    lines = logged(tmp_path / "blocks")
    assert vanilla(blocks).variables == random_frames(blocks).variables == ("first", "second")
    for control, other in references(blocks).items():
        for metric, share in shares(other, pairs).items():
            assert lines[f"val/{control}/{metric}"] == pytest.approx([share])


def edited(intervention):
    network = planted()
    return iit.Alignment(network, {"first": iit.Edit(SITE, intervention)})


@pytest.mark.parametrize(
    ("intervention", "controls"),
    [
        (iit.LowRankRotatedSpaceIntervention(32, 2), {"vanilla", "random_subspace"}),
        (iit.VanillaIntervention(32, units="0:4"), {"vanilla", "random_subspace"}),
        (iit.BoundlessRotatedSpaceIntervention(32), {"vanilla"}),
        (iit.RotatedSpaceIntervention(32), {"vanilla"}),
        (iit.VanillaIntervention(), {"vanilla"}),
        (iit.LoReFTIntervention(32, 2), set()),
    ],
)
def test_what_has_which(intervention, controls):
    assert references(edited(intervention)).keys() == controls


def test_where_the_network_learns_they_are_measured_each_epoch(tmp_path):
    torch.manual_seed(shifted(0))
    network = mlp(n_inputs=16, n_classes=2, width=16, depth=2)
    pairs = Pairs.sample(
        equality(), None, n_train=256, n_val=100, n_test=20, variable="left_equal", right_only=False
    )
    alignment = iit.Alignment(
        network, {"left_equal": iit.Edit(HIDDEN, iit.VanillaIntervention(16, units="0:8"))}
    )
    expected = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            others = references(alignment)
            expected.append(
                {
                    f"{name}/{m}": v
                    for name, other in others.items()
                    for m, v in shares(other, pairs).items()
                }
            )

    module = partial(IIT, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    fitted(alignment, pairs, tmp_path, module=module, max_epochs=4, callbacks=[Watch()])
    lines = logged(tmp_path)
    for name in expected[0]:
        assert lines[f"val/{name}"] == pytest.approx([each[name] for each in expected])
    assert len(set(lines["val/vanilla/iia"])) > 1


def test_a_training_on_the_task_alone_has_none(tmp_path):
    network = mlp(n_inputs=16, n_classes=2, width=16, depth=2)
    pairs = Pairs.sample(
        equality(), None, n_train=32, n_val=16, n_test=16, variable=(), right_only=False
    )
    fitted(iit.alignment.none(network), pairs, tmp_path, module=IIT, max_epochs=1)
    assert not any("vanilla" in name for name in logged(tmp_path))
    assert issubclass(DAS, side_by_side.SideBySide)
