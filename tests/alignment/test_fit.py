"""Training on a small language model: only the interventions learn, the best epoch is kept, a
continued training is the same training.
"""

import sys
from contextlib import nullcontext
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import iit
from iit.alignment import DAS, EarlyStopping, Schedule, one
from iit.data import Pairs
from iit.evaluation import outcomes
from iit.intervention import All, Basis, Coordinates, Intervention
from iit.intervention.operation import Swap
from iit.result import clustered_interval
from iit.tasks import ioi
from tests.seeds import shifted


def alignment_of(network, seed=0):
    torch.manual_seed(shifted(seed))
    site = iit.Site("block_output", layer=0, position="place")
    return one(
        network,
        "subject_position",
        site,
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 4),
    )


def quiet(**kwargs):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **kwargs
    )


class StopAfter(L.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.should_stop = True


def checkpoints(folder):
    return L.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, filename="last", every_n_epochs=1, enable_version_counter=False
    )


def test_a_frame_that_is_bent_far_is_orthonormal_again_after_training(toy):
    network, pairs = toy
    alignment = alignment_of(network)
    (intervention,) = alignment.interventions
    weight = intervention.basis.weight
    with torch.no_grad():
        weight.mul_(torch.tensor([1.0, 1.0, 1.0, 1e-4]))
    slow = partial(DAS, optimizer=partial(torch.optim.Adam, lr=1e-7))
    iit.fit(alignment, pairs, trainer=quiet, module=slow, batch_size=16, max_epochs=1)
    values = torch.linalg.svdvals(weight.detach())
    assert float(values[0] / values[-1]) < 2


def test_a_continued_training_ends_with_the_same_weights(toy, tmp_path):
    network, pairs = toy
    common = {"trainer": quiet, "batch_size": 16, "max_epochs": 4, "seed": 3, "config": {"rank": 4}}
    whole = alignment_of(network)
    fitted = iit.fit(whole, pairs, folder=tmp_path, **common)
    part = alignment_of(network)
    iit.fit(part, pairs, folder=tmp_path, callbacks=[checkpoints(tmp_path), StopAfter(2)], **common)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["alignments.0.interventions.0.basis.weight"], (
        "checkpoints hold the intervention only"
    )
    continued = alignment_of(network, seed=99)
    again = iit.fit(continued, pairs, folder=tmp_path, ckpt_path=tmp_path / "last.ckpt", **common)
    assert torch.equal(next(continued.parameters()), next(whole.parameters()))
    assert again == fitted
    with pytest.raises(
        ValueError, match=r"another configuration \(rank: 4 in the checkpoint, 8 now\)"
    ):
        iit.fit(
            alignment_of(network),
            pairs,
            folder=tmp_path,
            ckpt_path=tmp_path / "last.ckpt",
            **common | {"config": {"rank": 8}},
        )


class Told(DAS):
    """A module whose epochs are what a table says: (pairs that are right, pairs, loss). Each pair
    has a base prompt of its own.
    """

    table: list[tuple[int, int, float]]

    def validation_step(self, batch, batch_index):
        right, n, loss = self.table[self.current_epoch]
        self.log("val/iia_changing", right / n)
        self.log("val/loss", loss)

    def on_validation_epoch_end(self):
        self.weights.append(next(self.alignments.parameters()).detach().clone())

    def interval(self, monitor, name, resamples=500):
        right, n, _ = self.table[self.current_epoch]
        return clustered_interval(np.arange(n) < right, np.arange(n), resamples=resamples)


def told(*table):
    return type("Told", (Told,), {"table": list(table), "weights": []})


