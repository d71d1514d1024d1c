"""Sparse autoencoders in SAELens's layout: `cfg.json` and `sae_weights.safetensors`."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from iit.intervention.intervention import Intervention
from iit.intervention.named import AutoencoderIntervention, JumpReLUAutoencoderIntervention

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("standard", "topk", "jumprelu")
# What may stand there without another meaning than this package's own; None where the key is missing.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "normalize_activations": (None, "none"),
    "reshape_activations": (None, "none"),
    "finetuning_scaling_factor": (None, False),
    "multi_topk": (None, False),
    "hook_head_index": (None,),
}
_NAMES = {"W_enc": "encoder", "W_dec": "decoder", "b_enc": "encoder_bias", "b_dec": "decoder_bias", "threshold": "threshold"}


def load_autoencoder(
    folder: str | Path,
    width: int | None = None,
    features: list[int] | None = None,
    mask: bool = False,
    temperature: float = 0.1,
) -> Intervention:
    """The interchange of an autoencoder's features, from a folder as SAELens writes it; the reconstruction error of the base is kept.

    Architectures: standard (ReLU), topk and jumprelu; weights are read as fp32. Features that are rescaled by the decoder's norms are
    so here, too.

    width: of the site; it has to be the autoencoder's d_in. features, mask, temperature: as `AutoencoderIntervention` takes them.
    Raises FileNotFoundError for a missing file, and ValueError for a damaged one, another width, missing or unknown tensors, and for
    whatever the configuration asks for that would not be computed as there.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: a folder in SAELens's layout has {CONFIG} and {WEIGHTS}.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        d_in, n_features = int(config["d_in"]), int(config["d_sae"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged: {error!r}.") from error
    architecture = config.get("architecture", "standard")
    _check(folder, config, architecture)
    if width is not None and width != d_in:
        raise ValueError(f"The autoencoder in {folder} is of width d_in={d_in}; the site has width {width}.")
    wanted = set(_NAMES) - (set() if architecture == "jumprelu" else {"threshold"})
    if set(tensors) != wanted:
        raise ValueError(f"{folder / WEIGHTS} holds {sorted(tensors)}; a {architecture} autoencoder has {sorted(wanted)}.")
    weights: dict[str, Any] = {_NAMES[name]: tensor for name, tensor in tensors.items()}
    if config.get("rescale_acts_by_decoder_norm"):
        norms = weights["decoder"].norm(dim=1)
        weights["encoder"], weights["encoder_bias"] = weights["encoder"] * norms, weights["encoder_bias"] * norms
        weights["decoder"] = weights["decoder"] / norms.unsqueeze(1)
    options: dict[str, Any] = {
        "centred": bool(config.get("apply_b_dec_to_input", True)),
        "features": features,
        "mask": mask,
        "temperature": temperature,
    }
    if architecture == "jumprelu":
        weights["threshold"] = weights["threshold"].clamp(min=0)  # a ReLU comes before the threshold
        return JumpReLUAutoencoderIntervention(d_in, n_features, **options, **weights)
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    if architecture == "topk":
        options |= {"activation": "top_k", "k": k}
    return AutoencoderIntervention(d_in, n_features, **options, **weights)


def _check(folder: Path, config: dict[str, Any], architecture: str) -> None:
    """Raises ValueError for what would be computed otherwise than there."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{folder / CONFIG}: architecture={architecture!r} is none of {list(ARCHITECTURES)}.")
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    allowed = {**_PLAIN, "activation_fn": (activation,) if activation in ("relu", "topk", architecture) else ("relu",)}
    for key, known in allowed.items():
        if (value := activation if key == "activation_fn" else config.get(key)) not in known:
            raise ValueError(f"{folder / CONFIG}: {key}={value!r} is not supported; only {known[-1]!r} is.")
