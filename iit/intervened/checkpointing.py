"""Noticing `torch.utils.checkpoint` around a site.

Its backward runs the forward again, when the hooks are gone.
"""

from typing import Any

import torch

# Torch has no public way to ask for these hooks. Without this one only the reentrant kind is
# noticed.
_saved_tensors_hooks: Any = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", lambda _: None
)


def autograd_state() -> tuple[bool, Any]:
    """What differs between the inside and the outside of a checkpointed function.

    A reentrant one runs without gradients; any other runs with hooks on saved tensors.

    Returns (whether gradients are on, the innermost hooks on saved tensors).
    """
    return torch.is_grad_enabled(), _saved_tensors_hooks(False)
