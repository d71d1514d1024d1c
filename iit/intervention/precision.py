"""Double precision, where the device has it."""

from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """The tensor in double precision; in single precision on a device that has no double (MPS)."""
    try:
        return tensor.double()
    except (TypeError, RuntimeError):
        return tensor.float()
