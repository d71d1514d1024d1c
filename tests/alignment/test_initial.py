"""Where trained bases begin."""

from dataclasses import replace

import lightning as L
import pytest
import torch

import iit
from iit.alignment import initialise, one
from iit.data import EncodedPairs, Pairs
from iit.intervention import Frame
from iit.network import mlp
from iit.tasks import equality
from tests.seeds import shifted


def quiet(**kwargs):
    return L.Trainer(
        enable_progress_bar=False, enable_model_summary=False, deterministic=True, **kwargs
    )


def activations(network, pairs, site):
    batch = EncodedPairs(pairs.split("train"), pairs.variables, network).batch(
        range(len(pairs.split("train")))
    )
    return iit.capture(network, batch["base"], [site])[site]


def projector(frame):
    return frame @ frame.T


def test_principal_components_of_the_training_bases_at_the_roles_tokens(toy):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position="place")
    alignment = one(
        network,
        "subject_position",
        site,
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 3),
    )
    initialise(alignment, pairs, "pca")
    found = alignment.edits["subject_position"].intervention.basis.vectors()
    data = activations(network, pairs, site)[:, 0]
    expected = torch.linalg.svd(data - data.mean(0))[2][:3].T
    torch.testing.assert_close(projector(found), projector(expected), atol=1e-4, rtol=0)


def test_fixed_components_are_fitted_when_a_fit_begins_and_stay(toy, tmp_path):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position="place")
    mask = iit.SigmoidMaskIntervention(16, basis="pca", rank=4)
    alignment = iit.Alignment(network, {"subject_position": iit.Edit(site, mask)})
    with pytest.raises(ValueError, match="fit"):
        iit.evaluate(alignment, pairs)
    iit.fit(alignment, pairs, trainer=quiet, max_epochs=1, folder=tmp_path)
    frame = mask.basis.frame.clone()
    data = activations(network, pairs, site)[:, 0]
    torch.testing.assert_close(
        projector(frame),
        projector(torch.linalg.svd(data - data.mean(0))[2][:4].T),
        atol=1e-4,
        rtol=0,
    )
    iit.fit(alignment, pairs, trainer=quiet, max_epochs=1, folder=tmp_path)
    assert torch.equal(mask.basis.frame, frame)


def test_differences_of_means_span_the_variables_directions():
    torch.manual_seed(shifted(0))
    network = mlp(n_inputs=16, n_classes=2, width=16, depth=2)
    task = equality()
    variables = ["left_equal", "right_equal"]
    pairs = Pairs.sample(
        task, network, n_train=256, n_val=32, n_test=32, variable=variables, right_only=False
    )
    site = iit.Site(module="layers.0", side="output")
    blocks = iit.RotatedSpaceIntervention(16, blocks={"left_equal": 2, "right_equal": 3})
    initialise(iit.Alignment(network, {site: blocks}), pairs, "difference_of_means")
    data = activations(network, pairs, site)[:, 0]
    frame = blocks.basis.vectors()
    for columns, variable in ((slice(0, 2), "left_equal"), (slice(0, 5), "right_equal")):
        values = torch.tensor(pairs.values[variable])
        direction = data[values].mean(0) - data[~values].mean(0)
        block = projector(frame[:, columns])
        torch.testing.assert_close(block @ direction, direction, atol=1e-4, rtol=1e-3)
    own = Pairs(pairs.dataset, tuple(variables))
    with pytest.raises(ValueError, match="from a causal model"):
        initialise(iit.Alignment(network, {site: blocks}), own, "difference_of_means")
    with pytest.raises(ValueError, match="none of"):
        initialise(iit.Alignment(network, {site: blocks}), pairs, "kmeans")


class Value(str):
    """A text whose hash, as any text's, is another one in another process."""

    salt = 0

    def __hash__(self):
        return hash((self.salt, str(self)))


def test_differences_of_means_do_not_depend_on_how_texts_hash(toy):
    network, pairs = toy
    site = iit.Site("block_output", layer=0, position="place")
    found = []
    for salt in range(6):
        Value.salt = salt
        values = {
            "subject_position": [Value(number % 5) for number in range(len(pairs.split("train")))]
        }
        torch.manual_seed(shifted(0))
        alignment = one(
            network,
            "subject_position",
            site,
            lambda width: iit.LowRankRotatedSpaceIntervention(width, 6),
        )
        initialise(alignment, replace(pairs, values=values), "difference_of_means")
        found.append(alignment.edits["subject_position"].intervention.basis.weight.detach().clone())
    assert all(torch.equal(found[0], other) for other in found)


def test_what_a_start_draws_is_drawn_on_the_cpu(monkeypatch):
    """The same on every device: neither a device's own generator, nor a mixture of devices."""
    real, devices = torch.randn, []
    monkeypatch.setattr(
        torch,
        "randn",
        lambda *args, **kwargs: devices.append(kwargs.get("device")) or real(*args, **kwargs),
    )
    Frame(8, 4).start(torch.eye(8, 2))
    assert devices == [None, None]
