"""A safetensors file that grows by rows: memory holds no more than one chunk of them."""

import json
from pathlib import Path

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
    """Tensor[row, width] that rows are appended to; a context manager.

    It is a safetensors file once it is finished, and no such file before.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self._file.write(bytes(_HEADER))
        self._n_rows = 0
        self._like: Tensor | None = None

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: Float[Tensor, "row width"]) -> None:
        """Write more rows, which are on the CPU and of the first rows' width and dtype."""
        self._file.write(rows.contiguous().view(torch.uint8).numpy().data)
        self._n_rows += len(rows)
        # No values, only the width and the dtype.
        self._like = rows[:0]

    def finish(self) -> None:
        """Write the header, which makes the file readable, and close it.

        Raises ValueError where nothing was appended.
        """
        if self._like is None:
            raise ValueError("A file of rows needs at least one.")
        width, dtype = self._like.shape[1], self._like.dtype
        n_bytes = self._n_rows * width * dtype.itemsize
        header = {
            NAME: {
                "dtype": DTYPE_NAMES[dtype],
                "shape": [self._n_rows, width],
                "data_offsets": [0, n_bytes],
            }
        }
        # The format: 8 bytes with the header's length, the header as JSON, then the data.
        self._file.seek(0)
        self._file.write(
            (_HEADER - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER - 8)
        )
        self._file.close()
