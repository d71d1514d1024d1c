import json
import math

import pytest
import torch

import iit
from iit.intervention import PARTS, Frame, Intervention, SoftGate
from iit.intervention.operation import Operation
from tests.seeds import shifted

W = 8


def autoencoder(**kwargs):
    generator = torch.Generator().manual_seed(shifted(0))
    shapes = {"encoder": (W, 12), "decoder": (12, W), "encoder_bias": (12,), "decoder_bias": (W,)}
    return {
        name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
    } | kwargs


MAKERS = {
    "vanilla": lambda: iit.VanillaIntervention(),
    "units": lambda: iit.VanillaIntervention(W, units=[1, 4]),
    "zero": lambda: iit.ZeroIntervention(),
    "mean": lambda: iit.MeanIntervention(torch.arange(W) / 3),
    "mean_of_source": lambda: iit.MeanIntervention(),
    "addition": lambda: iit.AdditionIntervention(torch.arange(W) / 3, scale=2.0),
    "addition_of_source": lambda: iit.AdditionIntervention(),
    "subtraction": lambda: iit.SubtractionIntervention(torch.arange(W) / 3),
    "noise": lambda: iit.NoiseIntervention(0.5, seed=3),
    "collect": lambda: iit.CollectIntervention(),
    "rotated": lambda: iit.RotatedSpaceIntervention(W),
    "blocks": lambda: iit.RotatedSpaceIntervention(W, blocks={"u": 2, "v": 3}),
    "low_rank": lambda: iit.LowRankRotatedSpaceIntervention(W, 3),
    "boundless": lambda: iit.BoundlessRotatedSpaceIntervention(W, temperature=2.0),
    "sigmoid_mask": lambda: iit.SigmoidMaskIntervention(W),
    "pca": lambda: iit.PCARotatedSpaceIntervention(
        W, 2, torch.randn(50, W, generator=torch.Generator().manual_seed(shifted(1)))
    ),
    "autoencoder": lambda: iit.AutoencoderIntervention(W, 12, features=[0, 3, 5], **autoencoder()),
    "top_k": lambda: iit.AutoencoderIntervention(
        W, 12, activation="top_k", k=4, centred=True, **autoencoder()
    ),
    "jump_relu": lambda: iit.JumpReLUAutoencoderIntervention(
        W, 12, **autoencoder(threshold=torch.full((12,), 0.3))
    ),
    "loreft": lambda: iit.LoReFTIntervention(W, 3),
    "lora": lambda: iit.LoRAIntervention(W, 3, scale=0.5),
}
TRAINED = {"rotated", "blocks", "low_rank", "boundless", "sigmoid_mask", "loreft", "lora"}


@pytest.fixture(params=MAKERS)
def made(request):
    torch.manual_seed(shifted(0))
    return request.param, MAKERS[request.param]()