@pytest.mark.parametrize(
    ("table", "epoch"),
    [
        # Of 20 pairs with p = 0.85 a resample has 19 right, or more, in 18% of cases; with p = 0.6
        # in 0.05%.
        ([(19, 20, 1.0), (17, 20, 0.5), (12, 20, 0.1)], 1),
        # Ten times the pairs: the interval of 0.85 ends at 0.90.
        ([(190, 200, 1.0), (170, 200, 0.5), (120, 200, 0.1)], 0),
        ([(20, 20, 0.9), (20, 20, 0.3), (20, 20, 0.6)], 1),
        ([(20, 20, 0.9), (20, 20, 0.3), (20, 20, 0.3)], 1),
        # A later epoch is so much better that the earlier ones no longer count.
        ([(12, 20, 0.1), (13, 20, 0.2), (20, 20, 0.9)], 2),
        # The first has the highest accuracy. With p = 0.65 a resample has 17 right in 4% of cases,
        # and 18 in 1%.
        ([(18, 20, 1.0), (17, 20, 0.5), (13, 20, 0.1)], 1),
        ([(17, 20, 1.0), (13, 20, 0.1)], 1),
        ([(20, 20, float("nan")), (19, 20, 0.5)], 1),
    ],
)
def test_of_the_epochs_that_accuracy_cannot_tell_apart_the_least_loss_is_kept(
    toy, tmp_path, table, epoch
):
    network, pairs = toy
    alignment, module = alignment_of(network), told(*table)
    options = {"trainer": quiet, "batch_size": 16, "folder": tmp_path}
    fitted = iit.fit(alignment, pairs, module=module, max_epochs=len(table), **options)
    right, n, _ = table[epoch]
    assert fitted == (epoch, "val/iia_changing", right / n, len(table), 3 * len(table))
    assert [torch.equal(each, next(alignment.parameters())) for each in module.weights] == [
        e == epoch for e in range(len(table))
    ]


def test_a_loss_decides_alone_and_stopping_waits_for_it(toy, tmp_path):
    network, pairs = toy
    module = told((10, 20, 0.9), (8, 20, 0.4), (11, 20, 0.6), (12, 20, 0.5), (20, 20, 0.1))
    options = {
        "module": module,
        "trainer": quiet,
        "batch_size": 16,
        "folder": tmp_path,
        "monitor": "val/loss",
    }
    fitted = iit.fit(
        alignment_of(network), pairs, callbacks=[EarlyStopping(patience=2)], max_epochs=5, **options
    )
    assert (fitted.epoch, fitted.monitor, fitted.n_epochs) == (1, "val/loss", 4)
    assert fitted.value == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("table", "n_epochs"),
    [
        # the loss falls
        ([(20, 20, 0.5), (20, 20, 0.4), (20, 20, 0.3), (20, 20, 0.2), (20, 20, 0.1)], 5),
        # the accuracy rises
        ([(10, 20, 0.1), (11, 20, 0.2), (12, 20, 0.3), (13, 20, 0.4), (14, 20, 0.5)], 5),
        ([(10, 20, 0.3), (10, 20, 0.3), (9, 20, 0.4), (20, 20, 0.1), (20, 20, 0.1)], 3),
        ([(10, 20, 0.3), (10, 20, 0.4), (10, 20, 0.2), (9, 20, 0.3), (10, 20, 0.2)], 5),
        (
            [
                (10, 20, float("nan")),
                (10, 20, float("nan")),
                (10, 20, float("nan")),
                (11, 20, 0.1),
                (11, 20, 0.1),
            ],
            3,
        ),
    ],
)
def test_training_stops_when_neither_accuracy_nor_loss_improves(toy, tmp_path, table, n_epochs):
    network, pairs = toy
    options = {"module": told(*table), "trainer": quiet, "batch_size": 16, "folder": tmp_path}
    fitted = iit.fit(
        alignment_of(network), pairs, callbacks=[EarlyStopping(patience=2)], max_epochs=5, **options
    )
    assert fitted.n_epochs == n_epochs


