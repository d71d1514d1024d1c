"""Preparing: what a user passed becomes a `Batch`, checked against the network."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iit.batch import (
    IGNORED,
    NOT_PER_TOKEN_INPUTS,
    Batch,
    Inputs,
    behind_bridge,
    columns_from_start,
    map_tensors,
)
from iit.network.answering import is_encoder_decoder
from iit.network.dimensions import batch_first, device_of
from iit.network.limits import check_limits

# What transformers' forwards take through **kwargs. Any other name would vanish there silently.
_PASSED_ON = {
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
    "logits_to_keep",
    "token_type_ids",
    "labels",
}


def prepare(network: nn.Module, inputs: Inputs) -> Batch:
    """Make a `Batch` of what a user passed. It is right-padded, also where the user's is not.

    Raises ValueError for these inputs:

    - names that the network's forward does not know, and `past_key_values`;
    - tokens that the network has no embedding or position for;
    - masks with holes or of another shape than the tokens;
    - left-padded prompts of an encoder-decoder, and left-padded tokens of its decoder;
    - empty batches of tokens, and empty prompts;
    - roles or answers of another batch size;
    - left-padded batches with an input of which it is unknown whether it follows the tokens.
    """
    device = device_of(network)
    network = behind_bridge(network)
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
    inputs = map_tensors(inputs, lambda tensor, _: tensor.to(device))
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, tuple | list):
        # Positional inputs are passed on as they are: nothing says which of them are tokens.
        return Batch(tuple(inputs), {}, axis=int(batch_first([network], network) is False))
    if not isinstance(inputs, dict):
        raise ValueError(
            "A batch is a mapping of inputs, a tensor or a tuple; "
            f"{type(inputs).__name__} was given."
        )
    if inputs.get("past_key_values") is not None:
        raise ValueError(
            "A batch takes no `past_key_values`: every run would add to them. Give "
            "the whole prompt."
        )

    roles = inputs.pop("positions", None) or {}
    positions = {role: _by_row(index, device) for role, index in roles.items()}
    answer = inputs.pop("answer", None)
    if answer is not None:
        answer = _by_row(answer, device)
        if answer.ndim == 3:
            # The first of several right tokens stands for all: all are read in the same column.
            answer = answer[..., 0]

    _check_keywords(network, inputs)
    batch = Batch((), inputs, positions, answer)
    # The decoder's tokens have lengths and limits of their own; `lengths` counts the encoder's.
    if is_encoder_decoder(network):
        lengths = _decoder_lengths(inputs)
        batch = replace(batch, encoder_decoder=True, decoder_lengths=lengths)
        if lengths is not None:
            check_limits(network, inputs.get("decoder_input_ids"), lengths, decoder=True)

    for name, value in (*positions.items(), ("answer", answer)):
        if value is not None and len(value) != batch.size:
            raise ValueError(
                f"`{name}` is for {len(value)} examples, the inputs hold {batch.size}."
            )

    if inputs.get("input_ids") is None and inputs.get("inputs_embeds") is None:
        return batch
    # From here on the prompts begin at column 0, so a role's position is also its column.
    batch = batch.right_padded()
    assert batch.lengths is not None
    columns = {
        role: columns_from_start(index, batch.lengths, index == IGNORED, f"Role {role!r}")
        for role, index in positions.items()
    }
    # A picture's placeholders may be beyond the embedding.
    if not NOT_PER_TOKEN_INPUTS & set(inputs):
        check_limits(network, batch.kwargs.get("input_ids"), batch.lengths)
    return replace(batch, positions=columns)


def _by_row(values: Any, device: torch.device) -> Tensor:
    """Tensor[batch, n, …] of values that may have one entry a row."""
    tensor = torch.as_tensor(values, device=device)
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor


def _decoder_lengths(kwargs: Mapping[str, Any]) -> Tensor | None:
    tokens = kwargs.get("decoder_input_ids")
    mask = kwargs.get("decoder_attention_mask")
    if mask is None:
        return None if tokens is None else torch.ones_like(tokens).sum(1)
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(
            "The decoder's tokens are padded on the right; their decoder_attention_mask "
            "says otherwise."
        )
    return mask.sum(1)


def _check_keywords(network: nn.Module, kwargs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(network.forward).parameters
    accepted = {
        name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # A forward of the user's own with **kwargs may take anything.
        if not isinstance(network, PreTrainedModel):
            return
        accepted |= _PASSED_ON
    unknown = sorted(set(kwargs) - accepted)
    if unknown:
        raise ValueError(
            f"{type(network).__name__} takes no input {', '.join(map(repr, unknown))}; it takes "
            f"{', '.join(sorted(accepted))} (a batch may add `positions` and `answer`)."
        )
