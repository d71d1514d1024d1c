"""Training the network itself: its loss against an oracle, and what is left behind."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F

import iit
from iit.alignment import IIT, LogitDifference, none
from iit.data import EncodedPairs, Pairs
from iit.network import fingerprint, mlp, small_transformer
from iit.tasks import addition, equality
from tests.seeds import shifted


def quiet(**kwargs):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **kwargs
    )


@pytest.fixture
def network():
    torch.manual_seed(shifted(0))
    return mlp(n_inputs=16, n_classes=2, width=16, depth=2)


SITE = iit.Site(module="layers.1", side="output")


def pairs_of(variable, network=None, task=None, n=64, **options):
    return Pairs.sample(
        task or equality(),
        network,
        n_train=n,
        n_val=32,
        n_test=32,
        variable=variable,
        right_only=False,
        **options,
    )


def test_the_loss_is_the_sum_of_its_parts(network):
    pairs = pairs_of("left_equal")
    alignment = iit.Alignment(network, {"left_equal": iit.Edit([SITE], iit.VanillaIntervention())})
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(20))
    module = IIT(alignment, weights={"behaviour": 0.5, "interchange": 2.0})
    module.log = module.log_dict = lambda *args, **kwargs: None
    network.model.requires_grad_(True)
    module.training_step(batch, 0).backward()
    found = [p.grad.clone() for p in network.model.parameters()]
    network.model.zero_grad()
    base, source = batch["base"]["x"], batch["sources"]["left_equal"]["x"]
    own = F.cross_entropy(network.model(base), batch["base_answer"][:, 0])
    # The last hidden layer is swapped whole: the logits are the source's. Sources are run without
    # gradient.
    with torch.no_grad():
        hidden = network.model.layers(source)
    swapped = F.cross_entropy(network.model.head(hidden), batch["base"]["answer"][:, 0])
    (0.5 * own + 2.0 * swapped).backward()
    for gradient, parameter in zip(found, network.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_best_epoch_is_kept_and_the_network_is_frozen_afterwards(network, fresh, caplog):
    caplog.set_level("INFO", logger="iit")
    pairs = pairs_of((), fresh=fresh, n=512)
    before = fingerprint(network.model)
    alignment = none(network)
    fitted = iit.fit(alignment, pairs, module=IIT, trainer=quiet, max_epochs=8, batch_size=32)
    assert [record.message for record in caplog.records if "runs" in record.message] == [
        "The whole network runs: it is trained."
    ]
    rows = iit.evaluate(alignment, pairs, split="validation")
    assert [(row.metric, row.variable, row.component, row.n) for row in rows] == [
        ("task_accuracy", None, None, 32)
    ]
    assert rows[0].value == pytest.approx(fitted.value), "the best epoch's weights are back"
    assert fingerprint(network.model) != before
    assert not any(p.requires_grad or p.grad is not None for p in network.model.parameters())
    assert not network.model.training


def test_a_transformer_learns_answers_of_several_tokens():
    task = addition()
    torch.manual_seed(shifted(0))
    network = small_transformer(task.vocabulary, n_layers=1, n_heads=2, width=32)
    pairs = pairs_of((), network, task, n=256)
    alignment = none(network)
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(trainer.callback_metrics["train/loss"]))

    iit.fit(
        alignment,
        pairs,
        module=IIT,
        trainer=quiet,
        callbacks=[Losses()],
        max_epochs=6,
        batch_size=32,
    )
    assert losses[-1] < 0.8 * losses[0]
    assert alignment.store is None, "what was computed before the network changed is not kept"


def test_both_parts_are_trained_and_logged(network):
    pairs = pairs_of("left_equal", n=512)
    alignment = iit.Alignment(network, {"left_equal": iit.Edit([SITE], iit.VanillaIntervention())})
    logged = {}

    class Logged(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            logged.update(trainer.callback_metrics)

    iit.fit(alignment, pairs, module=IIT, trainer=quiet, callbacks=[Logged()], max_epochs=2)
    assert set(logged) >= {
        "train/behaviour",
        "train/interchange",
        "val/loss",
        "val/task_accuracy",
        "val/iia",
        "val/iia_changing",
    }


@pytest.mark.parametrize("monitor", [None, "val/task_accuracy", "val/loss"])
def test_the_epoch_is_chosen_as_in_alignment_search(network, monitor):
    pairs = pairs_of("left_equal", n=512)
    alignment = iit.Alignment(
        network, {"left_equal": iit.Edit([SITE], iit.VanillaIntervention(16, units="0:8"))}
    )
    epochs = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            loss = float(trainer.callback_metrics["val/loss"])
            accuracy = "val/iia_changing" if monitor == "val/loss" else pl_module.monitor
            interval = pl_module.interval(accuracy, "")
            epochs.append((loss, interval.value, interval.high))

    options = {"module": IIT, "trainer": quiet, "batch_size": 64, "max_epochs": 6}
    fitted = iit.fit(alignment, pairs, monitor=monitor, callbacks=[Watch()], **options)
    best = max(value for _, value, _ in epochs)
    equal = [loss for loss, _, high in epochs if monitor == "val/loss" or high >= best]
    assert [loss for loss, _, _ in epochs].index(min(equal)) == fitted.epoch
    assert fitted.monitor == (monitor or "val/iia_changing")
    alone = none(network)
    with pytest.raises(
        ValueError, match=r"monitor='val/iia'.*choose one of val/loss, val/task_accuracy\."
    ):
        iit.fit(alone, pairs_of(()), monitor="val/iia", **options)


def test_a_network_is_frozen_after_an_exception_too(network):
    class Failing(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert network.model.training
            assert all(p.requires_grad for p in network.model.parameters())
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        iit.fit(
            none(network),
            pairs_of(()),
            module=IIT,
            trainer=quiet,
            callbacks=[Failing()],
            max_epochs=2,
        )
    assert not network.model.training
    assert not any(p.requires_grad for p in network.model.parameters())


def test_parts_and_weights_that_cannot_be_are_refused(network):
    with pytest.raises(
        ValueError,
        match=(
            r"\['safety'\] are no parts of the loss; they are \['behaviour', 'interchange', "
            r"'strict'\]"
        ),
    ):
        IIT(none(network), weights={"safety": 1.0})
    for weights in ({"behaviour": 0.0}, {"behaviour": -1.0}):
        with pytest.raises(ValueError, match="none may be negative, and one part has to count"):
            IIT(none(network), weights=weights)
    alignment = iit.Alignment(network, {"left_equal": iit.Edit([SITE], iit.VanillaIntervention())})
    assert IIT(alignment, weights={"interchange": 0.0}).monitor == "val/task_accuracy"
    with pytest.raises(ValueError, match="declares none: give it `inert`"):
        IIT(alignment, weights={"strict": 1.0})
    with pytest.raises(ValueError, match=r"no variable \['right_equal'\]; it has \['left_equal'\]"):
        IIT(alignment, trained=["right_equal"])


def units(*indices):
    return iit.VanillaIntervention(16, units=list(indices))


def test_a_step_is_one_source_run_and_one_base_run_and_its_loss_the_sum_by_hand(network):
    pairs = pairs_of(["left_equal", "right_equal"])
    alignment = iit.Alignment(
        network,
        {"left_equal": iit.Edit(SITE, units(0, 1, 2)), "right_equal": iit.Edit(SITE, units(3, 4))},
        inert={"rest": iit.Edit(SITE, units(*range(5, 16)))},
    )
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(20))
    module = IIT(
        alignment, weights={"behaviour": 0.5, "interchange": 2.0, "strict": 3.0}, source_grad=True
    )
    module.log = module.log_dict = lambda *args, **kwargs: None
    network.model.requires_grad_(True)
    sizes = []
    handle = network.model.layers.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    module.training_step(batch, 0).backward()
    handle.remove()
    assert sizes == [20, 60], "the sources, and the bases once for each part"
    found = [p.grad.clone() for p in network.model.parameters()]
    network.model.zero_grad()

    left = batch["active"]["left_equal"]
    base = batch["base"]["x"]
    source = torch.where(
        left.unsqueeze(1), batch["sources"]["left_equal"]["x"], batch["sources"]["right_equal"]["x"]
    )
    hidden, there = network.model.layers(base), network.model.layers(source)
    own = batch["base_answer"][:, 0]
    swapped = torch.zeros(20, 16, dtype=torch.bool)
    swapped[left, :3] = True
    swapped[~left, 3:5] = True
    rest = (torch.arange(16) >= 5).expand(20, 16)
    parts = [
        0.5 * F.cross_entropy(network.model.head(hidden), own),
        2.0
        * F.cross_entropy(
            network.model.head(torch.where(swapped, there, hidden)), batch["base"]["answer"][:, 0]
        ),
        3.0 * F.cross_entropy(network.model.head(torch.where(rest, there, hidden)), own),
    ]
    sum(parts).backward()
    for gradient, parameter in zip(found, network.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("margin", [None, 1.0])
def test_a_logit_difference_holds_the_own_answer_by_its_margin(network, margin):
    """Behaviour and strict are about the base's own answer, which differs from itself by
    nothing.
    """
    pairs = pairs_of("left_equal")
    alignment = iit.Alignment(
        network,
        {"left_equal": iit.Edit(SITE, units(0, 1, 2))},
        inert={"rest": iit.Edit(SITE, units(*range(3, 16)))},
    )
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(20))
    module = IIT(
        alignment,
        weights={"behaviour": 0.5, "interchange": 2.0, "strict": 3.0},
        objective=LogitDifference(margin),
    )
    module.log = module.log_dict = lambda *args, **kwargs: None
    hidden, there = (
        network.model.layers(batch["base"]["x"]),
        network.model.layers(batch["sources"]["left_equal"]["x"]),
    )
    first = torch.arange(16) < 3

    def lacking(activation, answer):  # of two classes the other one is the best other
        logits = network.model.head(activation)
        found = logits.gather(1, answer) - logits.gather(1, 1 - answer)
        return (-found if margin is None else F.relu(margin - found)).squeeze(1)

    own, label = batch["base_answer"], batch["base"]["answer"]
    expected = (
        0.5 * lacking(hidden, own).mean()
        + 2.0
        * torch.where(
            batch["changing"], lacking(torch.where(first, there, hidden), label), 0.0
        ).mean()
        + 3.0 * lacking(torch.where(first, hidden, there), own).mean()
    )
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_only_the_trained_variables_interchange(network):
    pairs = pairs_of(["left_equal", "right_equal"])
    alignment = iit.Alignment(
        network,
        {"left_equal": iit.Edit(SITE, units(0, 1, 2)), "right_equal": iit.Edit(SITE, units(3, 4))},
    )
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(20))
    found = IIT(alignment, trained=["left_equal"])._predictions(batch)
    left = batch["active"]["left_equal"]
    assert found["interchange"][1].tolist() == left.nonzero().flatten().tolist()
    expected = alignment.answer_logits(batch["base"], batch["sources"], batch["active"])[left]
    torch.testing.assert_close(found["interchange"][0].logits, expected)
    assert len(found["behaviour"][1]) == 20


def test_variables_that_share_a_pair_each_read_their_own_source(network):
    pairs = pairs_of(["left_equal", "right_equal"], together=True)
    alignment = iit.Alignment(
        network,
        {"left_equal": iit.Edit(SITE, units(0, 1, 2)), "right_equal": iit.Edit(SITE, units(3, 4))},
    )
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(20))
    made, _ = IIT(alignment)._predictions(batch)["interchange"]
    torch.testing.assert_close(
        made.logits, alignment.answer_logits(batch["base"], batch["sources"])
    )


def test_stacked_texts_are_what_each_part_is_alone():
    """Answers of several tokens, prompts of different lengths and roles."""
    task = addition()
    torch.manual_seed(shifted(0))
    network = small_transformer(task.vocabulary, n_layers=2, n_heads=2, width=32)
    pairs = pairs_of(["ones_carry", "hundreds"], network, task)
    site = iit.Site("block_output", layer=0, position=["a_ones", "b_ones"])
    late = iit.Site("block_output", layer=1, position="b_ones")
    frame = iit.LowRankRotatedSpaceIntervention(32, 4)
    alignment = iit.Alignment(
        network,
        {
            "ones_carry": iit.Edit(site, frame),
            "hundreds": iit.Edit(late, iit.LowRankRotatedSpaceIntervention(32, 4)),
        },
        inert={
            "beside": iit.Edit(site, frame.complement()),
            "later": iit.Edit(late, iit.VanillaIntervention()),
        },
    )
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(16))
    found = IIT(alignment, weights={"strict": 1.0})._predictions(batch)
    own = batch["base"] | {"answer": batch["base_answer"]}
    idle = dict.fromkeys(alignment.variables, False)
    expected = alignment.answer_logits(own, active=idle)
    torch.testing.assert_close(found["behaviour"][0].logits, expected)
    expected = alignment.answer_logits(batch["base"], batch["sources"], batch["active"])
    torch.testing.assert_close(found["interchange"][0].logits, expected)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found["strict"][0].logits, found["behaviour"][0].logits)


def test_a_step_costs_its_two_passes(network):
    from torch.utils.flop_counter import FlopCounterMode

    task = addition()
    torch.manual_seed(shifted(0))
    network = small_transformer(task.vocabulary, n_layers=2, n_heads=2, width=64)
    pairs = pairs_of("ones_carry", network, task)
    site = iit.Site("block_output", layer=1, position="b_ones")
    alignment = iit.Alignment(
        network, {"ones_carry": iit.Edit(site, iit.LowRankRotatedSpaceIntervention(64, 4))}
    )
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(16))
    module = IIT(alignment, source_grad=True)
    module.log = module.log_dict = lambda *args, **kwargs: None
    network.model.requires_grad_(True)
    with FlopCounterMode(display=False) as step:
        module.training_step(batch, 0).backward()
    base, source = batch["base"]["input_ids"], batch["sources"]["ones_carry"]["input_ids"]
    label = batch["base"]["answer"]
    both = torch.cat([torch.cat([base, label], 1)] * 2)
    with FlopCounterMode(display=False) as passes:
        # The sources up to the site, which is the last block's output, and the bases for both
        # parts, with the head at the answer.
        there = network.model.model(source).last_hidden_state
        here = network.model.model(both).last_hidden_state[:, -label.shape[1] :]
        (network.model.lm_head(here).sum() + there.sum()).backward()
    assert step.get_total_flops() <= 1.2 * passes.get_total_flops()


def test_inert_parts_are_saved_and_checked(network, tmp_path):
    pairs = pairs_of("left_equal")
    frame = iit.LowRankRotatedSpaceIntervention(16, 4)
    inert = {"beside": iit.Edit(SITE, frame.complement()), "some": iit.Edit(SITE, units(3, 5))}
    alignment = iit.Alignment(network, {"left_equal": iit.Edit(SITE, frame)}, inert=inert)
    assert alignment.variables == ("left_equal",)
    alignment.save_pretrained(tmp_path / "saved")
    back = iit.Alignment.from_pretrained(tmp_path / "saved", network)
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(range(8))
    for name in inert:
        swap = {name: alignment.inert[name]}, {name: back.inert[name]}
        one, two = (
            iit.IntervenedModel(network, s).answer_logits(
                batch["base"], batch["sources"]["left_equal"]
            )
            for s in swap
        )
        assert torch.equal(one, two)
    assert back.inert["beside"].intervention.basis is back.edits["left_equal"].intervention.basis
    with pytest.raises(ValueError, match="called as a variable"):
        iit.Alignment(
            network,
            {"left_equal": iit.Edit(SITE, frame)},
            inert={"left_equal": iit.Edit(SITE, units(1))},
        )
    trained = iit.Edit(SITE, iit.LowRankRotatedSpaceIntervention(16, 4))
    with pytest.raises(ValueError, match="give it a VanillaIntervention"):
        iit.Alignment(network, {"left_equal": iit.Edit(SITE, frame)}, inert={"rest": trained})


def test_blocks_are_scored_beside_their_controls(network):
    pairs = pairs_of(["left_equal", "right_equal"])
    blocks = iit.RotatedSpaceIntervention(16, blocks={"left_equal": 4, "right_equal": 4})
    rows = iit.evaluate(iit.Alignment(network, {SITE: blocks}), pairs)
    assert {row.variable for row in rows if row.control == "vanilla"} == {
        "left_equal",
        "right_equal",
    }
    assert {str(row.arm) for row in rows if row.variable == "left_equal"} >= {
        "rival/left_only",
        "random_subspace",
    }
    assert "rival/left_only" not in {str(row.arm) for row in rows if row.variable == "right_equal"}
