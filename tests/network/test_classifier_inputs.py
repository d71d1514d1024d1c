"""Inputs of classifiers: integers, any name, dictionaries."""

import numpy as np
import pytest
import torch
from torch import nn

import iit
from iit.alignment import one
from iit.alignment.labels import n_answers
from iit.network import Classifier, mlp


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(1))


class Ones(nn.Module):
    """No embedding, and yet it needs integers."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, numbers):
        return self.head(nn.functional.one_hot(numbers, 5).float().sum(1))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(9, 4), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, ids, features):
        return self.head(torch.cat([self.embedding(ids).mean(1), self.layer(features)], 1))


@pytest.mark.parametrize("make", [Words, Ones])
@pytest.mark.parametrize(
    "kind", [list, np.array, torch.tensor, lambda row: np.array(row, dtype=np.int32)]
)
def test_integers_stay_integers(make, kind):
    torch.manual_seed(0)
    network = Classifier(make())
    rows = [[1, 2, 3], [4, 0, 2]]
    batch = network.encode([kind(row) for row in rows], answers=[0, 1])
    assert batch[network.input_name].dtype == torch.int64
    assert batch[network.input_name].tolist() == rows
    want = network.model(torch.tensor(rows))
    assert network.answers_right(
        [kind(row) for row in rows], want.argmax(1).tolist(), batch_size=1
    ).all()
    assert n_answers(network, batch) == 3
    edited = iit.IntervenedModel(network, {iit.Site(module="head"): iit.VanillaIntervention()})
    torch.testing.assert_close(
        edited.answer_logits(batch, network.encode([kind([4, 4, 4])] * 2)).squeeze(1)[0],
        network.model(torch.tensor([[4, 4, 4]]))[0],
    )


@pytest.mark.parametrize(
    "given", [[[0, 1, 0, 1, 1, 0]], [[True] * 6], [np.arange(6, dtype=np.uint8)], [torch.arange(6)]]
)
def test_integers_become_what_a_network_of_numbers_reads(given):
    network = mlp(n_inputs=6, n_classes=3, width=8, depth=2)
    batch = network.encode(given)
    assert batch["x"].dtype == torch.float32
    assert batch["x"][0].tolist() == [float(value) for value in given[0]]


def test_doubles_stay_exact():
    network = Classifier(nn.Sequential(nn.Linear(1, 2)).double())
    assert network.encode([[0.1]])["input"].item() == 0.1


@pytest.mark.parametrize(
    "kind", [dict, lambda row: {name: np.array(value) for name, value in row.items()}]
)
def test_dictionaries_of_inputs(kind):
    torch.manual_seed(0)
    network = Classifier(Two())
    rows = [
        {"ids": [1, 2], "features": [0.5] * 6},
        {"ids": [3, 4], "features": [1.0, 0, 0, 0, 0, 1]},
    ]
    batch = network.encode([kind(row) for row in rows], answers=[1, 2])
    assert batch["ids"].dtype == torch.int64
    assert batch["features"].dtype == torch.float32
    want = network.model(
        torch.tensor([row["ids"] for row in rows]), torch.tensor([row["features"] for row in rows])
    )
    torch.testing.assert_close(iit.IntervenedModel(network, {})(batch), want)
    assert network.answers_right(rows, want.argmax(1).tolist()).all()


def test_the_dtype_is_that_of_what_is_no_integer():
    network = mlp(n_inputs=6, n_classes=3, width=8, depth=1)
    network.model.register_parameter(
        "packed", nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)
    )
    network.model._parameters = dict(reversed(network.model._parameters.items()))
    assert network.dtype == torch.float32
    assert Classifier(nn.Identity()).encode([[0.5]])["input"].dtype == torch.float32
    assert Classifier(nn.Identity()).device == torch.device("cpu")


def test_a_network_that_names_no_input_is_told():
    class Any(nn.Module):
        def forward(self, *inputs):
            return inputs[0]

    with pytest.raises(ValueError, match="names no input"):
        Classifier(Any()).encode([[1.0]])


def test_integers_pass_through_a_table_of_pairs():
    rows = [np.array([2**24 + 1, 3]), np.array([1, 2])]
    table = iit.data.table.dataset({"base": rows, "source": rows, "label": [0, 1]})
    assert table.with_format("numpy")["base"][0].tolist() == [2**24 + 1, 3]


@pytest.mark.parametrize(
    ("module", "width"), [("layers.1", 8), ("layers.0.1", 8), ("head", 3), ("layers.1.0", 8)]
)
def test_the_width_of_any_module_comes_from_one_run(module, width):
    network = mlp(n_inputs=6, n_classes=3, width=8, depth=2)
    alignment = one(
        network,
        "v",
        iit.Site(module=module),
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 2),
    )
    assert alignment.edits["v"].intervention.width == width


def test_an_input_that_only_some_examples_have_is_named():
    with pytest.raises(
        ValueError, match=r"Example 1 has the inputs \['x', 'y'\]; example 0 has \['x'\]"
    ):
        mlp(4, 2).encode([{"x": [0.0] * 4}, {"x": [0.0] * 4, "y": [1.0]}])


def test_a_wrong_first_batch_decides_nothing():
    words = Classifier(Words())
    words.encode([[60, 70]])  # beyond the embedding, as integers and as numbers
    assert words.encode([[1, 2]])["tokens"].dtype == torch.long


def test_a_first_run_for_a_width_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    one(
        network,
        "x",
        iit.Site(module="1"),
        lambda width: iit.LowRankRotatedSpaceIntervention(width, 1),
    )
    assert network[1].num_batches_tracked == 0
    assert network.training
