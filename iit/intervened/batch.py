"""A batch as the engine sees it: right-padded, on the network's device, with its roles and its
answer set apart.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from iit.network.answering import ANSWER_ROLE, IGNORED, is_encoder_decoder, with_answer
from iit.network.layout import batch_first, device_of
from iit.network.limits import check_limits
from iit.site import Site

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]
"""What a user passes for one batch: the network's keyword inputs (plus `positions` and `answer`),
or positional ones.
"""


@dataclass(frozen=True)
class Batch:
    """One batch of inputs.

    args, kwargs: what the network's forward receives.
    positions: role → Tensor[batch, n] of columns of `kwargs`' tokens, −100 where absent.
    answer: Tensor[batch, n_answer] of tokens or class indices, or None.
    lengths: Tensor[batch] of real tokens, or None for inputs without tokens.
    order: Tensor[batch, seq], the caller's column that stands at each column here; None where the
        layout is the caller's.
    axis: which dimension of the inputs is the batch, as a network that has the sequence first says.
    encoder_decoder: whether the network runs two sequences: what stands outside of its encoder sees
        the decoder's tokens.
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
    def _first(self) -> Tensor:
        for value in (*self.kwargs.values(), *self.args):
            if isinstance(value, Tensor):
                return value
        raise ValueError("A batch needs at least one tensor among the network's inputs.")

    @property
    def size(self) -> int:
        """Number of examples."""
        return self._first.shape[min(self.axis, self._first.ndim - 1)]

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self._first.device

    @property
    def tokens(self) -> Tensor:
        """The token-shaped input: ids, or embeddings given in their place."""
        return (
            self.kwargs["input_ids"]
            if self.kwargs.get("input_ids") is not None
            else self.kwargs["inputs_embeds"]
        )

    def through(self, network: nn.Module) -> Any:
        """Run the network on copies of the inputs: it may write to them."""
        args, kwargs = each_tensor((self.args, self.kwargs), lambda tensor, _: tensor.clone())
        return network(*args, **kwargs)

    def with_answer(self, network: nn.Module) -> tuple["Batch", Tensor | None]:
        """The batch with its answer teacher-forced, and the columns where each answer token is
        read; None without tokens."""
        if self.lengths is None and self.decoder_lengths is None:
            return self, None
        kwargs, read = with_answer(network, self.kwargs, self.positions, self.answer)
        return replace(
            self, kwargs=kwargs, positions=self.positions | self._answer_roles(read)
        ), read

    def _answer_roles(self, read: Tensor) -> dict[str, Tensor]:
        """Where each answer token stands that is an input: the next one is read there. The last one
        is only read.
        """
        if self.answer is None or self.lengths is None or self.encoder_decoder:
            return {}
        follows = self.answer[:, 1:] != IGNORED
        columns = torch.where(follows, read[:, 1:], IGNORED)
        return {f"answer[{k}]": columns[:, k : k + 1] for k in range(columns.shape[1])}

    def at_answer(self, network: nn.Module, sites: Iterable[Site]) -> "Batch":
        """The batch, with its answer teacher-forced where a site is at one of the answer's own
        tokens.
        """
        roles = {role for site in sites for role in site.roles}
        if any(ANSWER_ROLE.fullmatch(role) for role in roles - set(self.positions)):
            return self.with_answer(network)[0]
        return self


def each_tensor(value: Any, change: Callable[[Tensor, str], Tensor], name: str = "") -> Any:
    """The same nest of lists, tuples (named ones, too) and mappings with every tensor changed.

    change: called with a tensor and the keys that lead to it, as ".outer.inner".
    """
    if isinstance(value, Tensor):
        return change(value, name)
    if isinstance(value, Mapping):
        changed: Any = copy(value)
        for key, item in value.items():
            changed[key] = each_tensor(item, change, f"{name}.{key}")
        return changed
    if isinstance(value, list | tuple):
        items = [each_tensor(item, change, name) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def prepare(network: nn.Module, inputs: Inputs) -> Batch:
    """Make a Batch of what the user passed; right-pad where the padding is elsewhere.

    Raises ValueError for inputs the network's forward does not know, tokens it has no embedding or
    position for, masks with holes, decoder tokens padded on the left, empty batches and prompts of
    tokens, roles or answers whose batch size differs, and left-padded batches where what follows
    the tokens is not known.
    """
    device = device_of(network)
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    inputs = each_tensor(inputs, lambda tensor, _: tensor.to(device))
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, tuple | list):
        return Batch(tuple(inputs), {}, axis=int(batch_first([network], network) is False))
    if not isinstance(inputs, dict):
        raise ValueError(
            f"A batch is a mapping of inputs, a tensor or a tuple; {type(inputs).__name__} was "
            "given."
        )
    if inputs.get("past_key_values") is not None:
        raise ValueError(
            "A batch takes no `past_key_values`: every run would add to them. Give the whole "
            "prompt."
        )
    positions = {
        role: _of_rows(index, device)
        for role, index in (inputs.pop("positions", None) or {}).items()
    }
    answer = inputs.pop("answer", None)
    if answer is not None:
        answer = _of_rows(answer, device)
        if answer.ndim == 3:
            # Of several right tokens the first one stands for all: where they are read is the same.
            answer = answer[..., 0]
    _check_keywords(network, inputs)
    batch = Batch((), inputs, positions, answer)
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
    batch = _counted(_right_padded(batch))
    assert batch.lengths is not None
    if not _APART & set(inputs):  # a picture's placeholders may be beyond the embedding
        check_limits(network, batch.kwargs.get("input_ids"), batch.lengths)
    return batch


def _of_rows(values: Any, device: torch.device) -> Tensor:
    """Tensor[batch, n, …] of what may have one entry a row."""
    tensor = torch.as_tensor(values, device=device)
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor


