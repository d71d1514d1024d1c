"""Gradient checkpointing: the backward runs blocks a second time, when the hooks of the forward are gone."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from iit.site import ResolvedSite

# Early releases of transformers 5 run a block's own hooks again, too.
_WHOLE = "__call__" in vars(GradientCheckpointingLayer)


def check_replayed(network: nn.Module, sites: Iterable[ResolvedSite]) -> None:
    """Raises ValueError for a site inside a checkpointed block of transformers: it would be run again without the edit."""
    blocks = [
        m for m in network.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing and m.training
    ]
    if not blocks or not torch.is_grad_enabled():
        return
    inside = {module: block for block in blocks for module in block.modules() if _WHOLE or module is not block}
    for found in sites:
        if found.module in inside:
            raise ValueError(
                f"Site {found.site} is inside a gradient-checkpointed {type(inside[found.module]).__name__}: the backward would run "
                "it again without the edit, and its gradients would be wrong. Call network.gradient_checkpointing_disable(), or "
                "edit block_input or block_output."
            )
