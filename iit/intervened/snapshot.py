"""Noticing that a network is no longer what it was when it was run."""

import json
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from itertools import starmap
from operator import itemgetter
from typing import Any

import torch
import xxhash
from torch import nn
from torch.nn.modules import module as global_hooks
from transformers import PreTrainedConfig

from iit.network.dimensions import running_device
from iit.network.fingerprint import content, fingerprint, plain_parts
from iit.network.hooks import records

_MEMBERS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What transformers writes on a network when it installs the hooks that record outputs. It changes
# nothing in what a run computes.
_WRITTEN_BY_TRANSFORMERS = {"_output_capturing_hooks_installed": True}


class NetworkSnapshot:
    """A network and all that decides what its runs compute, as it was when this was made.

    `change` is for every batch. It notices these changes:

    - parameters, buffers and submodules that were replaced;
    - changes in place that torch counts: all but those through `.data`, those of tensors that were
      made under `torch.inference_mode`, and those by code outside of torch;
    - attributes of modules (`scaling`, a `forward` of their own, their mode) and entries of configs
      that have another value;
    - autocast.

    `content_changed` reads every byte of the weights. It alone notices changes of offloaded ones.
    Neither notices methods that were replaced on a class, what is inside of other objects that
    modules hold, and settings of libraries: kernels, threads, precision of products.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._modules = dict(network.named_modules())

        # Each live dict, a copy of it as it is now, and the names of offloaded weights. Whatever
        # stands in place of such a weight, accelerate's hook loads it anew in each run.
        self._attributes: list[Any] = []
        self._entries: dict[int, tuple[Any, Any]] = {}
        self._hooks = [getattr(global_hooks, f"_global{name}") for name in _HOOKS]
        for attributes in map(vars, self._modules.values()):
            # Parameters, buffers and submodules lie in dicts inside the module's own dict.
            for live in (attributes, *itemgetter(*_MEMBERS)(attributes)):
                offloaded = [k for k, value in live.items() if getattr(value, "is_meta", False)]
                self._attributes.append((live, dict(live), offloaded))
            self._hooks += itemgetter(*_HOOKS)(attributes)
            config = attributes.get("config")
            # Modules share configs; each is copied once.
            if isinstance(config, PreTrainedConfig) and id(config) not in self._entries:
                self._entries[id(config)] = vars(config), deepcopy(vars(config))

        # The plain tensors that packed or wrapped weights are made of.
        parts = plain_parts("", [*network.parameters(), *network.buffers()])
        self._tensors = [part for _, part in parts if not part.is_meta]
        self._device = next((tensor.device.type for tensor in self._tensors), "cpu")
        self._before = self._state()
        self._content, self._fingerprint = content(network), fingerprint(network)

    def refusal(self) -> str | None:
        """Why a run might not repeat itself; None where it surely does."""
        if running_device(self._network) is None:
            return "the network has no weights"
        training = next((name for name, module in self._modules.items() if module.training), None)
        if training is not None or any(p.requires_grad for p in self._network.parameters()):
            where = f" ({training} is in training mode)" if training else ""
            return f"the network is not frozen in eval mode{where}"
        for hooks in self._hooks:
            # transformers' own recording hooks change nothing.
            if not all(map(records, hooks.values())):
                return "hooks that are not the engine's are on the network"
        return None

    def change(self) -> str | None:
        """What has changed; None where nothing has."""
        for live, before, offloaded in self._attributes:
            before |= {name: live.get(name) for name in offloaded}
            if not _same(live, before) and not _same(live, before | _WRITTEN_BY_TRANSFORMERS):
                return "a module, or an attribute of one"
        if not all(starmap(_same, self._entries.values())):
            return "its config"
        for what, state in self._state().items():
            if state != self._before[what]:
                return what
        return None

    def content_changed(self) -> bool:
        """Whether any byte of a parameter or buffer has changed; takes about 0.1 s a GiB."""
        return self._content != content(self._network)

    def sample_changed(self) -> bool:
        """Whether any of 64 evenly spaced values of each saved tensor has changed.

        This takes milliseconds, whatever the network's size.
        """
        return self._fingerprint != fingerprint(self._network)

    def run_fingerprint(self) -> str:
        """A hash that is the same, in every process, for networks whose runs compute the same.

        It covers all bytes of the weights, classes, plain attributes, and functions that modules
        hold (by name). It also covers configs, the kind of device, autocast, and the versions of
        torch and transformers.
        """
        left_out = (*_HOOKS, *_WRITTEN_BY_TRANSFORMERS)
        facts = [self._content, self._device, self._before["autocast"]]
        facts += map(version, ("torch", "transformers"))
        for name, module in self._modules.items():
            attributes = dict(vars(module))
            for key in left_out:
                attributes.pop(key, None)
            facts.append((name, _plain_value(type(module)), _plain_value(attributes)))
        return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True, default=str).encode())

    def _state(self) -> dict[str, Any]:
        """Address and version counter of each tensor, and the state of autocast."""
        weights = []
        for tensor in self._tensors:
            weights.append(tensor.data_ptr())
            # Tensors that were made under `torch.inference_mode` count no versions.
            if not tensor.is_inference():
                weights.append(tensor._version)
        autocast = torch.is_autocast_enabled(self._device), torch.get_autocast_dtype(self._device)
        return {"its weights": weights, "autocast": autocast}


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    try:
        return now == before
    # Other tensors or arrays have no single truth value, so they count as changed. The same object
    # counts as equal without a comparison.
    except (RuntimeError, ValueError):
        return False


def _plain_value(value: Any) -> Any:
    """What is the same of a value in every process.

    It is a plain value itself, the entries of a config, the name of a class or function, and the
    class of anything else.
    """
    if isinstance(value, list | tuple):
        return list(map(_plain_value, value))
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, PreTrainedConfig):
        return _plain_value((type(value), vars(value)))
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
