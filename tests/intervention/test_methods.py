"""Reversible maps, masks over coordinates, complements, starts, temperatures and penalties."""

import pytest
import torch

import iit
from iit.intervention import Frame, Intervention
from iit.intervention.basis import leading
from tests.seeds import shifted

W = 7


@pytest.fixture
def activations():
    return torch.randn(2, 5, 3, W, generator=torch.Generator().manual_seed(shifted(3)))


def test_a_reversible_map_begins_as_the_low_rank_frame_and_goes_beyond_it(activations):
    base, source = activations
    torch.manual_seed(shifted(0))
    edit = iit.RevNetIntervention(W, 2, depth=2, hidden=8)
    frame = edit.basis.frame.vectors()
    torch.testing.assert_close(
        edit(base, source), base + (source - base) @ frame @ frame.T, atol=1e-5, rtol=1e-4
    )
    for p in edit.parameters():
        torch.nn.init.normal_(p, std=0.5)
    assert torch.equal(edit(base, base), base), "a source that equals the base changes nothing"
    mapped, back = edit.basis._map, edit.basis._back
    torch.testing.assert_close(back(mapped(base)), base, atol=4e-5, rtol=4e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            mapped(base) + mapped(source), mapped(base + source), atol=1e-2, rtol=1e-2
        )
    frame = edit.basis.frame.vectors()
    new = back(mapped(base) + (mapped(source) - mapped(base)) @ frame @ frame.T)
    torch.testing.assert_close(edit(base, source), new, atol=1e-4, rtol=1e-3)
    again = Intervention.from_config(edit.config())
    again.load_state_dict(edit.state_dict())
    assert torch.equal(again(base, source), edit(base, source))


def test_depth_zero_is_the_frame_and_full_rank_the_whole_vector(activations):
    base, source = activations
    edit = iit.RevNetIntervention(W, 3, depth=0)
    frame = edit.basis.frame.vectors()
    torch.testing.assert_close(edit(base, source), base + (source - base) @ frame @ frame.T)
    assert {name for name, _ in edit.named_parameters()} == {"basis.frame.weight"}
    whole = iit.RevNetIntervention(W, W, depth=1, hidden=4)
    for p in whole.parameters():
        torch.nn.init.normal_(p, std=0.3)
    torch.testing.assert_close(whole(base, source), source, atol=1e-4, rtol=1e-3)
    for wrong in ({"depth": -1}, {"hidden": 0}):
        with pytest.raises(ValueError, match="A reversible map needs"):
            iit.RevNetIntervention(W, 2, **wrong)
    with pytest.raises(ValueError, match="rank=9"):
        iit.RevNetIntervention(W, 9)


@pytest.mark.parametrize("basis", ["rotated", "pca"])
def test_a_mask_chooses_among_coordinates(activations, basis):
    base, source = activations
    edit = iit.SigmoidMaskIntervention(W, temperature=0.5, basis=basis, rank=4)
    if basis == "pca":
        edit.basis.fit(torch.randn(30, W))
    with torch.no_grad():
        edit.gate.mask.copy_(torch.tensor([1.0, -1.0, 0.5, -0.2]))
    frame = edit.basis.vectors() if basis == "rotated" else edit.basis.frame
    soft = torch.sigmoid(torch.tensor([1.0, -1.0, 0.5, -0.2]) / 0.5)
    edit.train()
    torch.testing.assert_close(
        edit(base, source), base + (soft * ((source - base) @ frame)) @ frame.T
    )
    edit.eval()
    kept = frame[:, [0, 2]]
    torch.testing.assert_close(edit(base, source), base + (source - base) @ kept @ kept.T)
    assert edit.learned_rank() == 2


def test_masks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="none of units, rotated, pca"):
        iit.SigmoidMaskIntervention(W, basis="fourier")
    with pytest.raises(ValueError, match="belongs to basis=rotated"):
        iit.SigmoidMaskIntervention(W, rank=3)
    with pytest.raises(ValueError, match="never fitted"):
        iit.SigmoidMaskIntervention(W, basis="pca")(torch.randn(1, 1, W), torch.randn(1, 1, W))


