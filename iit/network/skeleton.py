"""The skeleton of a network: its modules without weights, from the configuration alone."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def skeleton(origin: Any, attention: str | None, **where: Any) -> Any:
    """A causal language model on torch's meta device: its tensors have shapes and no values.

    Arguments:
        origin: a hub id or a folder.
        attention: the attention implementation; transformers' choice by default.
        where: the revision of a hub id.

    Raises OSError where there is no configuration.
    """
    config = AutoConfig.from_pretrained(origin, **where)
    builder: Any = AutoModelForCausalLM
    with torch.device("meta"):
        return builder.from_config(config, attn_implementation=attention)