def pair(n=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(shifted(7))
    return (torch.randn(n, 2, W, generator=generator).to(dtype) for _ in range(2))


def call(intervention, base, source, active=None):
    if not intervention.needs_source:
        return intervention(base, active=active)
    if intervention.blocks:
        return intervention(base, dict.fromkeys(intervention.blocks, source), active)
    return intervention(base, source, active)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_dtype_stay(made, dtype):
    _, intervention = made
    base, source = pair(dtype=dtype)
    out = call(intervention, base, source)
    assert out.shape == base.shape
    assert out.dtype == dtype


def test_source_equal_to_base_changes_nothing(made):
    name, intervention = made
    base, _ = pair()
    if intervention.needs_source and not name.startswith(("addition", "mean")):
        torch.testing.assert_close(call(intervention, base, base), base, atol=1e-6, rtol=1e-6)


def test_exactly_what_is_trained_gets_a_gradient(made):
    name, intervention = made
    assert bool(list(intervention.parameters())) == (name in TRAINED)
    base, source = pair()
    weights = torch.randn(base.shape, generator=torch.Generator().manual_seed(shifted(2)))
    loss = (call(intervention, base, source) * weights).sum()
    assert loss.requires_grad == (name in TRAINED)
    if name in TRAINED:
        loss.backward()
    for parameter_name, parameter in intervention.named_parameters():
        if (name, parameter_name) == ("lora", "operation.down.weight"):
            continue  # B starts at zero
        if name == "rotated":
            continue  # the whole space: no rotation of it matters
        assert parameter.grad is not None, parameter_name
        assert float(parameter.grad.abs().sum()) > 0, parameter_name
    assert not any("temperature" in n for n, _ in intervention.named_parameters())


def test_inactive_examples_come_back_bit_by_bit(made):
    _, intervention = made
    base, source = pair()
    flags = torch.tensor([True, False, True, False])
    active = dict.fromkeys(intervention.blocks, flags) if intervention.blocks else flags
    out = call(intervention, base, source, active)
    assert torch.equal(out[~flags], base[~flags])
    assert torch.equal(out[flags], call(intervention, base, source)[flags])


def test_config_makes_one_of_the_same_shape_and_weights_make_it_equal(made):
    _, intervention = made
    config = json.loads(json.dumps(intervention.config()))
    again = Intervention.from_config(config)
    again.load_state_dict(intervention.state_dict())
    assert repr(again) == repr(intervention)
    base, source = pair()
    assert torch.equal(call(again.eval(), base, source), call(intervention.eval(), base, source))


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_batches(made, n):
    _, intervention = made
    base, source = pair(n)
    assert call(intervention, base, source).shape == (n, 2, W)


def test_results_do_not_depend_on_the_batch(made):
    _, intervention = made
    base, source = pair()
    whole = call(intervention, base, source)
    for row in range(4):
        torch.testing.assert_close(
            call(intervention, base[row : row + 1], source[row : row + 1]),
            whole[row : row + 1],
            atol=3e-5,
            rtol=3e-5,
        )


@pytest.mark.parametrize("name", ["blocks", "low_rank", "pca", "loreft"])
def test_what_a_frame_does_not_span_is_untouched(name):
    intervention = MAKERS[name]()
    base, source = pair()
    q = (
        intervention.basis.vectors()
        if isinstance(intervention.basis, Frame)
        else intervention.basis.frame
    )
    torch.testing.assert_close(q.T @ q, torch.eye(q.shape[1]), atol=1e-5, rtol=0)
    change = call(intervention, base, source) - base
    torch.testing.assert_close(
        change - change @ q @ q.T, torch.zeros_like(change), atol=1e-5, rtol=0
    )


def test_low_rank_is_the_projection_of_the_difference_on_the_span():
    intervention = iit.LowRankRotatedSpaceIntervention(W, 3)
    with torch.no_grad():
        intervention.basis.weight.copy_(torch.randn(W, 3) * torch.tensor([1.0, 5.0, 0.2]))
    a = intervention.basis.weight
    projector = a @ torch.linalg.inv(a.T @ a) @ a.T
    base, source = pair()
    torch.testing.assert_close(
        intervention(base, source), base + (source - base) @ projector, atol=1e-5, rtol=1e-5
    )


def test_frame_gradients_are_exact():
    torch.manual_seed(shifted(0))
    frame = Frame(6, 3).double()
    base, source = (
        torch.randn(2, 1, 6, dtype=torch.float64),
        torch.randn(2, 1, 6, dtype=torch.float64),
    )
    intervention = Intervention(
        "x", frame, iit.VanillaIntervention().gate, iit.VanillaIntervention().operation
    )

    def run(weight):
        return torch.func.functional_call(intervention, {"basis.weight": weight}, (base, source))

    assert torch.autograd.gradcheck(
        run, (torch.randn(6, 3, dtype=torch.float64, requires_grad=True),)
    )


def conditioned(width, rank, condition):
    """A frame whose parameter has singular values from 1 down to 1 / condition."""
    frame = Frame(width, rank)
    left, right = (
        torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64))[0] for n in (width, rank)
    )
    values = torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64)
    with torch.no_grad():
        frame.weight.copy_(left * values @ right.T)
    return frame


