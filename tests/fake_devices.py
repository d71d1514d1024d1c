"""Devices that this machine need not have: their tensors are computed on the CPU.

A tensor of a fake device lies beside no tensor of another one in any operation, as on a machine
that has both. Only copies cross.
"""

from contextlib import ExitStack, contextmanager
from copy import deepcopy
from unittest.mock import patch

import torch
from accelerate import dispatch_model
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from iit.network.components import blocks_of

NEAR, FAR = torch.device("lazy:0"), torch.device("lazy:1")
"""Autograd runs this type of device in the thread of the CPU."""

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
# As CUDA, these take an index from the CPU.
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class Placed(torch.Tensor):
    """A tensor on a fake device; `raw` has its values."""

    @staticmethod
    def __new__(cls, raw, device):
        placed = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=device,
        )
        placed.raw = raw
        return placed

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    def __getitem__(self, index):
        # Torch makes a tensor of a list below all modes.
        if isinstance(index, list):
            index = torch.tensor(index, device=self.device)
        return super().__getitem__(index)

    def tolist(self):
        return self.raw.tolist()

    def numpy(self):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy.")

    def __repr__(self):
        return f"Placed({self.raw!r}, {self.device})"

    def __reduce_ex__(self, protocol):
        # In a file it is a tensor of the CPU.
        return self.raw.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        copied = Placed(self.raw.clone(), self.device)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)


def computed(func, args, kwargs):
    """What an operation gives, on the device of its tensors.

    Raises RuntimeError where they lie on several.
    """
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    placed = [t for t in tensors if isinstance(t, Placed)]
    devices = {t.device for t in placed}
    if func in INDEXED:
        tensors = [args[0], *tree_flatten(args[2:])[0]]
    others = {t.device for t in tensors if isinstance(t, torch.Tensor) and t.ndim}
    wanted = kwargs.get("device")
    if func not in COPIES and len(devices | others) > 1:
        raise RuntimeError(f"{func}: tensors lie on {sorted(map(str, devices | others))}")
    device = wanted or next((t.device for t in tensors), None)
    if device is None or device.type not in ("lazy", "cpu", "meta"):
        return func(*args, **kwargs)

    def raw(value):
        return value.raw if isinstance(value, Placed) else value

    plain = dict(kwargs)
    if wanted is not None and wanted.type == "lazy":
        plain["device"] = torch.device("cpu")
    result = func(*tree_map(raw, args), **tree_map(raw, plain))
    if device.type != "lazy":
        return result

    def place(value):
        return Placed(value, device) if isinstance(value, torch.Tensor) else value

    result = tree_map(place, result)
    if not placed:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


@contextmanager
def fake_devices():
    """Within the context there are the devices `NEAR` and `FAR`."""
    autocast = torch.autocast

    def supported(device_type, *args, **kwargs):
        return autocast("cpu" if device_type == "lazy" else device_type, *args, **kwargs)

    def made(function):
        # These make their tensor below all modes.
        def make(data, *args, device=None, **kwargs):
            if isinstance(data, Placed):
                return data if device is None else data.to(device)
            tensor = function(data, *args, **kwargs)
            return tensor if device is None else tensor.to(device)

        return make

    with ExitStack() as stack:
        stack.enter_context(patch("torch.autocast", supported))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(patch(f"torch.{name}", made(getattr(torch, name))))
        stack.enter_context(_Mode())
        yield


def dispatched(network, near, far, **options):
    """The network, dispatched: all before its second block on one device, the rest on another.

    A head that shares the embedding's weight stays with it.
    """
    # Of a copy, so that nothing is known of the network itself yet.
    twin = deepcopy(network)
    block = blocks_of(twin).blocks[1]
    second = next(name for name, module in twin.named_modules() if module is block)
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    device_map, behind = {}, False
    for name, module in network.named_modules():
        behind = behind or name == second
        # The modules around the block are divided.
        is_around = not name or second.startswith(f"{name}.")
        if not is_around and not any(name.startswith(f"{other}.") for other in device_map):
            is_tied = module is head and head.weight is embedding.weight
            is_rotary = "rotary" in name
            device_map[name] = far if behind and not is_tied and not is_rotary else near
    for name, _ in network.named_parameters():
        if "." not in name:
            device_map[name] = near
    main = "cpu" if far == "disk" else near
    keys = network._skip_keys_device_placement
    return dispatch_model(network, device_map, main_device=main, skip_keys=keys, **options)
