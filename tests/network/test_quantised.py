"""Packed, wrapped, offloaded and other weights that are no plain tensors: stand-ins with the
layouts of libraries.
"""

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import iit
from iit.intervened import ActivationStore
from iit.intervened.snapshot import NetworkSnapshot
from iit.network import content, fingerprint
from tests.families import make, prompts


class Packed(nn.Module):
    """As bitsandbytes keeps four bits: bytes in one column."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(
            linear.weight.detach().reshape(-1, 1).view(torch.uint8), requires_grad=False
        )

    def forward(self, x):
        return x @ self.weight.view(torch.float32).view(self.out_features, self.in_features).T


class Wrapper(torch.Tensor):
    """A tensor without storage, whose values are in an attribute."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return type(args[0])(args[0].inner)
        args = [arg.inner if isinstance(arg, Wrapper) else arg for arg in args]
        if func is torch.ops.aten.t.default:
            return args[0].t()
        raise NotImplementedError(f"{func} of a packed weight")


class Flattened(Wrapper):
    """As torchao: it says of which tensors it is made."""

    def __tensor_flatten__(self):
        return ["inner"], None


def linears(network):
    return [
        (name, m)
        for name, m in network.named_modules()
        if type(m) is nn.Linear and "lm_head" not in name
    ]


def packed(network):
    for name, linear in linears(network):
        network.get_submodule(name.rpartition(".")[0]).register_module(
            name.rpartition(".")[2], Packed(linear)
        )
    return network.eval()


def wrapped(kind):
    def change(network):
        for _, linear in linears(network):
            linear.weight = nn.Parameter(kind(linear.weight.detach()), requires_grad=False)
        return network

    return change


KINDS = {
    "packed": packed,
    "wrapper": wrapped(Wrapper),
    "flattened": wrapped(Flattened),
    "offloaded": cpu_offload,
}
SITES = {
    "mlp_activation": 24,
    "key_output": 8,
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_any_kind_are_told_apart_and_run(kind):
    plain, network, other = (
        make("llama"),
        KINDS[kind](make("llama")),
        KINDS[kind](make("llama", seed=5)),
    )
    for told in (fingerprint, content):
        assert told(network) == told(network) != told(other)
    assert (fingerprint(network) == fingerprint(plain)) == (kind == "offloaded")
    snapshot = NetworkSnapshot(network)
    base, source = prompts(), prompts(seed=3)
    for component, width in SITES.items():
        site = iit.Site(component, layer=1, position="last")
        torch.manual_seed(0)
        alignment = iit.alignment.one(
            network, "v", site, lambda width: iit.LowRankRotatedSpaceIntervention(width, 2)
        )
        assert alignment.edits["v"].intervention.width == width
        alignment.store = ActivationStore(network)
        right = iit.Alignment(plain, alignment.edits)
        got = alignment.answer_logits(base, source)
        torch.testing.assert_close(got, right.answer_logits(base, source), atol=1e-5, rtol=1e-5)
        got.sum().backward()
    assert snapshot.change() is None
    assert not snapshot.content_changed()
    assert snapshot.refusal() is None


@pytest.mark.parametrize("kind", ["packed", "wrapper", "flattened"])
def test_a_change_inside_is_noticed(kind):
    network = KINDS[kind](make("llama"))
    snapshot, before = NetworkSnapshot(network), fingerprint(network)
    weight = network.model.layers[0].mlp.up_proj.weight
    inner = weight.data if kind == "packed" else weight.inner
    inner.zero_()
    # Torch does not count what is written through `.data`.
    assert snapshot.change() == (None if kind == "packed" else "its weights")
    assert snapshot.content_changed()
    assert fingerprint(network) != before


def test_dtypes_that_torch_does_not_compute_with():
    for dtype in (
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.uint4,
    ):
        networks = []
        for value in (0, 1):
            network = nn.Module()
            raw = torch.full((7, 3), value, dtype=torch.uint8)
            network.register_buffer("weight", raw.view(dtype))
            networks.append(network)
        assert fingerprint(networks[0]) != fingerprint(networks[1])
        assert NetworkSnapshot(networks[0]).change() is None


def test_other_entries_of_a_state_dict():
    sparse = nn.ParameterDict(
        {"weight": nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)}
    )
    with torch.inference_mode():
        inference = nn.Linear(2, 2)
    for network in (sparse, inference, nn.Identity()):
        assert fingerprint(network) == fingerprint(network)
        snapshot = NetworkSnapshot(network)
        assert snapshot.change() is None
        assert not snapshot.content_changed()


def test_meta_weights_without_a_place_are_told_by_shape():
    with torch.device("meta"):
        small, large = nn.Linear(2, 2), nn.Linear(2, 3)
    assert fingerprint(small) == fingerprint(nn.Linear(2, 2, device="meta")) != fingerprint(large)
    assert content(small) != content(large)