@pytest.mark.parametrize(
    ("weights", "metric"), [(None, "iia"), ({"cause": 1.0, "isolate": 1.0}, "disentangle")]
)
def test_what_chooses_is_what_evaluate_gives(toy, tmp_path, weights, metric):
    """MDAS goes by both kinds of pairs."""
    network, pairs = toy
    alignment = alignment_of(network)
    module, seen = partial(DAS, weights=weights), {}

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen[trainer.current_epoch] = (
                pl_module.interval(pl_module.monitor, "", resamples=2000),
                dict(trainer.callback_metrics),
            )

    options = {
        "module": module,
        "trainer": quiet,
        "batch_size": 16,
        "max_epochs": 3,
        "folder": tmp_path,
    }
    fitted = iit.fit(alignment, pairs, callbacks=[Watch()], **options)
    interval, logged = seen[fitted.epoch]
    rows = iit.evaluate(alignment, pairs, split="validation", controls=False)
    subset = "changing" if metric == "iia" else "all"
    (row,) = [row for row in rows if (row.metric, row.subset) == (metric, subset)]
    assert (row.value, row.n) == (interval.value, interval.n)
    assert fitted.value == row.value
    # An evaluation is about other templates; epochs are compared on the same prompts.
    encoded = iit.data.EncodedPairs(pairs.split("validation"), pairs.variable, network)
    changing = encoded.changing.numpy()
    among = changing if metric == "iia" else np.ones_like(changing)
    right = outcomes(alignment, encoded).right[None][among]
    groups = None if metric == "iia" else changing
    assert (
        clustered_interval(
            right.astype(float), np.array(encoded.bases)[among], groups=groups, resamples=2000
        )
        == interval
    )
    assert fitted.monitor == ("val/iia_changing" if metric == "iia" else "val/disentangle")
    for metric, subset in (("iia", "all"), ("iia_changing", "changing")):
        (row,) = [row for row in rows if (row.metric, row.subset) == ("iia", subset)]
        assert float(logged[f"val/{metric}"]) == pytest.approx(row.value)


def test_mdas_weighs_its_validation_loss_as_its_training(toy, tmp_path):
    """By what schedules end with, so that epochs can be compared."""
    network, pairs = toy
    encoded = iit.data.EncodedPairs(pairs.split("validation"), pairs.variable, network)
    batch = encoded.batch(range(len(encoded)))
    losses = {}

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            logits = pl_module.module_of("").answer_logits(batch["base"], batch["sources"])
            each = (
                -logits.log_softmax(-1).gather(2, batch["base"]["answer"].unsqueeze(-1)).flatten()
            )
            kinds = each[batch["changing"]].mean(), each[~batch["changing"]].mean()
            losses[trainer.current_epoch] = (
                float(trainer.callback_metrics["val/loss"]),
                float(2 * kinds[0] + 0.5 * kinds[1]),
            )

    module = partial(DAS, weights={"cause": 2.0, "isolate": Schedule(0.0, 0.5, steps=50)})
    iit.fit(
        alignment_of(network),
        pairs,
        module=module,
        trainer=quiet,
        callbacks=[Watch()],
        max_epochs=2,
        folder=tmp_path,
    )
    for found, expected in losses.values():
        assert found == pytest.approx(expected, rel=1e-4)


def test_an_unknown_monitor_is_refused_with_the_choices(toy, tmp_path):
    network, pairs = toy
    with pytest.raises(
        ValueError, match=r"monitor='val/acc'.*val/loss, val/iia, val/iia_changing, val/disentangle"
    ):
        iit.fit(alignment_of(network), pairs, trainer=quiet, folder=tmp_path, monitor="val/acc")


@pytest.mark.parametrize("fails", [False, True])
def test_learned_gates_are_hard_after_a_fit_and_soft_in_the_next(toy, tmp_path, fails):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position="place")
    alignment = one(
        network,
        "subject_position",
        site,
        lambda width: iit.BoundlessRotatedSpaceIntervention(width),
    )
    gate = alignment.edits["subject_position"].intervention.gate
    soft = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            soft.append(bool(((gate() > 0) & (gate() < 1)).any()))
            if fails:
                raise RuntimeError("stop here")

    for _ in range(2):
        soft.clear()
        with pytest.raises(RuntimeError) if fails else nullcontext():
            iit.fit(
                alignment,
                pairs,
                trainer=quiet,
                callbacks=[Watch()],
                batch_size=24,
                max_epochs=1,
                folder=tmp_path,
            )
        assert soft
        assert all(soft)
        assert not alignment.training
        assert set(gate().tolist()) <= {0.0, 1.0}


