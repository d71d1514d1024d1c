"""Alignments trained side by side are what each would be alone."""

import lightning as L
import pytest
import torch

import iit
from iit.alignment import DAS, IIT, EarlyStopping, one
from iit.intervened import ActivationStore, passes
from iit.result import clustered_interval
from tests.seeds import shifted


def cells_of(network):
    """Sites × ranks × seeds."""
    made = {}
    for name, component, layer, position, rank, seed in (
        ("early", "block_output", 0, "place", 4, 0),
        ("early, rank 2", "block_output", 0, "place", 2, 0),
        ("early, seed 1", "block_output", 0, "place", 4, 1),
        ("mlp.1", "mlp_output", 1, "place", 4, 0),
        ("last", "block_output", 0, "last", 4, 0),
    ):
        torch.manual_seed(shifted(seed))
        site = iit.Site(component, layer=layer, position=position)
        made[name] = one(
            network,
            "subject_position",
            site,
            lambda width, rank=rank: iit.LowRankRotatedSpaceIntervention(width, rank),
        )
    return made


def quiet(**kwargs):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **kwargs
    )


class Losses(L.Callback):
    def __init__(self):
        self.seen = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name in pl_module.running:
            key = f"train/loss/{name}" if name else "train/loss"
            self.seen.setdefault(name, []).append(float(trainer.callback_metrics[key]))


@pytest.fixture(autouse=True)
def same_batches(monkeypatch):
    """Batches are cut by what examples cost; alone and together they have to be the same ones."""
    monkeypatch.setattr(
        iit.Alignment,
        "n_columns",
        lambda self, base, active=None: torch.ones(len(base["input_ids"]), dtype=int),
    )


@pytest.mark.parametrize("clip", [0.05, pytest.param(None, marks=pytest.mark.long)])
def test_twenty_steps_together_are_twenty_steps_alone(toy, tmp_path, clip):
    network, pairs = toy

    def trainer(**kwargs):
        return quiet(gradient_clip_val=clip, **kwargs)

    options = {"trainer": trainer, "batch_size": 12, "max_epochs": 5, "seed": 3, "folder": tmp_path}
    alone, expected, fits = {}, cells_of(network), {}
    for name, cell in expected.items():
        watch = Losses()
        fits[name] = iit.fit(cell, pairs, callbacks=[watch], **options)
        alone[name] = watch.seen[""]
        assert len(alone[name]) == 20
    watch, together = Losses(), cells_of(network)
    found = iit.fit(together, pairs, callbacks=[watch], **options)
    for name, losses in alone.items():
        assert watch.seen[name] == pytest.approx(losses, abs=1e-4)
        assert (found[name].epoch, found[name].n_epochs, found[name].n_steps) == (
            fits[name].epoch,
            5,
            20,
        )
        torch.testing.assert_close(
            next(together[name].parameters()),
            next(expected[name].parameters()),
            atol=1e-4,
            rtol=1e-4,
        )
    assert len({cell.store for cell in together.values()}) == 1


def test_passes_that_coincide_are_shared(toy, tmp_path, monkeypatch):
    network, pairs = toy
    sizes = []
    real = passes.resumed_logits
    monkeypatch.setattr(
        passes, "resumed_logits", lambda runs, *args: sizes.append(len(runs)) or real(runs, *args)
    )
    iit.fit(cells_of(network), pairs, trainer=quiet, batch_size=16, max_epochs=2, folder=tmp_path)
    assert set(sizes) == {4}, "of the five cells four start at the second block and the same token"


TABLE = {
    "early": [(10, 0.5), (8, 0.6), (6, 0.7), (4, 0.8), (2, 0.9)],
    "last": [(2, 0.1), (4, 0.2), (6, 0.3), (8, 0.4), (10, 0.5)],
    "mlp.1": [(6, 0.7), (6, 0.6), (10, 0.5), (10, 0.5), (2, 0.4)],
}
"""(right pairs of 20, loss) of each epoch. A resample of 6 right pairs has 10 in 5% of cases, one
of 4 in 0.3%.
"""


class Told(DAS):
    """A module whose cells score what a table says."""

    sizes: list[dict]

    def validation_step(self, batch, batch_index):
        for name in self.running:
            right, loss = TABLE[name][self.current_epoch]
            self.log(f"val/iia_changing/{name}", right / 20)
            self.log(f"val/loss/{name}", loss)

    def on_validation_epoch_end(self):
        pass

    def interval(self, monitor, name, resamples=500):
        right, _ = TABLE[name][self.current_epoch]
        return clustered_interval(
            [1.0] * right + [0.0] * (20 - right), range(20), resamples=resamples
        )

    def on_train_epoch_start(self):
        self.sizes.append(
            {
                name: next(self.module_of(name).parameters()).detach().clone()
                for name in self.members
            }
        )


