"""Networks written by hand: exact behaviour, and the subspaces that they say are true, on every
base × source.
"""

from itertools import product

import numpy as np
import pytest
import torch

import iit
from iit.intervention import All, Intervention, PrincipalComponents
from iit.intervention.operation import Swap
from iit.network import planted
from iit.network.planted import ENCODINGS, simplex
from iit.tasks import modular_sum
from tests.seeds import shifted

SITE = iit.Site(module="read", side="input")


def swap(vectors):
    basis = PrincipalComponents(*vectors.shape)
    basis.frame.copy_(torch.linalg.qr(vectors)[0])
    basis.fitted.fill_(True)
    return Intervention("fixed", basis, All(), Swap())


def everything(m):
    """All values of a, b, c and d as a batch, noise drawn, and the values themselves."""
    task, noise = modular_sum(m), torch.Generator().manual_seed(shifted(0))
    values = torch.tensor(list(product(range(m), repeat=4)))
    index = torch.randint(20_000, (len(values),), generator=noise).tolist()
    rows = [
        task.write(dict(zip("abcd", row, strict=True)) | {"noise": i})
        for row, i in zip(values.tolist(), index, strict=True)
    ]
    return torch.from_numpy(np.stack(rows)), values


def answers(network, intervention, x, other):
    """The class after every base took the source's state, Tensor[source, base]."""
    model = iit.IntervenedModel(network, {SITE: intervention})
    found = []
    for source in other:
        out = model({"x": x}, {"x": source.expand_as(x)})
        found.append(out.argmax(-1))
    return torch.stack(found)


def labels(values, others, m, read=lambda v: v[..., 0] + v[..., 1], more=0):
    return (read(others)[:, None] + (values[:, 2] + values[:, 3])[None] + more) % m


def test_codes_are_a_simplex():
    for n in (2, 3, 5):
        torch.testing.assert_close(simplex(n) @ simplex(n).T, torch.eye(n) - 1 / n)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("m", "width"), [(2, 16), (3, 16), (3, 32), (5, 32)])
def test_behaviour_is_exact(encoding, m, width):
    network = planted(m, width, encoding, seed=3)
    x, values = everything(m)
    logits = network.model(x)
    best = logits.topk(2).values
    assert torch.equal(logits.argmax(-1), values.sum(1) % m)
    assert float((best[:, 0] - best[:, 1]).min()) > 4.9


@pytest.mark.parametrize("encoding", ["clean", "redundant", "leaky"])
@pytest.mark.parametrize("m", [2, 3])
def test_the_true_subspace_carries_the_variable(encoding, m):
    network = planted(m, 32, encoding, seed=1)
    x, values = everything(m)
    chosen = torch.arange(0, len(x), 5)
    found = answers(network, swap(network.model.truth["first"]), x, x[chosen])
    assert torch.equal(found, labels(values, values[chosen], m))
    if encoding != "leaky":
        other = answers(network, swap(network.model.truth["second"]), x, x[chosen])
        second = (
            (values[:, 0] + values[:, 1])[None] + (values[chosen, 2] + values[chosen, 3])[:, None]
        ) % m
        assert torch.equal(other, second)


def blocks(network, m, start):
    """The directions of the state's third block, and those of another."""
    r = m - 1
    width = network.model.site(network.model.write.weight).shape[0]
    draw = torch.Generator().manual_seed(1)  # as the network with seed 1 draws them
    _, rotation = (torch.linalg.qr(torch.randn(width, width, generator=draw))[0] for _ in range(2))
    return rotation[:, start * r : (start + 1) * r]


def test_a_dead_copy_makes_a_direction_at_45_degrees_work():
    network = planted(3, 32, "redundant", seed=1)
    x, values = everything(3)
    between = network.model.truth["first"] + blocks(network, 3, 2)
    found = answers(network, swap(between), x, x[::7])
    assert torch.equal(found, labels(values, values[::7], 3))
    angles = iit.evaluation.principal_angles(
        torch.linalg.qr(between)[0], network.model.truth["first"]
    )
    torch.testing.assert_close(angles, torch.full((2,), 45.0), rtol=1e-3, atol=1e-2)


def test_an_illusion_works_by_directions_that_never_vary():
    network = planted(3, 32, "illusion", seed=1)
    x, values = everything(3)
    carries, dormant = blocks(network, 3, 0), blocks(network, 3, 2)
    own = values.sum(1) % 3
    assert torch.equal(
        answers(network, swap(carries + dormant), x, x[::7]), labels(values, values[::7], 3)
    )
    for nothing in (carries, dormant):
        assert torch.equal(answers(network, swap(nothing), x, x[::7]), own.expand(len(x[::7]), -1))
    whole = answers(network, iit.VanillaIntervention(), x, x[::7])
    second = ((values[:, 0] + values[:, 1])[None] + (values[::7, 2] + values[::7, 3])[:, None]) % 3
    assert torch.equal(whole, second), "the whole vector moves the second value alone"
    assert "first" not in network.model.truth


def test_what_is_wrong_answers_as_its_rival():
    network = planted(3, 32, "wrong", seed=1)
    x, values = everything(3)
    found = answers(network, swap(blocks(network, 3, 0)), x, x[::7])
    assert torch.equal(
        found, labels(values, values[::7], 3, read=lambda v: v[..., 0], more=values[:, 1])
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="clean, redundant"):
        planted(encoding="claen")
    with pytest.raises(ValueError, match="need a width of 24"):
        planted(5, 20)
