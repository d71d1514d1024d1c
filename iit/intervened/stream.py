"""A safetensors file that grows by rows: memory holds no more than one chunk of them."""

import json
from typing import BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor

NAME = "rows"
"""The name of the one tensor in such a file."""

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# Bytes kept free for the header, whose length is known only at the end. The format allows spaces
# behind it.
_HEADER = 256


class RowFile:
    """Tensor[row, width] that rows are appended to.

    It is a safetensors file once it is finished, and no such file before.

    Arguments:
        file: an empty file, open for writing. Whoever opened it closes it.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._file.write(bytes(_HEADER))
        self._n_rows = 0
        self._like: Tensor | None = None

    def append(self, rows: Float[Tensor, "row width"]) -> None:
        """Write more rows, which are on the CPU and of the first rows' width and dtype."""
        self._file.write(rows.contiguous().view(torch.uint8).numpy().data)
        self._n_rows += len(rows)
        # No values, only the width and the dtype.
        self._like = rows[:0]

    def finish(self) -> None:
        """Write the header, which makes the file readable.

        Raises ValueError where nothing was appended.
        """
        if self._like is None:
            raise ValueError("A file of rows needs at least one.")
        width, dtype = self._like.shape[1], self._like.dtype
        entry = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": [self._n_rows, width],
            "data_offsets": [0, self._n_rows * width * dtype.itemsize],
        }
        header = json.dumps({NAME: entry}).encode().ljust(_HEADER - 8)
        # The format: 8 bytes with the header's length, the header as JSON, then the data.
        self._file.seek(0)
        self._file.write((_HEADER - 8).to_bytes(8, "little") + header)
        self._file.flush()