def _decoder_lengths(kwargs: Mapping[str, Any]) -> Tensor | None:
    tokens, mask = kwargs.get("decoder_input_ids"), kwargs.get("decoder_attention_mask")
    if mask is None:
        return None if tokens is None else torch.ones_like(tokens).sum(1)
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(
            "The decoder's tokens are padded on the right; their decoder_attention_mask says "
            "otherwise."
        )
    return mask.sum(1)


# What transformers' forwards take through **kwargs; anything else would vanish there without a
# word.
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
    known = {
        name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        if not isinstance(network, PreTrainedModel):
            return
        known |= _PASSED_ON
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise ValueError(
            f"{type(network).__name__} takes no input {', '.join(map(repr, unknown))}; it takes "
            f"{', '.join(sorted(known))} "
            "(a batch may add `positions` and `answer`)."
        )


# Inputs that have one entry a token, and such that never do, however they are shaped.
_ALONGSIDE = {
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "labels",
}
_APART = {"pixel_values"}


def _right_padded(batch: Batch) -> Batch:
    tokens, mask = batch.tokens, batch.kwargs.get("attention_mask")
    if not tokens.shape[0] or not tokens.shape[1]:
        raise ValueError(f"The batch is empty: its tokens have shape {tuple(tokens.shape[:2])}.")
    if mask is None or mask.ndim != 2:
        lengths = torch.full((tokens.shape[0],), tokens.shape[1], device=tokens.device)
        return replace(batch, lengths=lengths)
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, the tokens {tuple(tokens.shape[:2])}."
        )
    real = mask.bool()
    lengths = real.sum(1)
    if bool((lengths == 0).any()):
        raise ValueError(
            f"Example {int((lengths == 0).nonzero()[0])} has no real token: its attention_mask "
            "is all zero."
        )
    order = real.int().argsort(dim=1, descending=True, stable=True)
    columns = torch.arange(mask.shape[1], device=mask.device)
    if bool((real == (columns < lengths.unsqueeze(1))).all()):
        return replace(batch, lengths=lengths)
    if batch.encoder_decoder:
        raise ValueError(
            "Of an encoder-decoder the prompts are padded on the right: its outputs belong to "
            "either of two sequences."
        )
    first = real.int().argmax(1)
    if not bool(
        (
            real == ((columns >= first.unsqueeze(1)) & (columns < (first + lengths).unsqueeze(1)))
        ).all()
    ):
        raise ValueError(
            "An attention_mask has holes: padding may stand before or after a prompt, not inside."
        )
    kwargs = dict(batch.kwargs)
    for key, value in kwargs.items():
        if isinstance(value, Tensor) and value.shape[:2] == tokens.shape[:2] and key not in _APART:
            if key not in _ALONGSIDE:
                raise ValueError(
                    f"Input {key!r} is shaped as the tokens are, but may not follow them: give "
                    "prompts padded on the right."
                )
            index = order.reshape(*order.shape, *[1] * (value.ndim - 2)).expand(value.shape)
            kwargs[key] = value.gather(1, index)
    # Positions are the prompt's own now: what a caller derived from a left-padded layout would be
    # off.
    kwargs.pop("position_ids", None)
    return replace(batch, kwargs=kwargs, lengths=lengths, order=order)


def _counted(batch: Batch) -> Batch:
    """Roles count real tokens; right-padded, that is the column."""
    lengths, positions = batch.lengths, {}
    assert lengths is not None
    for role, index in batch.positions.items():
        positions[role] = from_start(index, lengths, index == IGNORED, f"Role {role!r}")
    return replace(batch, positions=positions)


def from_start(
    index: Int[Tensor, "batch n"],
    lengths: Int[Tensor, "batch"],
    absent: Bool[Tensor, "batch n"],
    what: str,
) -> Int[Tensor, "batch n"]:
    """The columns of positions, of which negative ones count from the end of an example; absent
    ones stay.

    Raises ValueError where an example has no such position.
    """
    ends = lengths.unsqueeze(1)
    column = torch.where((index < 0) & ~absent, index + ends, index)
    wrong = ~absent & ((column < 0) | (column >= ends))
    if bool(wrong.any()):
        row, number = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{what}: position {int(index[row, number])} is outside example {row} of the batch, "
            f"which has {int(lengths[row])} "
            "positions."
        )
    return column


def restored(output: Any, batch: Batch) -> Any:
    """The network's output in the caller's layout: token axes are permuted back where the batch had
    been repadded.

    Raises ValueError for a bare Tensor[batch, n] with as many columns as tokens: they may be tokens
    or classes.
    """
    if batch.order is None:
        return output
    size, seq = batch.order.shape
    back = batch.order.argsort(dim=1)

    def restore(value: Tensor, name: str) -> Tensor:
        if ".image_" in name or ".vision_" in name:
            return value
        # Attention comes first: it may have as many heads as tokens.
        if value.ndim == 4 and value.shape[0] == size and value.shape[2:] == (seq, seq):
            rows = back[:, None, :, None].expand(value.shape)
            return value.gather(2, rows).gather(3, back[:, None, None, :].expand(value.shape))
        if value.shape[:2] != (size, seq):
            return value
        if value.ndim == 2 and not name:
            raise ValueError(
                f"An output of shape {(size, seq)} has one entry a token, or a class: give "
                "prompts padded on the right."
            )
        if value.ndim == 2 and not name.endswith((".start_logits", ".end_logits")):
            # classes, or a pooled state: of two dimensions only a span's logits have tokens
            return value
        return value.gather(1, back.reshape(size, seq, *[1] * (value.ndim - 2)).expand(value.shape))

    return each_tensor(output, restore)
