"""What tells one set of weights from another."""

import hashlib

import torch
import xxhash
from torch import Tensor, nn

N_VALUES = 64


def fingerprint(network: nn.Module) -> str:
    """sha256 over the names, shapes, dtypes and 64 evenly spaced values of each tensor of the state dict.

    The same on every device and in every process; another dtype is another fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        n = min(N_VALUES, flat.numel())
        index = torch.arange(n) * (flat.numel() - 1) // max(n - 1, 1)  # in integers: linspace rounds differently elsewhere
        values = flat[index.to(flat.device)].cpu()
        values = values.double() if values.is_floating_point() else values
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def content(network: nn.Module) -> str:
    """xxh3 (128 bits) over the names, shapes, dtypes and all bytes of every parameter and buffer, saved with the network or not.

    One tensor after another is read where it is; of a network elsewhere than on the CPU one is copied at a time.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
