"""Autoencoders that the installed SAELens makes and saves, and what it computes with them.

tests/intervention/test_saelens_package.py runs this file in an environment with SAELens, which need
not have this package. Argument: the folder to write. Each autoencoder has a folder there, with a
file `expected.safetensors`.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import __version__
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from safetensors.torch import save_file

WIDTH, FEATURES, HEADS = 8, 24, 2
SWAPPED = [0, 2, 3, 5, 7, 11, 13, 17, 19, 23]
"""The features that are taken from the source."""

PLAIN = {"d_in": WIDTH, "d_sae": FEATURES}
TOP = {"k": 5}
Z = {"reshape_activations": "hook_z"}
OPTIONS = {"centred": {}, "uncentred": {"apply_b_dec_to_input": False}, "hook_z": Z}
for norm in ("constant_norm_rescale", "layer_norm", "expected_average_only_in"):
    OPTIONS[norm] = {"normalize_activations": norm}


def random_weights(sae):
    """Weights with which about half of the features are on, and some only just are not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.3)


def write(folder, architecture, training, options):
    registry = SAE_TRAINING_CLASS_REGISTRY if training else SAE_CLASS_REGISTRY
    kind, config = registry[architecture]
    known = config.__dataclass_fields__
    arguments = PLAIN | options
    if "k" in known:
        arguments |= TOP
    if "matryoshka_widths" in known:
        arguments |= {"matryoshka_widths": [FEATURES // 2, FEATURES]}
    if "d_out" in known:
        arguments |= {"d_out": WIDTH, "apply_b_dec_to_input": False}
    sae = kind(config(**{key: arguments[key] for key in arguments if key in known}))
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z" if options == Z else "blocks.0.hook_out"
    random_weights(sae)
    if training:
        # What is computed is asked of the inference class, which reads the folder back.
        sae.save_inference_model(folder)
        saved = json.loads((folder / "cfg.json").read_text())["architecture"]
        sae = SAE_CLASS_REGISTRY[saved][0].load_from_disk(folder)
    else:
        sae.save_model(folder)

    # Half precision is a matter of how weights are kept.
    sae = sae.to(dtype=torch.float32)
    base, source = torch.randn(2, 3, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    heads = (HEADS, WIDTH // HEADS)

    def laid(h):
        return h.unflatten(-1, heads) if sae.cfg.reshape_activations == "hook_z" else h

    with torch.no_grad():
        theirs = sae.encode(laid(source))
        features = sae.encode(laid(base))
        reconstruction = sae.decode(features)
        swapped = features.clone()
        swapped[..., SWAPPED] = theirs[..., SWAPPED]
        # The base's own error is kept. The run-time norm is the base's, which was encoded last.
        sae.encode(laid(base))
        edited = laid(base) + sae.decode(swapped) - reconstruction
    tensors = {
        "base": base,
        "source": source,
        "features": features,
        "edited": edited.reshape(base.shape),
    }
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "expected.safetensors")


def main(root):
    made = {"version": __version__, "folders": [], "failed": {}}
    kinds = [(name, False) for name in SAE_CLASS_REGISTRY]
    kinds += [(name, True) for name in SAE_TRAINING_CLASS_REGISTRY]
    cases = []
    for architecture, training in kinds:
        cases += [(architecture, training, name, options) for name, options in OPTIONS.items()]
        cases.append((architecture, training, "rescaled", {"rescale_acts_by_decoder_norm": True}))
        cases.append((architecture, training, "bfloat16", {"dtype": "bfloat16"}))
    for architecture, training, name, options in cases:
        folder = f"{architecture}-{'training' if training else 'inference'}-{name}"
        try:
            write(root / folder, architecture, training, options)
            made["folders"].append(folder)
        except Exception as error:  # whatever SAELens says to options that it refuses itself
            made["failed"][folder] = f"{type(error).__name__}: {error}"[:200]
    (root / "made.json").write_text(json.dumps(made, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
