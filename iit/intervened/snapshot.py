"""Noticing that a network is no longer what it was when it was run."""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib.metadata import version
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from transformers import PreTrainedConfig

from iit.network.fingerprint import computable, content, plain_parts
from iit.network.hooks import records

N_COMPARED_VALUES = 16
"""How many values of each tensor are compared with every batch."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [getattr(global_hooks, f"_global{name}") for name in _HOOKS]
# What transformers writes on a network when it installs the hooks that record outputs. It changes
# nothing in what a run computes.
_WRITTEN_BY_TRANSFORMERS = {"_output_capturing_hooks_installed": True}
_MEMBERS = ("_parameters", "_buffers", "_modules")


class NetworkSnapshot:
    """A network and all that decides what its runs compute, as it was when this was made.

    `change` is for every batch. It notices these changes:

    - parameters, buffers and submodules that were replaced;
    - changes in place that torch counts, and uncounted ones (through `.data`) where they reach one
      of 16 evenly spaced values of a tensor;
    - attributes of modules (`scaling`, a `forward` of their own, their mode) and entries of configs
      that have another value;
    - autocast.

    `content_changed` reads every byte of the weights. Neither notices methods that were replaced on
    a class, what is inside of other objects that modules hold, and settings of libraries: kernels,
    threads, precision of products.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._module_names = {module: name for name, module in network.named_modules()}
        dicts = [vars(module) for module in self._module_names]

        # A module's parameters, buffers and submodules lie in dicts inside its own dict.
        held = [module[name] for module in dicts for name in _MEMBERS]
        # Each live dict beside a copy of it as it is now.
        self._attributes = [(live, dict(live)) for live in (*dicts, *held)]

        # Modules share configs; each is copied once.
        configs = {
            id(c): c
            for c in (module.get("config") for module in dicts)
            if isinstance(c, PreTrainedConfig)
        }
        self._configs = list(configs.values())
        self._entries = [(vars(config), deepcopy(vars(config))) for config in self._configs]
        self._hooks = [*_GLOBAL_HOOKS, *(module[name] for module in dicts for name in _HOOKS)]
        self._parameters = list(network.parameters())
        self._offloaded = any(parameter.is_meta for parameter in self._parameters)

        # The plain tensors that packed or wrapped weights are made of.
        parts = [part for _, part in plain_parts("", [*self._parameters, *network.buffers()])]
        self._tensors = [part for part in parts if not part.is_meta]
        self._tensor_addresses = self._addresses()
        self._values = list(_spaced(self._tensors))
        self._before = self._read()
        self._device = next((tensor.device.type for tensor in self._tensors), "cpu")
        self._autocast = self._autocast_state()
        self.content = content(network)

    def refusal(self) -> str | None:
        """Why a run might not repeat itself; None where it surely does."""
        if self._offloaded:
            return "weights of the network are offloaded: they come and go with every run"
        names = self._module_names
        training = next((name for module, name in names.items() if module.training), None)
        if training is not None or any(parameter.requires_grad for parameter in self._parameters):
            where = f" ({training} is in training mode)" if training else ""
            return f"the network is not frozen in eval mode{where}"
        # transformers' own recording hooks change nothing.
        if not all(records(hook) for hooks in self._hooks for hook in hooks.values()):
            return "hooks that are not the engine's are on the network"
        return None

    def change(self) -> str | None:
        """What has changed; None where nothing has.

        None also for offloaded weights, of whose runs nothing is kept.
        """
        if self._offloaded:
            return None
        for live, before in self._attributes:
            if not _same(live, before) and not _same(live, before | _WRITTEN_BY_TRANSFORMERS):
                return "a module, or an attribute of one"
        if any(not _same(live, before) for live, before in self._entries):
            return "its config"
        if self._tensor_addresses != self._addresses():
            return "its weights"
        if not all(map(torch.equal, self._before, self._read())):
            return "its weights"
        return "autocast" if self._autocast != self._autocast_state() else None

    def content_changed(self) -> bool:
        """Whether any byte of a parameter or buffer has changed; takes about 0.1 s a GiB."""
        return self.content != content(self._network)

    def run_fingerprint(self) -> str:
        """A hash that is the same, in every process, for networks whose runs compute the same.

        It covers all bytes of the weights, classes, plain attributes, and functions that modules
        hold (by name). It also covers configs, the kind of device, autocast, and the versions of
        torch and transformers.
        """
        modules = [
            (
                name,
                _qualified_name(type(module)),
                {
                    key: _plain_value(value)
                    for key, value in vars(module).items()
                    if key not in (*_MEMBERS, *_HOOKS, *_WRITTEN_BY_TRANSFORMERS)
                },
            )
            for module, name in self._module_names.items()
        ]

        # `to_dict` leaves out private attributes, such as the implementation of attention.
        configs = [
            (
                _qualified_name(type(config)),
                config.to_dict(),
                {key: _plain_value(value) for key, value in vars(config).items() if key[0] == "_"},
            )
            for config in self._configs
        ]
        libraries = [version(package) for package in ("torch", "transformers")]
        facts = [self.content, modules, configs, self._device, self._autocast, libraries]
        return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True, default=str).encode())

    def _addresses(self) -> list[tuple[int, int]]:
        """Address and version counter of each tensor."""
        # Tensors that were made under `torch.inference_mode` count no versions.
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._tensors]

    def _read(self) -> list[Tensor]:
        # As bytes, NaN equals itself.
        return [torch.cat(values).view(torch.uint8) for values in self._values]

    def _autocast_state(self) -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(self._device), torch.get_autocast_dtype(self._device)


def _same(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    try:
        return now == before
    # Other tensors or arrays have no single truth value, so they count as changed. The same object
    # counts as equal without a comparison.
    except (RuntimeError, ValueError):
        return False


def _spaced(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Views of evenly spaced values of each tensor, grouped by device and dtype."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            # How many cells of the storage the tensor spans.
            n_cells = 1 + sum(
                (size - 1) * stride
                for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            )
            n = min(N_COMPARED_VALUES, n_cells)
            # Evenly spaced in the storage, without a copy, whatever the tensor's strides.
            view = tensor.detach().as_strided(
                (n,), (max(1, (n_cells - 1) // max(n - 1, 1)),), tensor.storage_offset()
            )
            view = computable(view)
            groups.setdefault((view.device, view.dtype), []).append(view)
    yield from groups.values()


def _plain_value(value: Any) -> Any:
    """What is the same of a value in every process.

    It is a plain value itself, the name of a function, and the class of anything else.
    """
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    return _qualified_name(
        value if callable(value) and hasattr(value, "__qualname__") else type(value)
    )


def _qualified_name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
