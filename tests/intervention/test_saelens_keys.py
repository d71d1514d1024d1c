"""Every key of a SAELens configuration is obeyed or refused; features are worked out by hand."""

import json

import pytest
import torch
from safetensors.torch import save_file

from iit.intervention import load_autoencoder

WIDTH, FEATURES = 4, 9
OTHER = "is not supported"
CONTRADICTION = "contradict each other"


def weights():
    generator = torch.Generator().manual_seed(3)
    return {
        "W_enc": torch.randn(WIDTH, FEATURES, generator=generator),
        "W_dec": torch.randn(FEATURES, WIDTH, generator=generator),
        "b_enc": torch.randn(FEATURES, generator=generator),
        "b_dec": torch.randn(WIDTH, generator=generator),
    }


def written(folder, config, **tensors):
    folder.mkdir(exist_ok=True)
    save_file(weights() | tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": WIDTH, "d_sae": FEATURES} | config))
    return folder


def pre_activations(h):
    tensors = weights()
    return (h - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]


def top_three(h):
    """The three largest pre-activations, after a ReLU."""
    before = pre_activations(h)
    smallest = before.sort(-1, descending=True).values[..., 2:3]
    return before.relu() * (before >= smallest)


def relu(h):
    return pre_activations(h).relu()


def loaded_features(folder, h):
    return load_autoencoder(folder).basis.coordinates().encode(h)


TOP = {"activation_fn": "topk", "activation_fn_kwargs": {"k": 3}}
OBEYED = [
    (TOP | {"architecture": "standard"}, top_three),
    (TOP, top_three),
    (TOP | {"architecture": "topk"}, top_three),
    (
        {
            "activation_fn_str": "topk",
            "activation_fn": "topk",
            "k": 3,
            "activation_fn_kwargs": {"k": 3},
        },
        top_three,
    ),
    ({"architecture": "topk", "k": 3, "activation_fn_kwargs": None}, top_three),
    (
        {"activation_fn": "relu", "normalize_activations": False, "hook_point_head_index": None},
        relu,
    ),
    ({"hook_name": "blocks.1.attn.hook_z", "reshape_activations": "hook_z"}, relu),
    (
        {
            "architecture": "standard",
            "l1_coefficient": 5,
            "noise_scale": 0.0,
            "hook_layer": 2,
            "lr": 1e-3,
        },
        relu,
    ),
    ({"metadata": {"hook_head_index": None, "anything": 1, "sae_lens_version": "6.54.12"}}, relu),
    ({"finetuning_scaling_factor": False, "metadata": None, "seqpos_slice": [None]}, relu),
]


@pytest.mark.parametrize(("config", "features"), OBEYED)
def test_what_a_configuration_says_is_computed(tmp_path, config, features):
    h = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(loaded_features(written(tmp_path, config), h), features(h))
    assert bool((top_three(h) != relu(h)).any())


REFUSED = [
    ({"architecture": "standard", "activation_fn": "topk"}, CONTRADICTION),
    ({"architecture": "topk", "activation_fn": "relu", "k": 3}, CONTRADICTION),
    ({"architecture": "topk", "k": 3, "activation_fn_kwargs": {"k": 4}}, CONTRADICTION),
    ({"architecture": "topk", "k": 3.5}, CONTRADICTION),
    ({"architecture": "topk"}, CONTRADICTION),
    ({"architecture": "standard", "k": 3}, CONTRADICTION),
    ({"activation_fn": "relu", "activation_fn_str": "topk", "k": 3}, CONTRADICTION),
    (TOP | {"activation_fn_kwargs": {"k": 3, "postact_fn": "tanh"}}, CONTRADICTION),
    ({"activation_fn": "tanh-relu"}, "is not supported"),
    ({"rescale_acts_by_decoder_norm": True}, CONTRADICTION),
    ({"normalize_activations": True}, OTHER),
    ({"normalize_activations": "covariance_whitening"}, OTHER),
    ({"apply_b_dec_to_input": "false"}, OTHER),
    ({"hook_point_head_index": 3}, OTHER),
    ({"metadata": {"hook_head_index": 3}}, OTHER),
    ({"metadata": {"hook_name_out": "blocks.1.hook_mlp_out"}}, OTHER),
    ({"d_out": WIDTH}, OTHER),
    ({"architecture": "batchtopk", "k": 3}, "is none of"),
    ({"architecture": "transcoder"}, "is none of"),
    ({"sae_diff_type": "topk"}, "is no key of SAELens"),
    ({"activation": "gelu"}, "is no key of SAELens"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_would_be_computed_otherwise_is_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        load_autoencoder(written(tmp_path, config))


def test_old_tensors_are_read_as_saelens_reads_them(tmp_path):
    h = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(4))
    one = written(tmp_path / "one", {}, scaling_factor=torch.ones(FEATURES))
    torch.testing.assert_close(loaded_features(one, h), relu(h))
    two = written(tmp_path / "two", {}, scaling_factor=torch.full((FEATURES,), 2.0))
    with pytest.raises(ValueError, match="scaling_factor"):
        load_autoencoder(two)

    jumps = written(
        tmp_path / "jumps",
        {"architecture": "jumprelu"},
        log_threshold=torch.full((FEATURES,), 0.5).log(),
    )
    before = pre_activations(h)
    torch.testing.assert_close(loaded_features(jumps, h), before * (before > 0.5))


def test_a_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "sae", {})
    assert load_autoencoder("~/sae").basis.width == WIDTH