def test_what_was_trained_stays_at_its_site(toy, tmp_path):
    """Lightning takes a module that it has trained on a GPU to the CPU; here, "meta" stands for
    the place it is taken to.
    """
    network, pairs = toy
    alignment = alignment_of(network)

    class Elsewhere(L.Trainer):
        def fit(self, module, **options):
            super().fit(module, **options)
            module.to("meta")

    iit.fit(alignment, pairs, trainer=Elsewhere, batch_size=16, max_epochs=1, folder=tmp_path)
    assert {parameter.device for parameter in alignment.parameters()} == {network.device}
    assert alignment.double().interventions[0].basis.weight.dtype == torch.float64
    alignment.float()
    iit.evaluate(alignment, pairs, split="validation", controls=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_alignment_is_trained_and_scored_on_a_gpu(tmp_path):
    network = iit.load_network("smollm2", device="cuda")
    pairs = Pairs.sample(ioi(), network, n_train=16, n_val=8, n_test=8)
    alignment = iit.Alignment(
        network,
        {
            "subject_position": iit.Edit(
                iit.Site("block_output", layer=17, position="s2"),
                iit.LowRankRotatedSpaceIntervention(576, 4),
            )
        },
    )
    iit.fit(alignment, pairs, trainer=quiet, max_epochs=1, folder=tmp_path)
    assert iit.evaluate(alignment, pairs, split="validation")


def test_an_alignment_answers_for_its_network_and_keeps_what_it_ran(toy, monkeypatch):
    network, pairs = toy
    alignment = alignment_of(network)
    alignment.store = iit.intervened.ActivationStore(network.model)
    rows = pairs.split("train").to_list()
    texts = [row["base"] for row in rows]
    encoded = network.encode(texts)
    with torch.no_grad():
        logits = network.model(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        ).logits
    best = (
        logits.gather(
            1, encoded["positions"]["last"].unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        )
        .argmax(-1)
        .flatten()
    )
    given = [f" {network.tokenizer.decode([token])}" for token in best]
    answers = [answer if number % 3 else " James" for number, answer in enumerate(given)]
    expected = network.answers_right(texts, answers)
    assert expected.any()
    assert not expected.all()
    assert (alignment.answers_right(texts, answers) == expected).all()
    lengths = []
    block = type(network.model.model.layers[0].mlp)
    forward = block.forward
    monkeypatch.setattr(
        block, "forward", lambda self, x: lengths.append(x.shape[1]) or forward(self, x)
    )
    assert (alignment.answers_right(texts, answers) == expected).all()
    encoded = iit.data.EncodedPairs(pairs.split("train"), pairs.variable, network)
    for batch in encoded.batches(16):
        alignment.answer_logits(batch["base"], batch["sources"])
    # Of filtering and of each batch only the second block ran, although these prompts are edited,
    # and sources, for the first time. The first edited batch is compared with a whole run: of two
    # blocks, and of the first one for the sources.
    assert len(lengths) == 1 + len(list(encoded.batches(16))) + 3
    with pytest.raises(ValueError, match="make the alignment with a LanguageModel"):
        iit.Alignment(network.model, alignment.edits).answers_right(texts, answers)


def test_only_the_intervention_learns(toy, tmp_path):
    network, pairs = toy
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    alignment = alignment_of(network)
    start = next(alignment.parameters()).clone()
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(float(outputs["loss"]))

    iit.fit(
        alignment,
        pairs,
        trainer=quiet,
        batch_size=16,
        max_epochs=5,
        folder=tmp_path,
        callbacks=[Watch()],
    )
    assert not torch.equal(next(alignment.parameters()), start)
    assert all(
        torch.equal(tensor, network.model.state_dict()[name]) for name, tensor in before.items()
    )
    assert np.mean(seen[-3:]) < np.mean(seen[:3])


def test_one_step_is_the_step_by_hand(toy):
    network, pairs = toy
    alignment = alignment_of(network)
    module = DAS(alignment)
    from iit.data import PairsDataModule

    batch = next(iter(PairsDataModule(pairs, network, batch_size=8).train_dataloader()))
    logits = alignment.answer_logits(batch["base"], batch["sources"])
    by_hand = -logits.log_softmax(-1).gather(2, batch["base"]["answer"].unsqueeze(-1)).mean()
    module.log = lambda *args, **kwargs: None
    torch.testing.assert_close(module.training_step(batch, 0), by_hand)
    optimizer = module.configure_optimizers()
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 16 * 4


def test_what_cannot_be_fitted_says_why(toy, tmp_path):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position="place")
    cases = [
        (
            one(network, "subject_position", site, iit.VanillaIntervention),
            {},
            ValueError,
            "nothing to train",
        ),
        (
            iit.Alignment(network.model, {site: iit.LowRankRotatedSpaceIntervention(16, 2)}),
            {},
            ValueError,
            "LanguageModel",
        ),
        (
            alignment_of(network),
            {"ckpt_path": tmp_path / "no.ckpt"},
            FileNotFoundError,
            "no checkpoint",
        ),
        (alignment_of(network), {"batch_size": 0}, ValueError, "at least 1"),
    ]
    for alignment, kwargs, kind, said in cases:
        with pytest.raises(kind, match=said):
            iit.fit(alignment, pairs, trainer=quiet, folder=tmp_path, **kwargs)
    same = pairs.dataset.map(lambda row: {"changing": False})
    with pytest.raises(ValueError, match=r"No validation pair.*\['subject_position'\] is changing"):
        iit.fit(
            alignment_of(network),
            Pairs(same, pairs.variable, pairs.task),
            trainer=quiet,
            folder=tmp_path,
        )
    with pytest.raises(ValueError, match=r"limit_val_batches=0.*at least one batch"):
        iit.fit(
            alignment_of(network),
            pairs,
            trainer=partial(quiet, limit_val_batches=0),
            folder=tmp_path,
        )


