"""Sparse autoencoders in SAELens's layout: `cfg.json` and `sae_weights.safetensors`."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from iit.intervention.intervention import Intervention
from iit.intervention.named import AutoencoderIntervention, JumpReLUAutoencoderIntervention

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
RESCALED = "rescale_acts_by_decoder_norm"
# Architecture → the activations that its configuration may name.
_ACTIVATIONS = {
    "standard": {"relu"},
    "topk": {"topk"},
    "jumprelu": {"relu", "jumprelu"},
    "gated": {"relu"},
}
# Keys that change what is computed, and what each may say. None stands for a missing key.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "normalize_activations": (None, False, "none"),
    # Heads side by side: what a site at attention_value_output holds anyway.
    "reshape_activations": (None, "none", "hook_z"),
    "finetuning_scaling_factor": (None, False),
    "multi_topk": (None, False),
    "apply_b_dec_to_input": (None, False, True),
    RESCALED: (None, False, True),
    # One head of several, and an output elsewhere.
    **dict.fromkeys(
        "hook_head_index hook_point_head_index hook_name_out hook_head_index_out d_out".split(),
        (None,),
    ),
}
# Read by `_activation` and `load_autoencoder`.
_CHOICE = ("architecture", "activation_fn", "activation_fn_str", "activation_fn_kwargs", "k")
_READ = {"d_in", "d_sae", "metadata", *_CHOICE}
# What SAELens 0.1 to 6.54 has written of an autoencoder's training and its whereabouts.
_HISTORY = set(
    """
act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm
aux_loss_coefficient b_dec_init_method cached_activations_path checkpoint_path compile_llm
compile_sae context_size dataset_path dataset_trust_remote_code dead_feature_threshold
dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm
decoder_orthogonal_init device disable_concat_sequences dtype eval_batch_size_prompts
eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_sampling_window
finetuning_method finetuning_tokens from_pretrained_path hook_eval hook_layer hook_name
hook_point hook_point_eval hook_point_layer init_encoder_as_decoder_transpose
is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode
jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_warm_up_steps l1_coefficient
l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb
log_to_wandb log_weights_to_wandb lp_norm lr lr_decay_steps lr_end lr_scheduler_name
lr_warm_up_steps model_class_name model_from_pretrained_kwargs model_kwargs model_name
mse_loss_normalization n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints
n_eval_batches n_restart_cycles neuronpedia_id noise_scale normalize_sae_decoder
pre_act_loss_coefficient prefetch_llm_batches prepend_bos resume run_name sae_compilation_mode
sae_lens_training_version sae_lens_version scale_sparsity_penalty_by_decoder_norm seed
seqpos_slice sequence_separator_token store_batch_size store_batch_size_prompts streaming
target_l0 tokens_per_buffer total_training_tokens train_batch_size train_batch_size_tokens
training_tokens use_cached_activations use_ghost_grads use_sparse_activations verbose
wandb_entity wandb_id wandb_log_frequency wandb_project""".split()
)
# Architecture → its tensors beside W_enc, W_dec and b_dec.
_BIASES = {
    "standard": {"b_enc"},
    "topk": {"b_enc"},
    "jumprelu": {"b_enc", "threshold"},
    "gated": {"b_gate", "b_mag", "r_mag"},
}
_NAMES = {
    "W_enc": "encoder",
    "W_dec": "decoder",
    "b_enc": "encoder_bias",
    "b_dec": "decoder_bias",
    "threshold": "threshold",
}


def load_autoencoder(
    folder: str | Path,
    width: int | None = None,
    features: list[int] | None = None,
    mask: bool = False,
    temperature: float = 0.1,
) -> Intervention:
    """The interchange of an autoencoder's features, from a folder as SAELens writes it.

    The reconstruction error of the base is kept. The architectures are standard (ReLU), topk,
    jumprelu and gated. Weights are read as fp32. Features that SAELens rescales by the decoder's
    norms are rescaled here, too. The caller chooses the site: `hook_name` is not compared with it.

    Arguments:
        width: of the site; it has to be the autoencoder's d_in.
        features, mask, temperature: as `AutoencoderIntervention` takes them.

    Raises FileNotFoundError for a missing file. Raises ValueError for a damaged file, another
    width, missing or unknown tensors, and keys that SAELens never wrote. Raises it also where the
    configuration asks for what would be computed differently here.
    """
    folder = Path(folder).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: a folder in SAELens's layout has {CONFIG} "
                f"and {WEIGHTS}."
            )

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
        d_in, n_features = int(config["d_in"]), int(config["d_sae"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} is damaged: {error!r}.") from error

    architecture, k = _activation(folder, config)
    _check(folder, config)
    if width is not None and width != d_in:
        raise ValueError(
            f"The autoencoder in {folder} is of width d_in={d_in}; the site has width {width}."
        )

    scale = tensors.get("scaling_factor")
    if scale is not None and (scale == 1).all():
        # SAELens 2 wrote it with every autoencoder; where it is 1 it changes nothing.
        del tensors["scaling_factor"]

    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    expected = {"W_enc", "W_dec", "b_dec"} | _BIASES[architecture]
    if set(tensors) != expected:
        raise ValueError(
            f"{folder / WEIGHTS} holds {sorted(tensors)}; a {architecture} autoencoder has "
            f"{sorted(expected)}."
        )

    if architecture == "gated":
        # Gate and magnitude share an encoder, but for each feature's scale: the gate opens where
        # the magnitude is above a threshold.
        architecture, scale = "jumprelu", tensors.pop("r_mag").exp()
        tensors["W_enc"] *= scale
        tensors["b_enc"] = tensors.pop("b_mag")
        tensors["threshold"] = tensors["b_enc"] - scale * tensors.pop("b_gate")

    weights: dict[str, Any] = {_NAMES[name]: tensor for name, tensor in tensors.items()}
    if config.get(RESCALED):
        # Tensor[n_features]. A feature times its decoder row stays the same; which features are the
        # k largest does not.
        norms = weights["decoder"].norm(dim=1)
        weights["encoder"] *= norms
        weights["encoder_bias"] *= norms
        weights["decoder"] /= norms.unsqueeze(1)

    options: dict[str, Any] = {
        "centred": config.get("apply_b_dec_to_input") is not False,
        "features": features,
        "mask": mask,
        "temperature": temperature,
    }
    if architecture == "jumprelu":
        # SAELens has a ReLU before the threshold; a threshold of at least 0 does the same.
        weights["threshold"] = weights["threshold"].clamp(min=0)
        return JumpReLUAutoencoderIntervention(d_in, n_features, **options, **weights)

    if architecture == "topk":
        options |= {"activation": "top_k", "k": k}
    return AutoencoderIntervention(d_in, n_features, **options, **weights)


def _check(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for a key that would be obeyed differently here, and for an unknown key."""
    # These keys may also stand in the metadata.
    metadata = config.get("metadata") or {}
    placed = [(key, metadata[key]) for key in _PLAIN if key in metadata]
    for key, value in [*config.items(), *placed]:
        allowed = _PLAIN.get(key)
        if allowed is not None and value not in allowed:
            raise ValueError(
                f"{folder / CONFIG}: {key}={value!r} is not supported; only {allowed[-1]!r} is."
            )
        if allowed is None and key not in _READ and key not in _HISTORY:
            raise ValueError(
                f"{folder / CONFIG}: {key}={value!r} is no key of SAELens, and what it asks for is "
                "not known. Take it out where it changes nothing."
            )


