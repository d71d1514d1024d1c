"""Training the network itself: its loss against an oracle, and what is left behind."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F

import iit
from iit.alignment import IIT, none
from iit.causal import addition, equality
from iit.data import EncodedPairs, Pairs
from iit.network import fingerprint, mlp, small_transformer


def quiet(**kwargs):
    return L.Trainer(enable_progress_bar=False, enable_model_summary=False, deterministic=True, **kwargs)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return mlp(n_inputs=16, n_classes=2, width=16, depth=2)


SITE = iit.Site(module="layers.1", side="output")


def pairs_of(variable, network=None, task=None, n=64, **options):
    return Pairs.sample(
        task or equality(), network, n_train=n, n_val=32, n_test=32, variable=variable, right_only=False, **options
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
    # The last hidden layer is swapped whole: the logits are the source's. Sources are run without gradient.
    with torch.no_grad():
        hidden = network.model.layers(source)
    swapped = F.cross_entropy(network.model.head(hidden), batch["base"]["answer"][:, 0])
    (0.5 * own + 2.0 * swapped).backward()
    for gradient, parameter in zip(found, network.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_best_epoch_is_kept_and_the_network_is_frozen_afterwards(network, fresh):
    pairs = pairs_of((), fresh=fresh, n=512)
    before = fingerprint(network.model)
    alignment = none(network)
    fitted = iit.fit(alignment, pairs, module=IIT, trainer=quiet, max_epochs=8, batch_size=32)
    rows = iit.evaluate(alignment, pairs, split="validation")
    assert [(row.metric, row.variable, row.component, row.n) for row in rows] == [("task_accuracy", None, None, 32)]
    assert rows[0].value == pytest.approx(fitted.value), "the best epoch's weights are back"
    assert fingerprint(network.model) != before
    assert not any(p.requires_grad or p.grad is not None for p in network.model.parameters())
    assert not network.model.training


def test_a_transformer_learns_answers_of_several_tokens():
    task = addition()
    torch.manual_seed(0)
    network = small_transformer(task.vocabulary, n_layers=1, n_heads=2, width=32)
    pairs = pairs_of((), network, task, n=256)
    alignment = none(network)
    losses = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(trainer.callback_metrics["train/loss"]))

    iit.fit(alignment, pairs, module=IIT, trainer=quiet, callbacks=[Losses()], max_epochs=6, batch_size=32)
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
    assert set(logged) >= {"train/behaviour", "train/interchange", "val/loss", "val/task_accuracy", "val/iia", "val/iia_changing"}


def test_a_network_is_frozen_after_an_exception_too(network):
    class Failing(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            assert network.model.training
            assert all(p.requires_grad for p in network.model.parameters())
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        iit.fit(none(network), pairs_of(()), module=IIT, trainer=quiet, callbacks=[Failing()], max_epochs=2)
    assert not network.model.training
    assert not any(p.requires_grad for p in network.model.parameters())


def test_unknown_parts_are_refused(network):
    with pytest.raises(ValueError, match=r"\['strict'\] are no parts of the loss; they are \['behaviour', 'interchange'\]"):
        IIT(none(network), weights={"strict": 1.0})
    for weights in ({"behaviour": 0.0}, {"behaviour": -1.0}):
        with pytest.raises(ValueError, match="none may be negative, and one part has to count"):
            IIT(none(network), weights=weights)
    alignment = iit.Alignment(network, {"left_equal": iit.Edit([SITE], iit.VanillaIntervention())})
    assert IIT(alignment, weights={"interchange": 0.0}).monitor == "val/task_accuracy"


def test_blocks_are_scored_beside_their_controls(network):
    pairs = pairs_of(["left_equal", "right_equal"])
    blocks = iit.RotatedSpaceIntervention(16, blocks={"left_equal": 4, "right_equal": 4})
    rows = iit.evaluate(iit.Alignment(network, {SITE: blocks}), pairs)
    assert {row.variable for row in rows if row.control == "vanilla"} == {"left_equal", "right_equal"}
    assert {row.control for row in rows if row.variable == "left_equal"} >= {"rival/left_only", "random_subspace"}
    assert "rival/left_only" not in {row.control for row in rows if row.variable == "right_equal"}