@pytest.fixture(params=[True, False], ids=["double", "no double"])
def double(request, monkeypatch):
    """Whether the device has double precision; one without raises, as MPS does."""

    def refuse(tensor):
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
            "support float64."
        )

    if not request.param:
        monkeypatch.setattr(torch.Tensor, "double", refuse)
    return request.param


@pytest.mark.parametrize(("width", "rank"), [(24, 8), (300, 64), (64, 64), (5, 1)])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 9e4])
def test_a_frame_is_orthonormal_however_near_its_vectors_are_to_dependent(
    width, rank, condition, double
):
    frame = conditioned(width, rank, condition if rank > 1 else 1.0)
    vectors = frame.vectors()
    assert vectors.dtype == torch.float32
    exactly = vectors.detach().to(torch.float64)
    # Single precision alone gives 6e-7 at the most, double precision 4e-8.
    torch.testing.assert_close(
        exactly.T @ exactly, torch.eye(rank, dtype=torch.float64), atol=1e-6, rtol=0
    )
    vectors.square().cumsum(0).sum().backward()
    assert torch.isfinite(frame.weight.grad).all()


@pytest.mark.parametrize("condition", [1.2e5, 1e6, 1e9])
def test_a_frame_that_is_nearly_dependent_is_refused(condition, double):
    with pytest.raises(ValueError, match="lost its rank: its 8 vectors are nearly dependent"):
        conditioned(24, 8, condition).vectors()


@pytest.mark.parametrize(("condition", "bent"), [(10.0, False), (5e4, True)])
def test_a_bent_frame_becomes_orthonormal_and_keeps_its_vectors(condition, bent, double):
    frame = conditioned(24, 8, condition)
    weight, vectors = frame.weight.detach().clone(), frame.vectors().detach()
    frame.straighten()
    assert bent is not torch.equal(frame.weight, weight)
    torch.testing.assert_close(frame.vectors(), vectors, atol=2e-6, rtol=0)
    values = torch.linalg.svdvals(frame.weight.detach())
    assert float(values[0] / values[-1]) == pytest.approx(1 if bent else condition, rel=1e-3)


@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_a_frame_and_its_gradient_are_those_of_the_qr_decomposition(condition, double):
    frame = conditioned(12, 4, condition)
    weight = frame.weight.detach().to(torch.float64).requires_grad_()
    vectors, triangle = torch.linalg.qr(weight)
    vectors = vectors * triangle.diagonal().sign()
    # Rounding moves the span of vectors that are nearly dependent by as much more.
    close = {"atol": 1e-6 * (1.0 if double else condition), "rtol": 1e-4}
    torch.testing.assert_close(frame.vectors().to(torch.float64), vectors, **close)
    along = torch.randn(12, 4, dtype=torch.float64)
    (vectors * along).sum().backward()
    (frame.vectors() * along.float()).sum().backward()
    scale = float(weight.grad.abs().max())
    close["atol"] *= scale
    torch.testing.assert_close(frame.weight.grad.to(torch.float64), weight.grad, **close)