def _activation(folder: Path, config: dict[str, Any]) -> tuple[str, int | None]:
    """The architecture, and the k of a topk one.

    Raises ValueError where the keys contradict each other.
    """
    architecture = config.get("architecture") or "standard"
    if architecture not in _ACTIVATIONS:
        raise ValueError(
            f"{folder / CONFIG}: architecture={architecture!r} is none of {list(_ACTIVATIONS)}."
        )

    names = {str(config.get(key) or "") for key in ("activation_fn", "activation_fn_str")} - {""}
    supported = set().union(*_ACTIVATIONS.values())
    for name in names - supported:
        raise ValueError(
            f"{folder / CONFIG}: activation_fn={name!r} is not supported; these are: "
            f"{sorted(supported)}."
        )

    options = config.get("activation_fn_kwargs") or {}
    counts = {config.get("k"), options.get("k")} - {None}
    # Up to version 5 a top-k could stand in the activation alone.
    if architecture == "standard" and names == {"topk"}:
        architecture = "topk"

    top = architecture == "topk"
    agree = names <= _ACTIVATIONS[architecture] and set(options) <= {"k"}
    counted = len(counts) == int(top) and all(type(k) is int for k in counts)
    if not agree or not counted or (config.get(RESCALED) and not top):
        keys = {key: config[key] for key in (*_CHOICE, RESCALED) if key in config}
        raise ValueError(
            f"{folder / CONFIG}: {keys} contradict each other. A topk autoencoder needs one whole "
            f"number k, and may have {RESCALED}; the others have neither, and the activation relu."
        )
    return architecture, next(iter(counts), None)
