"""What tells one set of weights from another: a sample of the values, or all bytes."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from iit.network.dimensions import accelerate_hooks

N_VALUES = 64


def fingerprint(network: nn.Module) -> str:
    """sha256 of the state dict's names, shapes, dtypes and 64 evenly spaced values of each tensor.

    It is the same on every device and in every process. Another dtype has another fingerprint. A
    change between the sampled values leaves it as it is; `content` sees every byte. Of a network
    that runs elsewhere it is what `iit.network.remote` says.
    """
    elsewhere = getattr(network.forward, "fingerprint", None)
    if elsewhere:
        return elsewhere()
    return _digest(hashlib.sha256(), network, sorted(network.state_dict().items()), _sample)


def content(network: nn.Module) -> str:
    """xxh3 (128 bits) of names, shapes, dtypes and all bytes of every parameter and buffer.

    Buffers count whether or not they are saved with the network. Tensors are read one after another
    where they are; from another device than the CPU they are copied one at a time.
    """
    tensors = (*network.named_parameters(), *network.named_buffers())
    return _digest(xxhash.xxh3_128(), network, tensors, _bytes)


def plain_parts(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors in an entry of a state dict.

    It is the tensor itself, or the parts of a packed or wrapped one.
    """
    parts: Iterable[tuple[Any, Any]] = ()
    kind: Any = type(value)
    plain: Any = Tensor
    if isinstance(value, list | tuple):
        parts = enumerate(value)
    # A tensor subclass that names its inner tensors.
    elif hasattr(value, "__tensor_flatten__"):
        parts = [(part, getattr(value, part)) for part in value.__tensor_flatten__()[0]]
    elif not isinstance(value, Tensor):
        return
    elif value.is_quantized:
        yield name, value.dequantize()
    elif kind.__torch_dispatch__ is plain.__torch_dispatch__:
        yield name, value.to_dense()
    else:  # a wrapper has no values but those in its attributes
        parts = vars(value).items()
    for part, inside in parts:
        yield from plain_parts(f"{name}.{part}", inside)


def _digest(
    digest: Any,
    network: nn.Module,
    tensors: Iterable[tuple[str, Any]],
    values: Callable[[Tensor], Any],
) -> str:
    """The digest of names, shapes, dtypes and values of all plain parts of named tensors."""
    for name, tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.is_meta:
            tensor = _offloaded(network, name, tensor)
        for part, plain in plain_parts(name, tensor):
            digest.update(f"{part} {tuple(plain.shape)} {plain.dtype}".encode())
            if not plain.is_meta:
                digest.update(values(plain))
    return digest.hexdigest()


def _offloaded(network: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The values that an accelerate hook has of a tensor; the tensor itself where none has any."""
    path = name.split(".")
    # The hook is on the tensor's module, or on one around it.
    for depth in reversed(range(len(path))):
        for hook in accelerate_hooks(network.get_submodule(".".join(path[:depth]))):
            weights = getattr(hook, "weights_map", None)
            if weights is not None:
                return weights[".".join(path[depth:])]
    return tensor


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if tensor.dtype.itemsize == 1:
        # Torch cannot index all dtypes of one byte: their bytes are read as whole numbers.
        flat = flat.view(torch.uint8)
    n = min(N_VALUES, flat.numel())
    last = flat.numel() - 1
    # In whole numbers: `linspace` rounds differently elsewhere.
    index = torch.arange(n) * last // max(n - 1, 1)
    values = flat[index.to(flat.device)].cpu()
    if values.is_floating_point():
        # NumPy has no bfloat16.
        values = values.to(torch.float64)
    return values.contiguous().numpy().tobytes()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
