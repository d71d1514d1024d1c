import json

import numpy as np
import pytest
import torch
from torch import nn

import iit
from iit.network import Classifier, convnet, mlp, save_network
from tests.seeds import shifted


@pytest.fixture
def network():
    torch.manual_seed(shifted(0))
    return mlp(n_inputs=6, n_classes=3, width=8, depth=2)


def test_inputs_become_one_tensor(network):
    batch = network.encode([np.zeros((2, 3)), np.ones((2, 3))], answers=[2, None])
    assert batch["x"].dtype == torch.float32
    assert batch["x"].tolist() == [[[0.0] * 3] * 2, [[1.0] * 3] * 2]
    assert batch["answer"].tolist() == [[2], [-100]]
    assert "answer" not in network.encode([[0.0] * 6])
    assert network.tokenizer is None
    assert "Classifier(mlp, MLP, 155 parameters" in repr(network)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda n: n.encode([]), "no inputs"),
        (lambda n: n.encode([[1.0]], {"left": [0]}), r"no roles; got \['left'\]"),
        (lambda n: n.encode([[1.0]], answers=[1, 2]), "as many answers; got 2"),
        (lambda n: mlp(6, 3, depth=0), "'depth': 0"),
        (lambda n: convnet(2, 3), "4×4"),
    ],
)
def test_errors_name_the_culprit(network, make, said):
    with pytest.raises(ValueError, match=said):
        make(network)


def test_the_answer_is_the_class_with_the_highest_logit(network):
    inputs = torch.randn(10, 6)
    with torch.no_grad():
        own = network.model(inputs).argmax(1)
    assert network.answers_right(inputs.numpy(), own.tolist(), batch_size=3).all()
    wrong = (own + 1) % 3
    assert not network.answers_right(inputs.numpy(), wrong.tolist()).any()


def test_hidden_layers_are_sites(network):
    base, source = (network.encode(torch.randn(4, 6).numpy()) for _ in range(2))
    site = iit.Site(module="layers.1", side="output")
    edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
    assert torch.equal(edited(base, source), network.model(source["x"])), (
        "all that follows reads the last hidden layer"
    )
    hidden = iit.capture(network, base, [site])[site]
    assert torch.equal(network.model.head(hidden.reshape(4, 8)), network.model(base["x"]))
    assert edited.answer_logits(base, source).shape == (4, 1, 3)


@pytest.mark.parametrize("make", [lambda: mlp(256, 10, 8, 1), lambda: convnet(16, 10, 4, 8)])
def test_a_saved_network_is_the_same(make, tmp_path):
    network = make()
    network.name = "mine"
    save_network(network, tmp_path)
    loaded = iit.load_network(str(tmp_path))
    assert isinstance(loaded, Classifier)
    assert (loaded.name, loaded.model.arguments) == ("mine", network.model.arguments)
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(loaded.model(images), network.model(images))
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert iit.load_network(str(tmp_path), dtype="bf16").dtype == torch.bfloat16


def test_only_our_architectures_are_saved(tmp_path):
    with pytest.raises(ValueError, match=r"Only .*MLP, ConvNet can be saved.*this is Linear"):
        save_network(Classifier(nn.Linear(2, 2)), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "iit.network/9"}, "iit.network/9"),
        (
            {"architecture": "os.system"},
            "architecture 'os.system'; this version.*'MLP', 'ConvNet'",
        ),
        (
            {"arguments": {"n_inputs": 7, "n_classes": 3, "width": 8, "depth": 2}},
            "does not hold this network's weights",
        ),
    ],
)
def test_other_folders_are_refused(network, tmp_path, change, said):
    save_network(network, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=said):
        iit.load_network(str(tmp_path))
