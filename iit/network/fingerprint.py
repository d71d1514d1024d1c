"""What tells one set of weights from another: a sample of the values, or all bytes."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

N_VALUES = 64


def fingerprint(network: nn.Module) -> str:
    """sha256 of the state dict's names, shapes, dtypes and 64 evenly spaced values of each tensor.

    It is the same on every device and in every process. Another dtype has another fingerprint. A
    change between the sampled values leaves it as it is; `content` sees every byte.
    """
    digest = hashlib.sha256()
    for name, tensor in _named(network, sorted(network.state_dict().items())):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.is_meta:
            continue
        flat = computable(tensor.detach()).reshape(-1)
        n = min(N_VALUES, flat.numel())
        # In whole numbers: `linspace` rounds differently elsewhere.
        index = torch.arange(n) * (flat.numel() - 1) // max(n - 1, 1)
        values = flat[index.to(flat.device)].cpu()
        # NumPy has no bfloat16.
        values = values.to(torch.float64) if values.is_floating_point() else values
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def content(network: nn.Module) -> str:
    """xxh3 (128 bits) of names, shapes, dtypes and all bytes of every parameter and buffer.

    Buffers count whether or not they are saved with the network. Tensors are read one after another
    where they are; from another device than the CPU they are copied one at a time.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in _named(network, (*network.named_parameters(), *network.named_buffers())):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            digest.update(_bytes(tensor))
    return digest.hexdigest()


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


def computable(tensor: Tensor) -> Tensor:
    """The same values in a dtype that torch can index and join.

    Not all dtypes of one byte can; their bytes are read as whole numbers.
    """
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _named(network: nn.Module, tensors: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """The plain parts of named tensors.

    An offloaded tensor waits on the meta device; in its place stand the weights that accelerate's
    hook has for it.
    """
    for name, tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.is_meta:
            path, _, leaf = name.rpartition(".")
            hook: Any = getattr(network.get_submodule(path), "_hf_hook", None)
            tensor = (getattr(hook, "weights_map", None) or {leaf: tensor})[leaf]
        yield from plain_parts(name, tensor)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
