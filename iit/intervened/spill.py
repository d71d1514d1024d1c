"""Tensors that are kept: where they are up to a budget, in memory-mapped files beyond it."""

import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 2**28
"""Bytes of a file, at least; larger tensors get one of their own."""


class Spill:
    """Keeps copies of tensors. Beyond `budget` bytes they lie in memory-mapped files, which the system reads and writes back as it can.

    A file has no name once it is mapped, so it vanishes with the last tensor in it, also when the process is killed.
    folder: where the files take their space; the system's for temporary files by default. Raises ValueError for a negative budget.
    """

    def __init__(self, budget: int, folder: str | Path | None = None):
        if budget < 0:
            raise ValueError(f"budget={budget} is a number of bytes; it cannot be negative.")
        self.budget = budget
        self.in_memory = self.in_files = 0
        self._folder = folder
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor: on its device, or beyond the budget on the CPU."""
        size = tensor.numel() * tensor.element_size()
        if self.in_memory + size <= self.budget:
            self.in_memory += size
            return tensor.clone()
        self.in_files += size
        # Views of a chunk start where any dtype may.
        start = -(-self._used // 64) * 64
        if start + size > self._chunk.numel():
            self._chunk, start = self._file(max(CHUNK, size)), 0
        self._used = start + size
        kept = self._chunk[start : start + size].view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)

    def clear(self) -> None:
        """Forget what was kept; its memory and files are free once nobody holds the tensors."""
        self.in_memory = self.in_files = self._used = 0
        self._chunk = torch.empty(0, dtype=torch.uint8)

    def _file(self, size: int) -> Tensor:
        handle, name = tempfile.mkstemp(prefix="iit-", dir=self._folder)
        with open(handle, "wb") as file:
            file.truncate(size)
        chunk = torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
        with suppress(PermissionError):  # where a mapped file cannot be unlinked
            Path(name).unlink()
        return chunk