def test_one_completes_the_intervention_with_the_sites_width(tiny_llama):
    found = one(
        tiny_llama,
        "x",
        iit.Site("mlp_activation", layer=0),
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 2),
    )
    assert found.edits["x"].intervention.width == 24
    block = one(
        tiny_llama,
        "x",
        iit.Site(module="model.layers.0"),
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 2),
    )
    assert block.edits["x"].intervention.width == 16, "what a first run shows"


def test_evaluate_rows(toy):
    network, pairs = toy
    alignment = alignment_of(network)
    rows = iit.evaluate(alignment, pairs, experiment="e", seed=5)
    told = {(str(row.arm), row.metric, row.subset): row for row in rows if row.split == "test"}
    assert {(row.control, row.metric) for row in rows if row.split != "test"} == {(None, "iia")}
    assert {row.split for row in rows} == {"train", "test"}
    for subset, n in (("all", 16), ("changing", 8)):
        for control in (
            "trained",
            "vanilla",
            "random_subspace",
            *(f"random_subspace/{i}" for i in range(5)),
            "no_intervention",
        ):
            row = told[control, "iia", subset]
            assert row.n == n
            assert row.low <= row.value <= row.high
        for control in ("vanilla", "random_subspace", "no_intervention"):
            gap = told["trained", "iia", subset].value - told[control, "iia", subset].value
            assert told[control, "iia_difference", subset].value == pytest.approx(gap)
    draws = np.mean([told[f"random_subspace/{i}", "iia", "all"].value for i in range(5)])
    assert told["random_subspace", "iia", "all"].value == pytest.approx(draws)
    assert told["trained", "task_accuracy", "all"].value == 1.0
    assert (rows[0].network, rows[0].layer, rows[0].position, rows[0].rank, rows[0].seed) == (
        "toy",
        0,
        "place",
        4,
        5,
    )
    with pytest.raises(ValueError, match="'slow' is none of"):
        iit.evaluate(alignment, pairs, trust="slow")
    with pytest.raises(ValueError, match=r"'io_name'.*subject_position"):
        iit.evaluate(alignment, Pairs(pairs.dataset, "io_name"))


