"""How modules lay out their activations, as far as they tell: batch, positions, width, device."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iit.batch import behind_bridge

_TRANSFORMERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_CHANNELS_FIRST = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d,
    nn.BatchNorm1d,
    nn.InstanceNorm1d,
)
_CHANNELS_LAST = (
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.RNNBase,
    nn.MultiheadAttention,
    *_TRANSFORMERS,
)
# Names of hook points that have the heads first; those of the rotated ones only in a bridge.
_WEIGHTS = ("hook_pattern", "hook_attn_scores")
_ROTATED = ("hook_rot_q", "hook_rot_k")

# Attributes that hold a width; nx and nf are those of transformers' Conv1D. The shape of a weight
# does not say it, because quantised weights are packed.
_WIDTHS = {"input": ("in_features", "nx"), "output": ("out_features", "nf", "embedding_dim")}


def width(module: nn.Module, side: str) -> int | None:
    """The width of a module's input or output; None where the module does not tell."""
    for name in _WIDTHS.get(side, ()):
        n_units = getattr(module, name, None)
        if isinstance(n_units, int):
            return n_units
    return None


def device_of(*modules: nn.Module) -> torch.device:
    """The device on which a module runs, or to which a whole network's inputs go.

    Arguments:
        modules: the module, and modules around it, which tell where it does not.
    """
    return running_device(*modules) or torch.device("cpu")


def running_device(*modules: nn.Module) -> torch.device | None:
    """The device on which the first of these modules that tells runs; None where none has weights.

    Offloaded weights wait on the meta device; accelerate's hooks know where modules run.
    """
    for module in modules:
        first = next(module.parameters(), None)
        if first is not None and not first.is_meta:
            return first.device
        for part in module.modules():
            for hook in accelerate_hooks(part):
                if hook.execution_device is not None:
                    return torch.device(hook.execution_device)
    return None


def accelerate_hooks(module: nn.Module) -> list[Any]:
    """The hooks that accelerate has put on a module of a dispatched network."""
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", [hook])
    return [hook for hook in hooks if hasattr(hook, "execution_device")]


def is_apart(network: nn.Module) -> bool:
    """Whether weights of a network lie elsewhere than on one device: on others, or nowhere."""
    return any(parameter.device != device_of(network) for parameter in network.parameters())


def dtype_of(network: nn.Module) -> torch.dtype:
    """The dtype of the weights. Quantised weights, which are integers, do not count."""
    for parameter in network.parameters():
        if parameter.dtype.is_floating_point:
            return parameter.dtype
    return torch.float32


def batch_first(modules: list[nn.Module], network: nn.Module) -> bool | None:
    """Whether the batch comes before the sequence; None where nothing tells.

    The module itself says it, or torch's own sequence module around it. Nothing tells where neither
    says it, and another module of the network has the sequence first.

    Arguments:
        modules: the module, and the modules around it, the closest first.
        network: the whole network.
    """
    if hasattr(modules[0], "batch_first"):
        return bool(modules[0].batch_first)
    for module in modules:
        if isinstance(module, _TRANSFORMERS):
            inside = (m for m in module.modules() if isinstance(m, nn.MultiheadAttention))
            return all(bool(m.batch_first) for m in inside)
    # A transformers model has the batch first.
    if isinstance(network, PreTrainedModel):
        return True
    for module in network.modules():
        if getattr(module, "batch_first", True) is False:
            return None
    return True


def axes(path: str, modules: dict[str, nn.Module], ancestors: list[nn.Module]) -> dict[int, str]:
    """{number of dimensions: what they are}; a number is missing where nothing tells.

    The name of a TransformerLens hook point says what its four dimensions are. In other networks
    four dimensions are pixels where there is a two-dimensional convolution. Of three dimensions,
    channels come first in modules such as Conv1d. In a network with such modules, a module that
    works on any shape may get channels first, too: then nothing tells.

    Arguments:
        path: of the module.
        modules: all modules of the network, by path.
        ancestors: the modules around it, the closest first.
    """
    module, network = modules[path], modules[""]
    if isinstance(module, _CHANNELS_FIRST):
        return {3: "batch channel step"}
    orders = {True: "batch position width", False: "position batch width", None: ""}
    order = {3: orders[batch_first([module, *ancestors], network)]}
    if type(module).__name__ == "HookPoint":
        bridged = behind_bridge(network) is not network
        if path.endswith(_WEIGHTS) or (bridged and path.endswith(_ROTATED)):
            return order | {4: "batch head query key"}
        # In a bridge nothing tells where other four dimensions have the heads.
        return order if bridged else order | {4: "batch position head width"}
    if any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in modules.values()):
        return order | {4: "batch channel height width"}
    # In a transformers model a module with weights has the width last.
    any_shape = not isinstance(network, PreTrainedModel) or not list(module.parameters())
    has_channels_first = any(isinstance(m, _CHANNELS_FIRST) for m in modules.values())
    if has_channels_first and any_shape and not isinstance(module, _CHANNELS_LAST):
        return {}
    return order
