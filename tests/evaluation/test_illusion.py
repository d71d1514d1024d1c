"""The read part and the null part of a found subspace."""

import pytest
import torch
from datasets import Dataset
from torch import nn

import iit
from iit.data import EncodedPairs, Pairs
from iit.evaluation import Trust, illusion, outcomes
from iit.evaluation.controls import random_subspace, read_parts
from iit.evaluation.illusion import read_space, read_spaces, swapping
from iit.evaluation.scoring import Scoring
from iit.evaluation.subspace import swapped_subspace
from iit.intervention import All, Frame, Intervention, PrincipalComponents
from iit.intervention.operation import Swap
from iit.network import Classifier, equality_by_hand, planted
from iit.result import Arm
from iit.tasks import equality, modular_sum
from tests.families import make, prompts
from tests.seeds import shifted


class Around(nn.Module):
    """Answers whether x₀ > 0, which reaches the answer around the site; its activation is (x₀, 1,
    x₁).
    """

    def __init__(self, around, weights):
        super().__init__()
        self.encode, self.around, self.read = nn.Linear(2, 3), nn.Linear(2, 1), nn.Linear(3, 1)
        with torch.no_grad():
            self.encode.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
            self.encode.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
            self.around.weight.copy_(torch.tensor([[around, 0.0]]))
            self.read.weight.copy_(torch.tensor([weights]))
            self.around.bias.zero_()
            self.read.bias.copy_(-self.read.weight[0, 1:2])

    def forward(self, x):
        told = self.around(x) + self.read(self.encode(x))
        return torch.cat([-told, told], 1)


DISCONNECTED, DORMANT = torch.eye(3)[0], torch.eye(3)[1]
ILLUSION = (DISCONNECTED + DORMANT).unsqueeze(1) / 2**0.5
SITES = [iit.Site(module="read", side="input"), iit.Site(module="encode", side="output")]


def around(around=1.0, weights=(0.0, 10.0, 0.0)):
    return Classifier(Around(around, list(weights)))


def table(n=80, seed=0):
    """Pairs of the variable 'sign', half of them changing."""
    generator = torch.Generator().manual_seed(shifted(seed))

    def drawn():
        sign = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        return torch.stack([sign, 0.1 * torch.randn(n, generator=generator)], 1)

    base, source = drawn(), drawn()
    label, own = ((x[:, 0] > 0).long() for x in (source, base))
    changing = (label != own).tolist()
    columns = {
        "base": base.tolist(),
        "source": source.tolist(),
        "label": label.tolist(),
        "base_answer": own.tolist(),
    }
    return Dataset.from_dict(columns | {"changing": changing})


def fixed(vectors):
    basis = PrincipalComponents(*vectors.shape)
    basis.frame.copy_(vectors)
    basis.fitted.fill_(True)
    return Intervention("fixed", basis, All(), Swap())


def iia(alignment, pairs):
    """On changing pairs."""
    return float(outcomes(alignment, pairs).right[None][pairs.changing.numpy()].mean())


def split_by_reading(alignment, pairs):
    return illusion.split_by_reading(alignment, read_spaces(alignment, pairs))


