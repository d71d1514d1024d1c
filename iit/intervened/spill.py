"""Copies of tensors: on their device up to a budget, in memory-mapped files beyond it."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

CHUNK_BYTES = 2**26
"""The smallest file, in bytes; a larger tensor gets a file of its own."""


class Spill:
    """Keeps copies of tensors, beyond `budget` bytes in memory-mapped files.

    The system reads these files and writes them back as it can. A file has no name once it is
    mapped, so it vanishes with the last tensor in it, also when the process is killed. Its space is
    reserved beforehand.

    Arguments:
        budget: how many bytes are kept in memory, each tensor on its own device.
        folder: where the files take their space; by default the system's folder for temporary
            files.

    Raises ValueError for a negative budget.
    """

    def __init__(self, budget: int, folder: str | Path | None = None):
        if budget < 0:
            raise ValueError(f"budget={budget} is a number of bytes; it cannot be negative.")
        self.budget = budget
        self.in_memory = self.in_files = 0
        self._folder = folder
        # Address of a copy in memory → its bytes.
        self._sizes: dict[int, int] = {}
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor: on its device, or beyond the budget on the CPU.

        Raises OSError where there is no space for a file.
        """
        size = tensor.numel() * tensor.element_size()
        if self.in_memory + size <= self.budget:
            self.in_memory += size
            copy = tensor.clone()
            self._sizes[copy.data_ptr()] = size
            return copy
        # Rounded up to 64 bytes: a view of any dtype may start there.
        start = -(-self._used // 64) * 64
        if start + size > self._chunk.numel():
            # What is left of the last chunk stays unused.
            self._chunk, start = self._file(max(CHUNK_BYTES, size)), 0
        self._used = start + size
        self.in_files += size
        copy = self._chunk[start : start + size].view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor)

    def drop(self, copy: Tensor) -> None:
        """Stop counting a copy that `keep` has returned, where it lies in memory.

        A file's space comes back with the whole file only.
        """
        # A copy in a file has no entry.
        self.in_memory -= self._sizes.pop(copy.data_ptr(), 0)

    def clear(self) -> None:
        """Forget all copies; memory and files are free once nobody holds the tensors."""
        self.in_memory = self.in_files = self._used = 0
        self._sizes.clear()
        self._chunk = torch.empty(0, dtype=torch.uint8)

    def _file(self, size: int) -> Tensor:
        folder = Path(self._folder or tempfile.gettempdir())
        handle, name = tempfile.mkstemp(prefix="iit-", dir=folder)
        try:
            with open(handle, "wb") as file:
                _reserve(file, size)
            # `shared` maps the file itself: what is written goes there.
            return torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
        except OSError as error:
            raise OSError(
                error.errno,
                f"Beyond its budget of {self.budget} bytes the activation store wanted {size} more "
                f"of {folder}, where {self.in_files} are in use ({error.strerror}). Give it "
                "another folder (store.folder=…), or more memory (store.budget=…).",
            ) from error
        finally:
            # Some systems do not unlink a file that is mapped.
            with suppress(PermissionError):
                Path(name).unlink()


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the file's space now.

    Without that, a full disk would end the process when holes in the file are filled.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        for start in range(0, size, 2**20):
            file.write(bytes(min(2**20, size - start)))
