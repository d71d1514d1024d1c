"""Noticing `torch.utils.checkpoint` around a site.

Its backward runs the forward again, when the hooks are gone.
"""

from typing import Any

import torch

from iit.site import Site

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


def refuse_recomputed(site: Site, outside: tuple[bool, Any]) -> None:
    """Raises RuntimeError where a site is run under another autograd state than the whole network.

    Arguments:
        outside: the state of the whole network's run; (False, None) checks nothing.
    """
    if outside[0] and autograd_state() != outside:
        raise RuntimeError(
            f"Site {site} is inside a checkpointed (or gradient-free) part of the network: a "
            "backward would not see the edit. Take a site outside of it, switch the checkpointing "
            "off, or run under torch.no_grad()."
        )
