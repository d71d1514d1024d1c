"""Angles between subspaces, both ways, after projection, and what random subspaces have."""

import numpy as np
import pytest
import torch

import iit
from iit.data import EncodedPairs, Pairs
from iit.evaluation.angles import distances, pairwise_angles, random_angles, within
from iit.evaluation.diagnostics import angle_rows
from iit.evaluation.illusion import spans, views
from iit.evaluation.rows import describe
from iit.network import planted
from iit.result import Row
from iit.tasks import modular_sum
from tests.evaluation.test_illusion import fixed, tilted
from tests.seeds import shifted

SITE = iit.Site(module="read", side="input")
UNITS = torch.eye(8, dtype=torch.float64)


def columns(*vectors):
    return torch.stack(vectors, 1)


def turned(*subspaces):
    """The same subspaces in other coordinates of the space, and each in another basis."""
    generator = torch.Generator().manual_seed(shifted(0))

    def rotation(n):
        return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]

    common = rotation(8)
    return [(common @ subspace @ rotation(subspace.shape[1])).float() for subspace in subspaces]


NONE = UNITS[:, :0]
# found, truth, degrees of the truth to what is found, of what is found to the truth, the distance
PAIRS = {
    "equal": (UNITS[:, :2], UNITS[:, :2], 0, 0, 0),
    "contains the truth": (UNITS[:, :3], UNITS[:, :1], 0, 90, (2 / 4) ** 0.5),
    "is inside of it": (UNITS[:, :1], UNITS[:, :3], 90, 0, (2 / 4) ** 0.5),
    "orthogonal": (UNITS[:, :2], UNITS[:, 2:4], 90, 90, 1),
    "orthogonal, other rank": (UNITS[:, :1], UNITS[:, 2:5], 90, 90, 1),
    "half of it": (UNITS[:, :2], UNITS[:, 1:3], 90, 90, 0.5**0.5),
    "turned": (
        columns(UNITS[0], tilted(30, UNITS[1], UNITS[5])),
        UNITS[:, :2],
        30,
        30,
        (2 * 0.25 / 4) ** 0.5,
    ),
    "turned, other rank": (
        UNITS[:, :2],
        columns(tilted(30, UNITS[1], UNITS[5])),
        30,
        90,
        ((2 * 0.25 + 1) / 3) ** 0.5,
    ),
    "nothing": (NONE, UNITS[:, :2], 90, 0, 1),
    "nothing, twice": (NONE, NONE, 0, 0, 0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_distances_from_the_truth_by_hand(name):
    found, truth, *expected = PAIRS[name]
    found, truth = turned(found, truth)
    figures = distances(found, truth)
    assert list(figures) == ["principal_angle", "found_in_truth", "projection_distance"]
    assert list(figures.values()) == pytest.approx(expected, abs=1e-3)
    # The definition, by projections.
    projections = [q.double() @ q.double().T for q in (found, truth)]
    norm = float((projections[0] - projections[1]).norm())
    assert figures["projection_distance"] == pytest.approx(
        norm / max(1, found.shape[1] + truth.shape[1]) ** 0.5, abs=1e-5
    )


def test_what_lies_mostly_inside_counts_and_the_rest_does_not():
    subspace = columns(tilted(40, UNITS[0], UNITS[4]), tilted(50, UNITS[1], UNITS[5]), UNITS[6])
    subspace, space = turned(subspace, UNITS[:, :3])
    inside = within(subspace, space)
    assert inside.shape == (3, 1)
    (first,) = turned(UNITS[:, :1])  # the same draw of the common rotation
    np.testing.assert_allclose((space.double() @ inside).abs(), first.abs(), atol=1e-5)
    assert within(subspace, space[:, :0]).shape == (0, 0)


def test_what_random_subspaces_have():
    state = torch.random.get_rng_state()
    # a subspace and its complement: θ and 90° − θ
    assert random_angles(16, [8, 8], draws=400).mean() == pytest.approx(45, abs=2)
    # cos θ is uniform: 1 rad
    assert random_angles(3, [1, 1], draws=400).mean() == pytest.approx(np.rad2deg(1), abs=4)
    assert random_angles(576, [64, 64], draws=3).mean() == pytest.approx(73, abs=1)
    assert random_angles(8, [3, 8]).max() == pytest.approx(0, abs=1e-3)
    assert torch.equal(torch.random.get_rng_state(), state)
    several = random_angles(32, [2, 2, 2])
    assert len(several) == 50
    assert several.std() < random_angles(32, [2, 2]).std()  # of three pairs, and not of one


@pytest.fixture(scope="module")
def sums():
    """A clean network that adds modulo 2, its pairs, and the space in which nothing varies."""
    network = planted(2, 16, seed=shifted(2))
    pairs = Pairs.sample(
        modular_sum(2),
        network,
        n_train=200,
        n_val=4,
        n_test=40,
        variable="first",
        right_only=False,
        seed=shifted(0),
    )
    return network, pairs


def claim(network, vectors):
    return iit.Alignment(network, {"first": iit.Edit(SITE, fixed(vectors))})


def test_where_inputs_vary_and_what_is_read(sums):
    """4 numbers of noise, 4 inputs of two values and 2 sums vary, each in one dimension; the two
    sums are read.
    """
    network, pairs = sums
    encoded = EncodedPairs(pairs.split("test"), "first", network)
    truth = network.model.truth["first"]
    training = EncodedPairs(pairs.split("train"), "first", network)
    spaces = spans(claim(network, truth), encoded, training, 100)
    natural, read = (spaces[name]["first"] for name in ("natural", "read"))
    assert (natural.shape[1], read.shape[1]) == (10, 2)
    assert distances(read, truth)["principal_angle"] == pytest.approx(0, abs=1e-2)
    dead = torch.linalg.svd(natural.T)[2][10:].T.float()[:, :1]
    assert (network.model.read.weight @ dead).abs().max() < 1e-4
    found = tilted(30, truth, dead)
    seen = views([truth, found], "first", spaces)
    angles = {name: distances(other, own)["principal_angle"] for name, (own, other) in seen.items()}
    assert angles == pytest.approx({"": 30, "/read": 0, "/natural": 0}, abs=1e-2)
    # What is read and varies otherwise does not go away.
    second = tilted(30, truth, network.model.truth["second"])
    seen = views([truth, second], "first", spaces)
    angles = {name: distances(other, own)["principal_angle"] for name, (own, other) in seen.items()}
    assert angles == pytest.approx({"": 30, "/read": 30, "/natural": 30}, abs=1e-2)


def facts_of(alignment, pairs):
    told = {"seed": 0, "split": "test", "experiment": None}
    return lambda variables: describe(alignment, pairs, variables) | told


def judged(network, pairs, frames):
    """What `same_subspace` says of seeds that found these subspaces."""
    claims = [claim(network, frame) for frame in frames]
    rows = angle_rows(claims, facts_of(claims[0], pairs), {})
    seeds, null = rows
    assert (seeds.control, null.control) == ("seeds", "random_subspace")
    assert (seeds.metric, null.metric) == ("principal_angle", "principal_angle")
    assert (seeds.n, null.n) == (3, 50)
    assert null.low < null.value < null.high
    scored = {
        **seeds.to_dict(),
        "control": None,
        "metric": "iia",
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
        "n": 40,
    }
    (found,) = iit.verdict([Row(**scored), *rows])
    return next(finding for finding in found.findings if finding.criterion == "same_subspace")


def test_random_subspaces_fail_and_equal_ones_pass(sums):
    network, pairs = sums
    generator = torch.Generator().manual_seed(shifted(1))
    random = [torch.linalg.qr(torch.randn(16, 3, generator=generator))[0] for _ in range(30)]
    equal = judged(network, pairs, [random[0]] * 3)
    assert (equal.outcome, equal.value) == ("pass", pytest.approx(0, abs=1e-4))
    basis = torch.linalg.qr(torch.cat(random[:4], 1))[0]
    apart = judged(network, pairs, [basis[:, :3], basis[:, 3:6], basis[:, 6:9]])
    assert apart.outcome == "fail"
    assert "90° apart" in apart.reason
    # An interval over three pairs of subspaces is wide: some are open.
    outcomes = [judged(network, pairs, random[k : k + 3]).outcome for k in range(0, 30, 3)]
    assert outcomes.count("fail") >= 3
    assert "pass" not in outcomes


def test_seeds_of_other_ranks_and_parts_that_are_nothing(sums):
    network, pairs = sums
    one, other = (claim(network, torch.eye(16)[:, :rank]) for rank in (1, 4))
    nowhere = {"read": {"first": torch.eye(16)[:, 8:].double()}}
    rows = angle_rows([one, other], facts_of(one, pairs), nowhere)
    assert {row.metric for row in rows} == {"principal_angle"}, "neither is in what is read"
    assert rows[0].value == pytest.approx(0, abs=1e-4)
    assert rows[1].value == pytest.approx(random_angles(16, [1, 4]).mean(), abs=1e-9)
    assert pairwise_angles(
        [torch.eye(4)[:, :1], torch.eye(4)[:, 1:2], torch.eye(4)[:, :1]]
    ) == pytest.approx([90, 0, 90], abs=1e-4)
