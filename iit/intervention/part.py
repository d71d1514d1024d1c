"""What bases, gates and operations have in common: a type name and the arguments that make a fresh one."""

from abc import ABC
from typing import Any

from torch import nn


class Part(nn.Module, ABC):
    """A basis, gate or operation.

    arguments: what its constructor was called with, as JSON; weights and buffers are the state dict's.
    """

    def __init__(self, **arguments: Any):
        super().__init__()
        self.arguments = arguments

    def config(self) -> dict[str, Any]:
        """{"type": class name, **arguments}: enough for a fresh part of the same shape."""
        return {"type": type(self).__name__, **self.arguments}

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())


def checked_rank(rank: int, width: int) -> int:
    """Raises ValueError for a rank below 1 or above the width."""
    if width < 1:
        raise ValueError(f"width={width}: a space needs at least one dimension.")
    if not 1 <= rank <= width:
        raise ValueError(f"rank={rank} does not fit a space of width {width}; it must be between 1 and {width}.")
    return rank