def test_autocast_leaves_the_frame_in_fp32():
    intervention = iit.LowRankRotatedSpaceIntervention(W, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = intervention.basis.vectors()
    assert q.dtype == torch.float32
    torch.testing.assert_close(q.T @ q, torch.eye(3), atol=1e-6, rtol=0)


def test_vanilla_is_the_source_bit_by_bit_and_a_full_rotation_to_rounding():
    base, source = pair()
    assert torch.equal(iit.VanillaIntervention()(base, source), source)
    torch.testing.assert_close(
        iit.RotatedSpaceIntervention(W)(base, source), source, atol=1e-5, rtol=1e-5
    )


def test_the_plain_ones_by_hand():
    base, source = pair()
    v = torch.arange(W) / 3
    assert torch.equal(iit.ZeroIntervention()(base), torch.zeros_like(base))
    assert torch.equal(iit.MeanIntervention(v)(base), v.expand_as(base))
    torch.testing.assert_close(
        iit.MeanIntervention()(base, source), source.mean(1, keepdim=True).expand_as(base)
    )
    torch.testing.assert_close(iit.AdditionIntervention(v, scale=2.0)(base), base + 2 * v)
    torch.testing.assert_close(iit.AdditionIntervention()(base, source), base + source)
    torch.testing.assert_close(iit.SubtractionIntervention(v)(base), base - v)
    units = iit.VanillaIntervention(W, units=[1, 4])(base, source)
    expected = base.clone()
    expected[..., [1, 4]] = source[..., [1, 4]]
    torch.testing.assert_close(units, expected)


def test_noise_repeats_by_seed_and_has_its_scale():
    base = torch.zeros(3, 400, W)
    noise = iit.NoiseIntervention(0.5, seed=3)(base)
    assert torch.equal(noise, iit.NoiseIntervention(0.5, seed=3)(base))
    assert not torch.equal(noise, iit.NoiseIntervention(0.5, seed=4)(base))
    assert torch.equal(noise[:, :7], iit.NoiseIntervention(0.5, seed=3)(base[:, :7]))
    # A standard deviation of 9,600 draws is off by 0.7% at one standard error: six of these.
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(iit.NoiseIntervention(0.0)(base), base)


def test_boundless_by_hand_soft_in_training_and_hard_in_evaluation():
    intervention = iit.BoundlessRotatedSpaceIntervention(W, start=0.5, temperature=2.0)
    base, source = pair()
    q = intervention.basis.vectors()
    steps = torch.arange(W) + 0.5
    for training, gate in (
        (True, torch.sigmoid((0.5 * W - steps) / 2.0)),
        (False, (steps < 4).float()),
    ):
        intervention.train(training)
        torch.testing.assert_close(
            intervention(base, source),
            base + ((source - base) @ q * gate) @ q.T,
            atol=1e-5,
            rtol=1e-5,
        )
    assert intervention.learned_rank() == 4
    torch.testing.assert_close(intervention.gate.penalty(), torch.sigmoid((4 - steps) / 2).mean())


def test_sigmoid_mask_by_hand():
    intervention = iit.SigmoidMaskIntervention(W, temperature=0.5)
    with torch.no_grad():
        intervention.gate.mask.copy_(torch.linspace(-1, 1, W))
    base, source = pair()
    torch.testing.assert_close(
        intervention(base, source),
        base + torch.sigmoid(torch.linspace(-1, 1, W) / 0.5) * (source - base),
    )
    torch.testing.assert_close(
        intervention.eval()(base, source), torch.where(torch.arange(W) >= 4, source, base)
    )
    assert intervention.learned_rank() == 4


def test_temperatures_are_buffers():
    for intervention in (iit.BoundlessRotatedSpaceIntervention(W), iit.SigmoidMaskIntervention(W)):
        assert isinstance(intervention.gate, SoftGate)
        before = intervention.gate.temperature.clone()
        optimizer = torch.optim.SGD(intervention.parameters(), lr=1.0)
        base, source = pair()
        intervention(base, source).sum().backward()
        optimizer.step()
        assert torch.equal(before, intervention.gate.temperature)


def test_loreft_and_lora_by_hand():
    base, _ = pair()
    loreft = iit.LoReFTIntervention(W, 3)
    q, linear = loreft.basis.vectors(), loreft.operation.linear
    torch.testing.assert_close(
        loreft(base),
        base + (base @ linear.weight.T + linear.bias - base @ q) @ q.T,
        atol=1e-6,
        rtol=1e-5,
    )
    lora = iit.LoRAIntervention(W, 3, scale=0.5)
    assert torch.equal(lora(base), base)
    torch.nn.init.ones_(lora.operation.up.weight)
    by_hand = base + 0.5 * base @ lora.operation.down.weight.T @ lora.operation.up.weight.T
    torch.testing.assert_close(lora(base), by_hand)


def test_autoencoders_by_hand_keep_their_error():
    weights = autoencoder(threshold=torch.full((12,), 0.3))
    base, source = pair()

    def features(h, kind):
        x = (h - weights["decoder_bias"] if kind == "top_k" else h) @ weights["encoder"] + weights[
            "encoder_bias"
        ]
        if kind == "jump_relu":
            return x * (x > 0.3)
        x = x.relu()
        return x if kind == "relu" else x * (x >= x.topk(4).values[..., -1:])

    for name, kind, chosen in (
        ("autoencoder", "relu", [0, 3, 5]),
        ("top_k", "top_k", range(12)),
        ("jump_relu", "jump_relu", range(12)),
    ):
        change = torch.zeros(4, 2, 12)
        difference = features(source, kind) - features(base, kind)
        change[..., list(chosen)] = difference[..., list(chosen)]
        torch.testing.assert_close(
            MAKERS[name]()(base, source), base + change @ weights["decoder"], atol=1e-5, rtol=1e-5
        )


def test_an_autoencoder_without_weights_is_refused():
    base, source = pair()
    for given in ({}, {"encoder": autoencoder()["encoder"]}, {"decoder_bias": torch.ones(W)}):
        with pytest.raises(ValueError, match=r"holds no weights.*encoder= and decoder="):
            iit.AutoencoderIntervention(W, 12, **given)(base, source)
    full = MAKERS["autoencoder"]()
    again = Intervention.from_config(full.config())
    with pytest.raises(ValueError, match="holds no weights"):
        again(base, source)
    again.load_state_dict(full.state_dict())
    assert torch.equal(again(base, source), full(base, source))


def test_pca_finds_the_directions_of_greatest_variance():
    generator = torch.Generator().manual_seed(shifted(0))
    spread = torch.tensor([0.1, 5.0, 0.1, 3.0, 0.1, 0.1, 0.1, 0.1])
    data = torch.randn(500, W, generator=generator) * spread + 10
    frame = iit.PCARotatedSpaceIntervention(W, 2, data).basis.frame
    assert float(frame[[1, 3]].square().sum()) == pytest.approx(2.0, abs=1e-2)
    with pytest.raises(ValueError, match="more than 2 activations"):
        iit.PCARotatedSpaceIntervention(W, 2, data[:2])


def test_blocks_are_independent():
    intervention = MAKERS["blocks"]()
    base, source = pair()
    other = source + 1
    q = intervention.basis.vectors()
    out = intervention(base, {"u": source, "v": other})
    torch.testing.assert_close((out @ q)[..., :2], (source @ q)[..., :2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((out @ q)[..., 2:], (other @ q)[..., 2:], atol=1e-5, rtol=1e-5)
    some = {"u": torch.tensor([True, False, True, False]), "v": torch.tensor([False] * 4)}
    out = intervention(base, {"u": source}, some)
    torch.testing.assert_close(
        (out @ q)[::2, :, :2], (source @ q)[::2, :, :2], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close((out @ q)[::2, :, 2:], (base @ q)[::2, :, 2:], atol=1e-5, rtol=1e-5)
    assert torch.equal(out[1::2], base[1::2])


BASE, SOURCE = torch.zeros(2, 1, W), torch.ones(2, 1, W)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: iit.LowRankRotatedSpaceIntervention(W, 0), "rank=0 .*between 1 and 8"),
        (lambda: iit.LowRankRotatedSpaceIntervention(W, 9), "rank=9 .*between 1 and 8"),
        (
            lambda: iit.RotatedSpaceIntervention(W, blocks={"u": 5, "v": 4}),
            "need 9 dimensions; the space has 8",
        ),
        (
            lambda: iit.RotatedSpaceIntervention(W, blocks={"u": 5, "v": 0}),
            "at least one coordinate",
        ),
        (lambda: iit.VanillaIntervention(W, units=[8]), "different indices from 0 to 7"),
        (lambda: iit.VanillaIntervention(units=[1]), "needs the width"),
        (lambda: iit.AdditionIntervention(torch.zeros(W), width=9), "width 8, the site 9"),
        (lambda: iit.NoiseIntervention(-1.0), "scale=-1.0"),
        (lambda: iit.SigmoidMaskIntervention(W, temperature=0.0), "temperature=0"),
        (lambda: iit.AutoencoderIntervention(W, 12, activation="gelu"), "'gelu' is none of"),
        (
            lambda: iit.AutoencoderIntervention(W, 12, activation="top_k"),
            "needs k between 1 and 12",
        ),
        (
            lambda: iit.AutoencoderIntervention(W, 12, encoder=torch.zeros(W, 11)),
            r"'encoder' of shape \(8, 11\)",
        ),
        (
            lambda: iit.AutoencoderIntervention(W, 12, encoder=torch.full((W, 12), torch.nan)),
            "'encoder' has values that are not finite",
        ),
        (lambda: iit.VanillaIntervention()(BASE), "needs a source"),
        (lambda: iit.ZeroIntervention()(BASE, SOURCE), "reads no source"),
        (lambda: iit.VanillaIntervention()(BASE, SOURCE[:1]), r"source has shape \(1, 1, 8\)"),
        (lambda: iit.LowRankRotatedSpaceIntervention(6, 2)(BASE, SOURCE), "made for width 6"),
        (lambda: MAKERS["blocks"]()(BASE, SOURCE), "has blocks"),
        (lambda: MAKERS["blocks"]()(BASE, {"u": SOURCE}), r"missing: \['v'\]"),
        (
            lambda: MAKERS["blocks"]()(BASE, {"u": SOURCE, "w": SOURCE}),
            r"no block \['w'\]; its blocks are \['u', 'v'\]",
        ),
        (lambda: iit.VanillaIntervention()(BASE, {"u": SOURCE}), "has no blocks"),
        (lambda: iit.LambdaIntervention(lambda h: h).config(), "cannot be saved"),
        (
            lambda: Intervention.from_config(
                iit.ZeroIntervention().config() | {"gate": {"type": "exec"}}
            ),
            "no part 'exec'; there is Add, All",
        ),
    ],
)
def test_errors_name_what_is_wrong(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_frame_that_lost_its_rank_is_refused():
    frame = Frame(W, 2)
    with torch.no_grad():
        frame.weight[:, 1] = frame.weight[:, 0]
        frame.weight.mul_(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="lost its rank"):
        frame.vectors()


class Halve(Operation):
    def forward(self, base, source, activation):
        return base / 2


def test_own_parts_join_by_name():
    config = iit.ZeroIntervention().config() | {"operation": {"type": "Halve"}}
    assert "Halve" not in PARTS
    assert torch.equal(Intervention.from_config(config, {"Halve": Halve})(SOURCE), SOURCE / 2)


@pytest.mark.parametrize("name", ["low_rank", "blocks", "vanilla"])
def test_repr_says_what_it_is(name):
    assert (
        repr(MAKERS[name]())
        == {
            "low_rank": "LowRankRotatedSpaceIntervention(width=8, rank=3)",
            "blocks": "RotatedSpaceIntervention(width=8, rank=5, blocks={'u': 2, 'v': 3})",
            "vanilla": "VanillaIntervention()",
        }[name]
    )


def test_what_is_swapped_does_not_depend_on_the_size_of_what_was_there():
    base, source = torch.full((1, 1, W), 1e8), torch.randn(1, 1, W)
    mask = iit.SigmoidMaskIntervention(W).eval()
    assert torch.equal(mask(base, source), source)
    units = iit.VanillaIntervention(W, units=[1, 4])(base, source)
    assert torch.equal(units[..., [1, 4]], source[..., [1, 4]])
    assert torch.equal(units[..., [0, 2]], base[..., [0, 2]])


def test_nothing_is_broadcast_into_the_network():
    with pytest.raises(ValueError, match=r"made \(2, 1, 8\) of an activation of shape \(2, 3, 8\)"):
        iit.LambdaIntervention(lambda h: h.mean(1, keepdim=True))(torch.randn(2, 3, W))


@pytest.mark.parametrize(
    "make", [iit.AdditionIntervention, iit.SubtractionIntervention, iit.MeanIntervention]
)
def test_vectors_that_are_not_finite_are_refused(make):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            make(torch.tensor([1.0, value]))


def test_pca_of_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not all finite"):
        iit.PCARotatedSpaceIntervention(3, 1, torch.full((5, 3), float("nan")))
