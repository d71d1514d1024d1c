"""Autoencoders from folders in SAELens's layout, against features computed by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

import iit
from iit.intervention import SigmoidMask, load_autoencoder
from tests.seeds import shifted

D, N = 6, 10


def folder_of(path, kind, dtype=torch.float32, **config):
    generator = torch.Generator().manual_seed(shifted(0))
    tensors = {
        "W_enc": torch.randn(D, N, generator=generator),
        "W_dec": torch.randn(N, D, generator=generator),
        "b_enc": torch.randn(N, generator=generator),
        "b_dec": torch.randn(D, generator=generator),
    }
    if kind == "jumprelu":
        tensors["threshold"] = torch.rand(N, generator=generator) - 0.2
    if kind == "gated":
        tensors["b_mag"] = tensors.pop("b_enc")
        tensors["b_gate"] = tensors["b_mag"] + torch.randn(N, generator=generator)
        tensors["r_mag"] = 0.5 * torch.randn(N, generator=generator)
    path.mkdir()
    save_file(
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        path / "sae_weights.safetensors",
    )
    told = {
        "architecture": kind,
        "d_in": D,
        "d_sae": N,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    (path / "cfg.json").write_text(
        json.dumps({k: v for k, v in (told | config).items() if v is not ...})
    )
    return {name: tensor.to(dtype).float() for name, tensor in tensors.items()}


def features(h, t, architecture, k=3, centred=True, rescaled=False):
    shared = (h - t["b_dec"] if centred else h) @ t["W_enc"]
    if architecture == "gated":
        gate = shared + t["b_gate"] > 0
        magnitude = (shared * t["r_mag"].exp() + t["b_mag"]).relu()
        assert bool((gate != (magnitude > 0)).any()), "the gate is a path of its own"
        return gate * magnitude, torch.ones(N)
    before = shared + t["b_enc"]
    norms = t["W_dec"].norm(dim=1) if rescaled else torch.ones(N)
    before = before * norms
    found = before.relu()
    if architecture == "jumprelu":
        found = found * (before > t["threshold"])
    if architecture == "topk":
        kept = before.topk(k, -1).indices
        found = torch.zeros_like(found).scatter(-1, kept, found.gather(-1, kept))
    return found, norms


CASES = [
    ("standard", {}, {}),
    ("standard", {"architecture": ..., "apply_b_dec_to_input": False}, {"centred": False}),
    ("topk", {"k": 3}, {}),
    ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}, {"k": 4}),
    ("topk", {"k": 3, "rescale_acts_by_decoder_norm": True}, {"rescaled": True}),
    ("gated", {}, {}),
    ("gated", {"apply_b_dec_to_input": False}, {"centred": False}),
    ("jumprelu", {"metadata": {"hook_name": "blocks.3.hook_resid_post"}}, {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "config", "how"), CASES)
def test_features_and_edits_are_those_computed_by_hand(tmp_path, architecture, config, how, dtype):
    t = folder_of(tmp_path / "sae", architecture, dtype, **config)
    chosen = [0, 2, 3, 7]
    edit = load_autoencoder(tmp_path / "sae", width=D, features=chosen)
    base, source = torch.randn(2, 5, 1, D, generator=torch.Generator().manual_seed(shifted(1)))
    one, norms = features(base, t, architecture, **how)
    two, _ = features(source, t, architecture, **how)
    torch.testing.assert_close(edit.basis.coordinates().encode(base), one, rtol=1e-4, atol=1e-5)
    assert bool((one != two)[..., chosen].any())
    change = torch.zeros_like(one)
    change[..., chosen] = (two - one)[..., chosen] / norms[chosen]
    torch.testing.assert_close(edit(base, source), base + change @ t["W_dec"], rtol=1e-4, atol=1e-5)


def test_a_mask_over_features_is_learned_and_saved(tmp_path, tiny_llama):
    folder_of(tmp_path / "sae", "jumprelu")
    edit = load_autoencoder(tmp_path / "sae", mask=True, temperature=0.5)
    assert isinstance(edit.gate, SigmoidMask)
    assert [name for name, p in edit.named_parameters() if p.requires_grad] == ["gate.mask"]
    again = iit.intervention.Intervention.from_config(edit.config())
    again.load_state_dict(edit.state_dict())
    base, source = torch.randn(2, 3, 1, D)
    assert torch.equal(edit(base, source), again(base, source))
    with pytest.raises(ValueError, match="both were given"):
        load_autoencoder(tmp_path / "sae", features=[1], mask=True)


def test_what_would_not_be_computed_as_there_is_refused(tmp_path):
    cases = [
        ({"architecture": "batchtopk"}, "architecture='batchtopk' is none of"),
        ({"architecture": "gated"}, r"a gated autoencoder has \['W_dec', .*'r_mag'\]"),
        (
            {"normalize_activations": "layer_norm"},
            "normalize_activations='layer_norm' is not supported",
        ),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn='tanh-relu'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor=True"),
        ({"d_in": ...}, "is damaged"),
        ({"d_sae": N + 1}, "does not fit"),
    ]
    for number, (config, said) in enumerate(cases):
        folder_of(tmp_path / str(number), "standard", **config)
        with pytest.raises(ValueError, match=said):
            load_autoencoder(tmp_path / str(number))
    folder_of(tmp_path / "sae", "standard")
    with pytest.raises(ValueError, match=r"d_in=6; the site has width 8"):
        load_autoencoder(tmp_path / "sae", width=8)
    folder_of(tmp_path / "jump", "jumprelu", architecture="standard")
    with pytest.raises(ValueError, match="threshold"):
        load_autoencoder(tmp_path / "jump")
    (tmp_path / "sae" / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no sae_weights\.safetensors"):
        load_autoencoder(tmp_path / "sae")