def test_vanilla_control_equals_patching_by_hand(toy):
    """The control's outcome, pair by pair, from raw hooks."""
    network, pairs = toy
    from iit.data import EncodedPairs
    from iit.evaluation import outcomes, vanilla

    encoded = EncodedPairs(pairs.split("test"), pairs.variable, network)
    found = outcomes(vanilla(alignment_of(network)), encoded, batch_size=5).right[None]
    layer = network.model.model.layers[0]
    for number in range(len(encoded)):
        batch = encoded.batch([number])
        base, source = batch["base"], batch["sources"]["subject_position"]
        held = []
        handle = layer.register_forward_hook(
            lambda m, a, o, held=held: held.append(o.clone()) and None
        )
        network.model(input_ids=source["input_ids"])
        handle.remove()

        def patch(m, a, o, base=base, source=source, held=held):
            o = o.clone()
            o[0, base["positions"]["place"][0]] = held[0][0, source["positions"]["place"][0]]
            return o

        handle = layer.register_forward_hook(patch)
        predicted = network.model(input_ids=base["input_ids"]).logits[0, -1].argmax()
        handle.remove()
        assert bool(found[number]) == (int(predicted) == int(base["answer"][0, 0]))
    assert issubclass(EncodedPairs, Dataset)


class Half(Basis):
    """Coordinates of one's own: every activation's first half, scaled by a learned factor."""

    def __init__(self, width):
        super().__init__(width=width)
        self.width, self.rank = width, width // 2
        self.scale = torch.nn.Parameter(torch.rand(width // 2) + 0.5)

    def coordinates(self):
        def write(h, old, new):
            return torch.cat(
                [h[..., : self.rank] + (new - old) / self.scale, h[..., self.rank :]], -1
            )

        return Coordinates(lambda h: h[..., : self.rank] * self.scale, write)


def test_ones_own_basis_is_trained_scored_and_shared(toy, tmp_path):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position="place")
    alignment = iit.Alignment(
        network, {"subject_position": iit.Edit(site, Intervention("Mine", Half(16), All(), Swap()))}
    )
    alignment.rows = iit.evaluate(alignment, pairs)
    iit.fit(alignment, pairs, trainer=quiet, batch_size=16, max_epochs=1, folder=tmp_path)
    assert list(alignment.rows) == [], "rows of weights that are gone"
    alignment.rows = iit.evaluate(alignment, pairs)
    assert {row.method for row in alignment.rows} == {"Mine"}
    alignment.save_pretrained(tmp_path / "mine")
    back = iit.Alignment.from_pretrained(tmp_path / "mine", network, types={"Half": Half})
    assert list(back.rows) == list(alignment.rows) == iit.evaluate(back, pairs)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "not measured" not in card
    assert "iit.Alignment.from_pretrained(\"mine\", network, types={'Half': Half})" in card


@pytest.mark.parametrize("bar", [False, True], ids=["without", "with"])
def test_training_shows_its_steps_in_place_of_lightnings_bar(bar, toy, terminal, capsys, caplog):
    network, pairs = toy
    caplog.set_level("INFO", "iit.alignment.fit")
    trainer = partial(L.Trainer, enable_progress_bar=bar, enable_model_summary=False)
    options = {"trainer": trainer, "batch_size": 16, "max_epochs": 2}
    iit.fit(alignment_of(network), pairs, **options)
    shown = capsys.readouterr().out
    assert "Training" in shown
    assert "100%" in shown
    assert "v_num" not in shown
    assert "Epoch 0" not in shown
    lines = [line.getMessage() for line in caplog.records if "Epoch" in line.getMessage()]
    assert [line[:9] for line in lines] == ["Epoch 1: ", "Epoch 2: "]
    assert "train/loss" in lines[0]
    assert "val/iia_changing" in lines[0]


def test_an_error_in_training_ends_its_bar(toy, terminal, capsys):
    class Failing(L.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("in the middle")

    network, pairs = toy
    stdout = sys.stdout
    options = {"trainer": quiet, "batch_size": 16, "max_epochs": 1}
    with pytest.raises(RuntimeError, match="in the middle"):
        iit.fit(alignment_of(network), pairs, callbacks=[Failing()], **options)
    assert sys.stdout is stdout
    capsys.readouterr()
    iit.fit(alignment_of(network), pairs, **options)
    assert "Training" in capsys.readouterr().out