def told_cells(network):
    return {name: cell for name, cell in cells_of(network).items() if name in TABLE}


def test_each_cell_stops_and_is_put_back_by_itself(toy, tmp_path):
    network, pairs = toy
    Told.sizes = []
    cells = told_cells(network)
    found = iit.fit(
        cells,
        pairs,
        module=Told,
        trainer=quiet,
        max_epochs=5,
        folder=tmp_path,
        callbacks=[EarlyStopping(patience=2)],
    )
    assert {name: (fit.epoch, fit.n_epochs) for name, fit in found.items()} == {
        "early": (0, 3),
        "last": (2, 5),
        "mlp.1": (2, 5),
    }
    assert {name: fit.value for name, fit in found.items()} == {
        "early": 0.5,
        "last": 0.3,
        "mlp.1": 0.5,
    }
    at = Told.sizes
    assert torch.equal(at[3]["early"], at[4]["early"]), "a stopped cell is not trained on"
    assert not torch.equal(at[3]["last"], at[4]["last"])
    assert torch.equal(next(cells["early"].parameters()), at[1]["early"]), (
        "the weights after the epoch that is kept"
    )
    assert torch.equal(next(cells["last"].parameters()), at[3]["last"])


def test_when_all_have_stopped_training_ends(toy, tmp_path):
    network, pairs = toy
    Told.sizes = []
    cells = {"early": told_cells(network)["early"]}
    found = iit.fit(
        cells,
        pairs,
        module=Told,
        trainer=quiet,
        max_epochs=5,
        folder=tmp_path,
        callbacks=[EarlyStopping(2)],
    )
    assert found["early"].n_epochs == 3
    assert found["early"].n_steps == 3 * 2


def test_a_continued_training_of_several_cells(toy, tmp_path):
    network, pairs = toy
    Told.sizes = []
    options = {"module": Told, "trainer": quiet, "batch_size": 16, "seed": 3, "folder": tmp_path}

    def callbacks(*parts):
        saved = L.pytorch.callbacks.ModelCheckpoint(
            dirpath=tmp_path.joinpath(*parts),
            filename="last",
            every_n_epochs=1,
            enable_version_counter=False,
        )
        return [EarlyStopping(patience=2), saved]

    whole = told_cells(network)
    expected = iit.fit(whole, pairs, max_epochs=5, callbacks=callbacks("whole"), **options)
    for epochs in (2, 3, 4):  # before, when and after one of them stops
        iit.fit(
            told_cells(network),
            pairs,
            max_epochs=epochs,
            callbacks=callbacks("part", str(epochs)),
            **options,
        )
        continued = told_cells(network)
        last = tmp_path / "part" / str(epochs) / "last.ckpt"
        found = iit.fit(
            continued,
            pairs,
            max_epochs=5,
            callbacks=[EarlyStopping(patience=2)],
            ckpt_path=last,
            **options,
        )
        assert found == expected
        for name, cell in whole.items():
            assert torch.equal(next(cell.parameters()), next(continued[name].parameters()))


def test_what_cannot_be_trained_side_by_side(toy, tiny_llama):
    network, _ = toy
    cells = cells_of(network)
    with pytest.raises(ValueError, match="no alignment was given"):
        DAS({})
    with pytest.raises(ValueError, match="'a' and 'b' share weights"):
        DAS({"a": cells["early"], "b": cells["early"]})
    site = iit.Site("block_output", layer=0, position="place")
    vanilla = one(network, "subject_position", site, iit.VanillaIntervention)
    with pytest.raises(ValueError, match=r"nothing to train \(b\)"):
        DAS({"a": cells["early"], "b": vanilla})
    other = one(
        tiny_llama,
        "subject_position",
        site,
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 4),
    )
    with pytest.raises(ValueError, match="'b' is of another network"):
        DAS({"a": cells["early"], "b": other})
    with pytest.raises(ValueError, match="IIT trains the network, for one alignment"):
        IIT(cells)


def test_a_store_given_to_one_serves_all(toy, tmp_path):
    network, pairs = toy
    cells = cells_of(network)
    cells["last"].store = store = ActivationStore(network.model, layers=[1])
    iit.fit(cells, pairs, trainer=quiet, max_epochs=1, folder=tmp_path)
    assert {cell.store for cell in cells.values()} == {store}