def test_a_complement_takes_all_else_from_the_source(activations):
    base, source = activations
    edit = iit.LowRankRotatedSpaceIntervention(W, 2)
    frame, rest = edit.basis.vectors(), edit.complement()
    torch.testing.assert_close(rest(base, source), source + (base - source) @ frame @ frame.T)
    torch.testing.assert_close(rest(base, source) + edit(base, source), base + source)
    active = torch.tensor([True, False, True, False, False])
    found = rest(base, source, active)
    assert torch.equal(found[~active], base[~active])
    torch.testing.assert_close(found[active], rest(base, source)[active])
    assert rest.basis is edit.basis
    units = iit.VanillaIntervention(W, units="2:4")
    expected = source.clone()
    expected[..., 2:4] = base[..., 2:4]
    assert torch.equal(units.complement()(base, source), expected)
    blocks = iit.RotatedSpaceIntervention(W, blocks={"a": 1, "b": 2})
    frame = blocks.basis.vectors()
    torch.testing.assert_close(
        blocks.complement()(base, source), source + (base - source) @ frame @ frame.T
    )
    again = Intervention.from_config(rest.config())
    again.load_state_dict(rest.state_dict())
    assert torch.equal(again(base, source), rest(base, source))
    with pytest.raises(ValueError, match="nothing is left"):
        iit.VanillaIntervention(W).complement()
    with pytest.raises(ValueError, match="reads no source"):
        iit.ZeroIntervention(W).complement()


def test_units_may_be_a_range():
    assert (
        iit.VanillaIntervention(W, units="1:4").config()["gate"]
        == iit.VanillaIntervention(W, units=[1, 2, 3]).config()["gate"]
    )
    for wrong in ("3", "a:b", "-1:2"):
        with pytest.raises(ValueError, match="first:stop"):
            iit.VanillaIntervention(W, units=wrong)
    with pytest.raises(ValueError, match="from 0 to 6"):
        iit.VanillaIntervention(W, units="5:9")


def test_a_frame_begins_at_given_directions_in_their_order():
    directions = torch.randn(W, 3)
    frame = Frame(W, 5)
    frame.start(directions)
    q = frame.vectors()
    torch.testing.assert_close(q.T @ q, torch.eye(5), atol=1e-5, rtol=0)
    for k in (1, 2, 3):
        torch.testing.assert_close(
            q[:, :k] @ (q[:, :k].T @ directions[:, :k]), directions[:, :k], atol=1e-4, rtol=1e-3
        )
    for wrong, said in (
        (torch.randn(W + 1, 2), "cannot begin"),
        (torch.randn(W, 6), "cannot begin"),
        (torch.full((W, 1), torch.nan), "finite"),
        (torch.ones(W, 2), "independent"),
    ):
        with pytest.raises(ValueError, match=said):
            frame.start(wrong)
    data = torch.randn(40, W) * 3.0 ** torch.arange(W)
    torch.testing.assert_close(leading(data, 2).abs().argmax(0), torch.tensor([W - 1, W - 2]))
    few = leading(data[:4], W)
    torch.testing.assert_close(few.T @ few, torch.eye(W), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        few[:, :3] @ few[:, :3].T, leading(data[:4], 3) @ leading(data[:4], 3).T, atol=1e-4, rtol=0
    )
    with pytest.raises(ValueError, match="more than 5 activations; got 4"):
        leading(data[:4], 5)


def test_temperature_and_penalty():
    edit = iit.BoundlessRotatedSpaceIntervention(W, start=0.5, temperature=2.0)
    edit.anneal(0.25)
    assert float(edit.gate.temperature) == 0.5
    edit.anneal(0.5)
    assert float(edit.gate.temperature) == 1.0, "a multiple of what it was made with"
    steps = 0.5 * W - torch.arange(W) - 0.5
    penalty = edit.penalty()
    torch.testing.assert_close(penalty, torch.sigmoid(steps).mean())
    penalty.backward()
    soft = torch.sigmoid(steps)
    torch.testing.assert_close(edit.gate.boundary.grad, (soft * (1 - soft) * W).mean())
    assert "gate.temperature" not in dict(edit.named_parameters())
    assert float(iit.LowRankRotatedSpaceIntervention(W, 2).penalty()) == 0
    with pytest.raises(ValueError, match="above 0"):
        edit.anneal(0.0)
    for beyond, sign, rank in ((1.1, 1, W), (-0.1, -1, 0)):
        edit = iit.BoundlessRotatedSpaceIntervention(W, start=0.5, temperature=2.0)
        edit.gate.boundary.data.fill_(beyond)
        (sign * edit.penalty()).backward()
        assert edit.learned_rank() == rank
        assert sign * edit.gate.boundary.grad > 0, (
            "a boundary that has left the coordinates can come back"
        )
