"""A batch as the engine sees it: right-padded, on the network's device, with its roles and its answer set apart."""

import inspect
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from iit.network.answering import ANSWER_ROLE, IGNORED, is_encoder_decoder, with_answer
from iit.network.layout import batch_first, device_of
from iit.network.limits import check_limits
from iit.site import Site

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]
"""What a user passes for one batch: the network's keyword inputs (plus `positions` and `answer`), or positional ones."""


@dataclass(frozen=True)
class Batch:
    """One batch of inputs.

    args, kwargs: what the network's forward receives.
    positions: role → Tensor[batch, n] of columns of `kwargs`' tokens, −100 where absent.
    answer: Tensor[batch, n_answer] of tokens or class indices, or None.
    lengths: Tensor[batch] of real tokens, or None for inputs without tokens.
    order: Tensor[batch, seq], the caller's column that stands at each column here; None where the layout is the caller's.
    axis: which dimension of the inputs is the batch, as a network that has the sequence first says.
    encoder_decoder: whether the network runs two sequences: what stands outside of its encoder sees the decoder's tokens.
    decoder_lengths: Tensor[batch] of these, where they are given.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    positions: dict[str, Tensor] = field(default_factory=dict)
    answer: Tensor | None = None
    lengths: Tensor | None = None
    order: Tensor | None = None
    axis: int = 0
    encoder_decoder: bool = False
    decoder_lengths: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of examples."""
        for value in (*self.kwargs.values(), *self.args):
            if isinstance(value, Tensor):
                return value.shape[min(self.axis, value.ndim - 1)]
        raise ValueError("A batch needs at least one tensor among the network's inputs.")

    @property
    def full(self) -> bool:
        """Whether no example is padded."""
        return self.lengths is None or bool((self.lengths == self.tokens.shape[1]).all())

    @property
    def tokens(self) -> Tensor:
        """The token-shaped input: ids, or embeddings given in their place."""
        return self.kwargs["input_ids"] if self.kwargs.get("input_ids") is not None else self.kwargs["inputs_embeds"]

    def through(self, network: nn.Module) -> Any:
        """Run the network on copies of the inputs: it may write to them."""
        args, kwargs = each_tensor((self.args, self.kwargs), Tensor.clone)
        return network(*args, **kwargs)

    def with_answer(self, network: nn.Module) -> tuple["Batch", Tensor]:
        """The batch with its answer teacher-forced, and the columns where each answer token is read."""
        kwargs, read = with_answer(network, self.kwargs, self.positions, self.answer)
        return replace(self, kwargs=kwargs, positions=self.positions | self._answer_roles(read)), read

    def _answer_roles(self, read: Tensor) -> dict[str, Tensor]:
        """Where each answer token stands that is an input: the next one is read there. The last one is only read."""
        if self.answer is None or self.lengths is None or self.encoder_decoder:
            return {}
        follows = self.answer[:, 1:] != IGNORED
        columns = torch.where(follows, read[:, 1:], IGNORED)
        return {f"answer[{k}]": columns[:, k : k + 1] for k in range(columns.shape[1])}

    def at_answer(self, network: nn.Module, sites: Iterable[Site]) -> "Batch":
        """The batch, with its answer teacher-forced where a site is at one of the answer's own tokens."""
        roles = {role for site in sites for role in site.roles}
        if any(ANSWER_ROLE.fullmatch(role) for role in roles - set(self.positions)):
            return self.with_answer(network)[0]
        return self


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of lists, tuples (named ones, too) and mappings with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, MutableMapping):
        changed = copy(value)
        for key, item in value.items():
            changed[key] = each_tensor(item, change)
        return changed
    if isinstance(value, list | tuple):
        items = [each_tensor(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def prepare(network: nn.Module, inputs: Inputs) -> Batch:
    """Make a Batch of what the user passed; right-pad where the padding is elsewhere.

    Raises ValueError for inputs the network's forward does not know, tokens it has no embedding or position for, masks with
    holes, decoder tokens padded on the left, empty batches and prompts of tokens,
    roles or answers whose batch size differs, and left-padded batches where what follows the tokens is not known.
    """
    device = device_of(network)

    def place(value: Any) -> Any:
        return each_tensor(value, lambda tensor: tensor.to(device))

    if isinstance(inputs, Tensor | tuple | list):
        args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        return Batch(place(args), {}, axis=int(batch_first([network], network) is False))
    if not isinstance(inputs, Mapping):
        raise ValueError(f"A batch is a mapping of inputs, a tensor or a tuple; {type(inputs).__name__} was given.")
    if inputs.get("past_key_values") is not None:
        raise ValueError("A batch takes no `past_key_values`: every run would add to them. Give the whole prompt.")
    kwargs = {key: place(value) for key, value in inputs.items() if key not in ("positions", "answer")}
    _check_keywords(network, kwargs)
    positions = {role: place(torch.as_tensor(index)) for role, index in (inputs.get("positions") or {}).items()}
    positions = {role: index.unsqueeze(1) if index.ndim == 1 else index for role, index in positions.items()}
    answer = inputs.get("answer")
    if answer is not None:
        answer = place(torch.as_tensor(answer))
        # Of several right tokens the first one stands for all: where they are read is the same.
        answer = answer.unsqueeze(1) if answer.ndim == 1 else answer[..., 0] if answer.ndim == 3 else answer
    batch = Batch((), kwargs, positions, answer)
    if is_encoder_decoder(network):
        lengths = _decoder_lengths(kwargs)
        batch = replace(batch, encoder_decoder=True, decoder_lengths=lengths)
        if lengths is not None:
            check_limits(network, kwargs.get("decoder_input_ids"), lengths, decoder=True)
    for name, value in (*positions.items(), ("answer", answer)):
        if value is not None and value.shape[0] != batch.size:
            raise ValueError(f"`{name}` is for {value.shape[0]} examples, the inputs hold {batch.size}.")
    if kwargs.get("input_ids") is None and kwargs.get("inputs_embeds") is None:
        return batch
    batch = _right_padded(batch)
    assert batch.lengths is not None
    if not _APART & set(kwargs):  # a picture's placeholders may be beyond the embedding
        check_limits(network, batch.kwargs.get("input_ids"), batch.lengths)
    return batch


def _decoder_lengths(kwargs: Mapping[str, Any]) -> Tensor | None:
    tokens, mask = kwargs.get("decoder_input_ids"), kwargs.get("decoder_attention_mask")
    if mask is None:
        return None if tokens is None else torch.ones_like(tokens).sum(1)
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError("The decoder's tokens are padded on the right; their decoder_attention_mask says otherwise.")
    return mask.sum(1)


# What transformers' forwards take through **kwargs; anything else would vanish there without a word.
_PASSED_ON = {
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
    "logits_to_keep",
    "token_type_ids",
    "labels",
}


def _check_keywords(network: nn.Module, kwargs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(network.forward).parameters
    known = {name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        if not isinstance(network, PreTrainedModel):
            return
        known |= _PASSED_ON
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise ValueError(
            f"{type(network).__name__} takes no input {', '.join(map(repr, unknown))}; it takes {', '.join(sorted(known))} "
            "(a batch may add `positions` and `answer`)."
        )


# Inputs that have one entry a token, and such that never do, however they are shaped.
_ALONGSIDE = {"input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids", "labels"}
_APART = {"pixel_values"}


def _right_padded(batch: Batch) -> Batch:
    tokens, mask = batch.tokens, batch.kwargs.get("attention_mask")
    if not tokens.shape[0] or not tokens.shape[1]:
        raise ValueError(f"The batch is empty: its tokens have shape {tuple(tokens.shape[:2])}.")
    if mask is None or mask.ndim != 2:
        lengths = torch.full((tokens.shape[0],), tokens.shape[1], device=tokens.device)
        return _counted(replace(batch, lengths=lengths))
    if mask.shape != tokens.shape[:2]:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, the tokens {tuple(tokens.shape[:2])}.")
    real = mask.bool()
    lengths = real.sum(1)
    if bool((lengths == 0).any()):
        raise ValueError(f"Example {int((lengths == 0).nonzero()[0])} has no real token: its attention_mask is all zero.")
    order = real.int().argsort(dim=1, descending=True, stable=True)
    columns = torch.arange(mask.shape[1], device=mask.device)
    if bool((real == (columns < lengths.unsqueeze(1))).all()):
        return _counted(replace(batch, lengths=lengths))
    if batch.encoder_decoder:
        raise ValueError(
            "Of an encoder-decoder the prompts are padded on the right: its outputs belong to either of two sequences."
        )
    first = real.int().argmax(1)
    if not bool((real == ((columns >= first.unsqueeze(1)) & (columns < (first + lengths).unsqueeze(1)))).all()):
        raise ValueError("An attention_mask has holes: padding may stand before or after a prompt, not inside.")
    kwargs = dict(batch.kwargs)
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and value.shape[:2] == tokens.shape[:2] and key not in _APART:
            if key not in _ALONGSIDE:
                raise ValueError(
                    f"Input {key!r} is shaped as the tokens are, but may not follow them: give prompts padded on the right."
                )
            index = order.reshape(*order.shape, *[1] * (value.ndim - 2)).expand(value.shape)
            kwargs[key] = value.gather(1, index)
    # Positions are the prompt's own now: what a caller derived from a left-padded layout would be off.
    kwargs.pop("position_ids", None)
    return _counted(replace(batch, kwargs=kwargs, lengths=lengths, order=order))


def _counted(batch: Batch) -> Batch:
    """Roles count real tokens; right-padded, that is the column. Negative ones count from the end; out of range is an error."""
    assert batch.lengths is not None
    lengths = batch.lengths.unsqueeze(1)
    positions = {}
    for role, index in batch.positions.items():
        absent = index == IGNORED
        column = torch.where((index < 0) & ~absent, index + lengths, index)
        wrong = ~absent & ((column < 0) | (column >= lengths))
        if bool(wrong.any()):
            row = int(wrong.any(1).nonzero()[0])
            raise ValueError(
                f"Role {role!r} points to token {index[row].tolist()} in example {row}, which has {int(batch.lengths[row])} tokens."
            )
        positions[role] = column
    return replace(batch, positions=positions)


def restored(output: Any, batch: Batch) -> Any:
    """The network's output in the caller's layout: token axes are permuted back where the batch had been repadded.

    Raises ValueError for a bare Tensor[batch, n] with as many columns as tokens: they may be tokens or classes.
    """
    if batch.order is None:
        return output
    size, seq = batch.order.shape
    back = batch.order.argsort(dim=1)

    def restore(value: Any, name: str | None = None) -> Any:
        if name is not None and name.startswith(("image_", "vision_")):
            return value
        if isinstance(value, Tensor):
            # Attention comes first: it may have as many heads as tokens.
            if value.ndim == 4 and value.shape[0] == size and value.shape[2:] == (seq, seq):
                rows = back[:, None, :, None].expand(value.shape)
                return value.gather(2, rows).gather(3, back[:, None, None, :].expand(value.shape))
            if value.shape[:2] != (size, seq):
                return value
            if value.ndim == 2 and name is None:
                raise ValueError(
                    f"An output of shape {(size, seq)} has one entry a token, or a class: give prompts padded on the right."
                )
            if value.ndim == 2 and name not in ("start_logits", "end_logits"):
                return value  # classes, or a pooled state: of two dimensions only a span's logits have tokens
            return value.gather(1, back.reshape(size, seq, *[1] * (value.ndim - 2)).expand(value.shape))
        if isinstance(value, Mapping):
            items = {key: restore(item, str(key)) for key, item in value.items()}
            return type(value)(**items) if not isinstance(value, dict) or hasattr(value, "to_tuple") else items
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(restore(item, name) for item in value)
        return value

    return restore(output)