def tilted(degrees, one, other):
    """Columns that are turned by so much from one towards the other."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    return angle.cos() * one + angle.sin() * other


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize(
    ("degrees", "part", "direction"),
    [(40, "null_part", DISCONNECTED), (50, "read_part", DORMANT)],
    ids=["less", "more"],
)
def test_the_illusion_of_the_paper_is_told(site, degrees, part, direction):
    """Whether less or more than half of it is read."""
    network = around()
    pairs = EncodedPairs(table(), "sign", network)
    vectors = tilted(degrees, DISCONNECTED, DORMANT).unsqueeze(1)
    alignment = iit.Alignment(network, {"sign": iit.Edit(site, fixed(vectors))})
    parts = split_by_reading(alignment, pairs)
    assert iia(alignment, pairs) == 1
    assert (
        iia(iit.Alignment(network, {"sign": iit.Edit(site, iit.VanillaIntervention())}), pairs) == 0
    )
    assert {name: iia(one, pairs) for name, one in parts.items()} == dict.fromkeys(
        dict.fromkeys(["read_part", part]), 0
    )
    found = swapped_subspace(parts[part].edits["sign"].intervention)
    torch.testing.assert_close(found.abs(), direction.unsqueeze(1), atol=1e-6, rtol=0)
    if part != "read_part":
        assert parts["read_part"].edits["sign"].intervention.learned_rank() == 0


def sums(width):
    """A network that adds modulo 3, whose site reads four of its directions; pairs of the first
    sum.
    """
    network = planted(3, width, seed=shifted(1))
    pairs = Pairs.sample(
        modular_sum(3), network, n_train=4, n_val=4, n_test=200, variable="first", right_only=False
    )
    return network, pairs, EncodedPairs(pairs.split("test"), "first", network)


def at(network, intervention):
    return iit.Alignment(network, {"first": iit.Edit(SITES[0], intervention)})


@pytest.mark.parametrize(("degrees", "rank"), [(40, 4), (60, 0)])
def test_a_direction_is_read_when_more_than_half_of_it_is(degrees, rank):
    """Each of four columns is turned by so much from a read direction to one that is not read: cos²
    40° = 0.59, cos² 60° = 0.25.
    """
    network, _, pairs = sums(32)
    rows = torch.linalg.svd(network.model.read.weight)[2]
    alignment = at(network, fixed(tilted(degrees, rows[:4].T, rows[4:8].T)))
    read = read_spaces(alignment, pairs)
    part = illusion.split_by_reading(alignment, read)["read_part"]
    assert part.edits["first"].intervention.learned_rank() == rank
    whole = swapping(alignment, read)
    # All that is read holds both sums: the label is right where the second sums are alike.
    assert 0.15 < iia(whole, pairs) < 0.55
    assert iia(part, pairs) == (iia(whole, pairs) if rank else 0)


def test_what_is_read_of_random_subspaces_of_high_rank_does_nothing():
    network, data, pairs = sums(64)
    alignment = at(network, iit.LowRankRotatedSpaceIntervention(64, 8))
    trust = Trust(random_subspaces=3)
    parts = read_parts(Scoring(alignment, data, "test", trust, lambda *_: None))
    draws = [Arm("read_part/random_subspace", number) for number in range(3)]
    assert [arm for arm in parts if "/" in str(arm.control)] == [Arm("read_part/vanilla"), *draws]
    assert [iia(parts[draw], pairs) for draw in draws] == [0, 0, 0]
    # A trace of all four read directions is in every one of them.
    weight = network.model.read.weight
    for number in range(3):
        frame = swapped_subspace(random_subspace(alignment, number).edits["first"].intervention)
        assert torch.linalg.matrix_rank(weight @ frame, rtol=1e-3) == 4
    assert (
        iia(parts[Arm("read_part/vanilla")], pairs)
        == iia(at(network, iit.VanillaIntervention()), pairs)
        > 0.1
    )


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("known", [True, False])
def test_a_genuine_direction_is_all_read(site, known):
    network = around(0.0, (1.0, 0.0, 0.0))
    pairs = EncodedPairs(
        table() if known else table().remove_columns("base_answer"), "sign", network
    )
    alignment = iit.Alignment(network, {"sign": iit.Edit(site, fixed(DISCONNECTED.unsqueeze(1)))})
    parts = split_by_reading(alignment, pairs)
    assert list(parts) == ["read_part"]
    assert iia(parts["read_part"], pairs) == iia(alignment, pairs) == 1
    batch = pairs.batch(range(len(pairs)))
    logits = [
        edited.answer_logits(batch["base"], batch["sources"])
        for edited in (alignment, parts["read_part"])
    ]
    torch.testing.assert_close(*logits)


def test_a_genuine_direction_beside_one_that_is_not_read():
    network = around(0.0, (1.0, 0.0, 0.0))
    pairs = EncodedPairs(table(), "sign", network)
    vectors = torch.stack([tilted(20, *torch.eye(3)[[0, 1]]), torch.eye(3)[2]], 1)
    alignment = iit.Alignment(network, {"sign": iit.Edit(SITES[0], fixed(vectors))})
    parts = split_by_reading(alignment, pairs)
    assert iia(parts["read_part"], pairs) == 1
    assert iia(parts["null_part"], pairs) == 0
    ranks = {name: part.edits["sign"].intervention.learned_rank() for name, part in parts.items()}
    assert ranks == {"read_part": 1, "null_part": 1}


def mostly_read(intervention, read):
    """Set its columns: all but the last are turned by 20° out of what is read, the last one by
    70°.
    """
    n = intervention.rank
    drawn = torch.randn(read.shape[1], n, generator=torch.Generator().manual_seed(shifted(3)))
    inside = read @ torch.linalg.qr(drawn)[0]
    outside = torch.linalg.svd(read.T)[2][read.shape[1] :].T[:, :n]
    turns = [20] * (n - 1) + [70]
    columns = [tilted(turn, inside[:, k], outside[:, k]) for k, turn in enumerate(turns)]
    with torch.no_grad():
        intervention.basis.weight.copy_(torch.stack(columns, 1))


def heads(family, heads):
    return iit.Site("attention_value_output", layer=1, head=heads)


@pytest.mark.parametrize(
    ("family", "site", "width"),
    [
        ("gpt2", iit.Site("mlp_activation", layer=0), 64),
        ("gpt2", iit.Site(module="transformer.h.0.mlp.c_proj", side="input"), 64),
        ("llama", iit.Site("mlp_activation", layer=1), 24),
        ("qwen3", iit.Site("attention_value_output", layer=1), 24),
        ("qwen3", iit.Site("attention_value_output", layer=1, head=[3, 0, 2]), 18),
        ("gpt2", iit.Site("attention_value_output", layer=1, head=2), 4),
    ],
    ids=str,
)
def test_before_a_linear_map_the_null_part_changes_nothing(family, site, width, toy):
    network = make(family)
    if width == 4:  # all of one head is read, unless its slice of the projection has lost rank
        with torch.no_grad():
            network.transformer.h[1].attn.c_proj.weight[8:12] = torch.randn(4, 2) @ torch.randn(
                2, 16
            )
    pairs = EncodedPairs(toy[1].split("test"), "subject_position", toy[0])
    intervention = iit.LowRankRotatedSpaceIntervention(width, 2)
    alignment = iit.Alignment(network, {"subject_position": iit.Edit(site, intervention)})
    read = read_space(alignment, "subject_position", pairs).float()
    mostly_read(intervention, read)
    parts = split_by_reading(alignment, pairs)
    base, source = prompts((7, 7)), prompts((7, 7), seed=2)
    own = alignment.answer_logits(base, active={"subject_position": False})
    moved = {
        name: (part.answer_logits(base, source) - own).abs().max() for name, part in parts.items()
    }
    assert moved["null_part"] < 1e-5
    assert moved["read_part"] > 1e-2
    assert (alignment.answer_logits(base, source) - own).abs().max() > 1e-2


def test_a_subspace_that_is_all_read_is_its_own_read_part(toy):
    network = make("llama")
    weight = network.model.layers[1].mlp.down_proj.weight
    frame = torch.linalg.qr(weight.T @ torch.randn(16, 3))[0]
    site = iit.Site("mlp_activation", layer=1)
    alignment = iit.Alignment(network, {"subject_position": iit.Edit(site, fixed(frame))})
    parts = split_by_reading(
        alignment, EncodedPairs(toy[1].split("test"), "subject_position", toy[0])
    )
    assert list(parts) == ["read_part"]
    base, source = prompts(), prompts(seed=2)
    torch.testing.assert_close(
        parts["read_part"].answer_logits(base, source),
        alignment.answer_logits(base, source),
        atol=1e-5,
        rtol=0,
    )
    null = torch.linalg.svd(weight)[2][16:].T[:, :3]
    alone = split_by_reading(
        iit.Alignment(network, {"subject_position": iit.Edit(site, fixed(null))}),
        EncodedPairs(toy[1].split("test"), "subject_position", toy[0]),
    )
    ranks = {
        name: part.edits["subject_position"].intervention.learned_rank()
        for name, part in alone.items()
    }
    assert ranks == {"read_part": 0, "null_part": 3}


def by_hand(network, pairs):
    """Gradients at the layer's output, at the role's token, one pair at a time: Tensor[pair,
    width].
    """
    rows = []
    for number in range(len(pairs)):
        batch = pairs.batch([number])
        held = []

        def hold(module, args, output, held=held):
            held.append(output.detach().requires_grad_())
            return held[0]

        handle = network.model.model.layers[0].register_forward_hook(hold)
        with torch.enable_grad():
            logits = network.model(input_ids=batch["base"]["input_ids"]).logits[0, -1]
        handle.remove()
        label, own = int(batch["base"]["answer"][0, 0]), int(batch["base_answer"][0, 0])
        told = logits[label] - logits[own] if label != own else logits.log_softmax(0)[label]
        gradient = torch.autograd.grad(told, held[0])[0]
        rows.append(gradient[0, int(batch["base"]["positions"]["place"][0, 0])])
    return torch.stack(rows)


def test_in_the_residual_stream_the_read_part_has_the_whole_effect_to_first_order(toy, monkeypatch):
    network, pairs = toy
    few = EncodedPairs(pairs.split("test").select(range(6)), "subject_position", network)
    assert 0 < int(few.changing.sum()) < 6
    site = iit.Site("block_output", layer=0, position="place")
    intervention = iit.LowRankRotatedSpaceIntervention(16, 3)
    alignment = iit.Alignment(network, {"subject_position": iit.Edit(site, intervention)})
    gradients = by_hand(network, few)
    monkeypatch.setattr(illusion, "ENERGY", 1.0)
    read = read_space(alignment, "subject_position", few, batch_size=4).float()
    assert 3 < read.shape[1] == int(torch.linalg.matrix_rank(gradients, rtol=1e-5)) < 16
    torch.testing.assert_close(gradients @ read @ read.T, gradients, atol=1e-5, rtol=1e-4)
    mostly_read(intervention, read)
    parts = split_by_reading(alignment, few)
    inside, outside = (
        swapped_subspace(parts[name].edits["subject_position"].intervention)
        for name in ("read_part", "null_part")
    )
    assert (inside.shape[1], outside.shape[1]) == (2, 1)
    whole = swapped_subspace(intervention)[:, :2]
    assert (gradients @ outside).abs().max() < 1e-5
    torch.testing.assert_close(
        gradients @ inside @ (inside.T @ whole), gradients @ whole, atol=1e-5, rtol=1e-4
    )
    # Fewer directions carry less than all of the squared norm.
    strength = torch.linalg.svdvals(gradients)
    share = float(strength[:2].square().sum() / strength.square().sum())
    for energy, n_read in ((share - 1e-3, 2), (share + 1e-3, 3)):
        monkeypatch.setattr(illusion, "ENERGY", energy)
        assert read_space(alignment, "subject_position", few).shape[1] == n_read


@pytest.fixture(scope="module")
def two():
    """Units 0 and 1 of the last layer but one hold the variables; they are read apart, too."""
    network = equality_by_hand()
    with torch.no_grad():
        network.model.layers[2][0].weight[2, 0] = 1.0
        network.model.head.weight[:, 9] = 1.0
    variables = ["left_equal", "right_equal"]
    return network, Pairs.sample(
        equality(), network, n_train=20, n_val=20, n_test=80, variable=variables, right_only=False
    )


def test_each_variable_of_blocks_has_its_own_parts(two):
    network, pairs = two
    encoded = EncodedPairs(pairs.split("test"), pairs.variables, network)
    site = iit.Site(module="layers.2.0", side="input")  # reads units 0 and 1
    blocks = iit.RotatedSpaceIntervention(64, blocks={"left_equal": 2, "right_equal": 1})
    with torch.no_grad():
        blocks.basis.weight.copy_(torch.eye(64)[:, [0, 5, 1]])
    alignment = iit.Alignment(network, {"equal": iit.Edit(site, blocks)})
    parts = split_by_reading(alignment, encoded)
    ranks = {
        name: [edit.intervention.learned_rank() for edit in part.edits.values()]
        for name, part in parts.items()
    }
    assert ranks == {"read_part": [1, 1], "null_part": [1, 0]}
    assert all(list(part.variables) == list(pairs.variables) for part in parts.values())
    assert outcomes(alignment, encoded).right[None].all()
    assert outcomes(parts["read_part"], encoded).right[None].all()
    own = outcomes(alignment, encoded, edited=False).right[None]
    assert (outcomes(parts["null_part"], encoded).right[None] == own).all()
    assert not own.all()


def test_masks_over_units_and_several_sites(two):
    network, pairs = two
    encoded = EncodedPairs(pairs.split("test"), pairs.variables, network)
    mask = iit.SigmoidMaskIntervention(64)
    with torch.no_grad():
        mask.gate.mask.copy_(torch.where(torch.tensor([i in (0, 7) for i in range(64)]), 1.0, -1.0))
    sites = [iit.Site(module="layers.2.0", side="input"), iit.Site(module="head", side="input")]
    # the first site reads unit 1, the second unit 9
    units = iit.VanillaIntervention(64, units=[1, 9, 12])
    alignment = iit.Alignment(
        network,
        {
            "left_equal": iit.Edit(sites[0], mask),
            "right_equal": iit.Edit(sites, units, [sites[1], sites[0]]),
        },
    )
    parts = split_by_reading(alignment, encoded)
    expected = {
        "read_part": {"left_equal": [0], "right_equal": [1, 9]},
        "null_part": {"left_equal": [7], "right_equal": [12]},
    }
    for name, chosen in expected.items():
        for variable, indices in chosen.items():
            edit = parts[name].edits[variable]
            found, unit = swapped_subspace(edit.intervention), torch.eye(64)[:, indices]
            torch.testing.assert_close(found @ found.T, unit @ unit.T)
            assert edit.sites == alignment.edits[variable].sites
            assert edit.source_sites == alignment.edits[variable].source_sites


def test_what_has_no_linear_subspace_is_refused(two):
    network, pairs = two
    encoded = EncodedPairs(pairs.split("test"), pairs.variables, network)
    site = iit.Site(module="layers.2.0", side="input")
    unfit = [
        iit.VanillaIntervention(64),
        iit.RevNetIntervention(64, 2),
        iit.AutoencoderIntervention(64, 8),
        iit.AdditionIntervention(width=64),
        iit.RotatedSpaceIntervention(64),
        iit.LowRankRotatedSpaceIntervention(64, 2).complement(),
    ]
    for intervention in unfit:
        with pytest.raises(ValueError, match=intervention.name):
            split_by_reading(
                iit.Alignment(network, {"left_equal": iit.Edit(site, intervention)}), encoded
            )
    joint = iit.Edit(site, iit.LowRankRotatedSpaceIntervention(64, 2), joint=True)
    with pytest.raises(ValueError, match="LowRank"):
        split_by_reading(iit.Alignment(network, {"left_equal": joint}), encoded)
    fine = iit.Alignment(
        network, {"left_equal": iit.Edit(site, Intervention("one", Frame(64, 1), All(), Swap()))}
    )
    other = iit.Edit(iit.Site(module="layers.1"), iit.LowRankRotatedSpaceIntervention(64, 1))
    nobodys = iit.Alignment(network, {"nobody": other, **fine.edits})
    assert all(
        part.variables == ("left_equal",) for part in split_by_reading(nobodys, encoded).values()
    )
    with pytest.raises(ValueError, match="nobody"):
        read_space(nobodys, "nobody", encoded)


def test_the_network_and_the_alignment_are_left_as_they_were(toy):
    network, pairs = toy
    encoded = EncodedPairs(pairs.split("test"), "subject_position", network)
    site = iit.Site("block_output", layer=0, position="place")
    alignment = iit.Alignment(
        network, {"subject_position": iit.Edit(site, iit.LowRankRotatedSpaceIntervention(16, 3))}
    )
    before = {name: value.clone() for name, value in alignment.state_dict().items()}
    with torch.no_grad():
        parts = split_by_reading(alignment, encoded)
    assert set(parts) <= {"read_part", "null_part"}
    assert all(torch.equal(value, before[name]) for name, value in alignment.state_dict().items())
    assert alignment.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in network.model.parameters())
