"""One batch of inputs, as runs take it.

It is right-padded and on the network's device. Its roles and its answer are kept apart from the
inputs of the network.
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
"""What a user passes for a batch: keyword inputs (with `positions`, `answer`), or positional."""


@dataclass(frozen=True)
class Batch:
    """One batch of inputs.

    Arguments:
        args, kwargs: what the network's forward gets.
        positions: {role: Tensor[batch, n]}, columns of the tokens in `kwargs`, −100 where absent.
        answer: Tensor[batch, n_answer], tokens or class indices; None where there is no answer.
        lengths: Tensor[batch], how many real tokens each example has; None for inputs without
            tokens.
        order: Tensor[batch, seq], which of the caller's columns stands in each column; None where
            the layout is the caller's.
        axis: which dimension of the inputs is the batch. It is 1 for positional inputs of a network
            that has the sequence first, and 0 otherwise.
        encoder_decoder: whether the network runs two sequences. Modules outside of its encoder see
            the decoder's tokens.
        decoder_lengths: Tensor[batch], how many tokens the decoder gets; None where they are not
            given.
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
        # A one-dimensional input has no second dimension.
        return self._first.shape[min(self.axis, self._first.ndim - 1)]

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self._first.device

    @property
    def tokens(self) -> Tensor:
        """The token ids, Tensor[batch, seq], or the embeddings that stand in their place."""
        return (
            self.kwargs["input_ids"]
            if self.kwargs.get("input_ids") is not None
            else self.kwargs["inputs_embeds"]
        )

    def through(self, network: nn.Module) -> Any:
        """Run the network on copies of the inputs, because a network may write to its inputs."""
        args, kwargs = each_tensor((self.args, self.kwargs), lambda tensor, _: tensor.clone())
        return network(*args, **kwargs)

    def with_answer(self, network: nn.Module) -> tuple["Batch", Tensor | None]:
        """The batch with its answer teacher-forced, and where each answer token is read.

        Returns the batch, and Tensor[batch, n_read] of columns; None for these without tokens.
        """
        if self.lengths is None and self.decoder_lengths is None:
            return self, None
        kwargs, read = with_answer(network, self.kwargs, self.positions, self.answer)
        return replace(
            self, kwargs=kwargs, positions=self.positions | self._answer_roles(read)
        ), read

    def _answer_roles(self, read: Tensor) -> dict[str, Tensor]:
        """The roles `answer[0]`, `answer[1]`, …: where each answer token stands as an input.

        Answer token k stands in the column where token k + 1 is read. The last one is only read, so
        it has no role.
        """
        if self.answer is None or self.lengths is None or self.encoder_decoder:
            return {}
        follows = self.answer[:, 1:] != IGNORED
        columns = torch.where(follows, read[:, 1:], IGNORED)
        # Tensor[batch, 1] for each role.
        return {f"answer[{k}]": columns[:, k : k + 1] for k in range(columns.shape[1])}

    def at_answer(self, network: nn.Module, sites: Iterable[Site]) -> "Batch":
        """The batch; where a site is at a token of the answer, the answer is teacher-forced."""
        roles = {role for site in sites for role in site.roles}
        if any(ANSWER_ROLE.fullmatch(role) for role in roles - set(self.positions)):
            return self.with_answer(network)[0]
        return self


def each_tensor(value: Any, change: Callable[[Tensor, str], Tensor], name: str = "") -> Any:
    """The same nest of lists, tuples (also named ones) and mappings, with every tensor changed.

    Arguments:
        change: called with a tensor and the keys that lead to it, as ".outer.inner".
    """
    if isinstance(value, Tensor):
        return change(value, name)
    if isinstance(value, Mapping):
        # A copy of the mapping keeps its class, such as transformers' ModelOutput.
        changed: Any = copy(value)
        for key, item in value.items():
            changed[key] = each_tensor(item, change, f"{name}.{key}")
        return changed
    if isinstance(value, list | tuple):
        items = [each_tensor(item, change, name) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


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
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    inputs = each_tensor(inputs, lambda tensor, _: tensor.to(device))
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

    positions = {
        role: _of_rows(index, device)
        for role, index in (inputs.pop("positions", None) or {}).items()
    }
    answer = inputs.pop("answer", None)
    if answer is not None:
        answer = _of_rows(answer, device)
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
    batch = _counted(_right_padded(batch))
    assert batch.lengths is not None
    if not _APART & set(inputs):  # a picture's placeholders may be beyond the embedding
        check_limits(network, batch.kwargs.get("input_ids"), batch.lengths)
    return batch


def _of_rows(values: Any, device: torch.device) -> Tensor:
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


# Inputs that have one entry a token, and inputs that never do, whatever their shape.
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
    tokens = batch.tokens
    mask = batch.kwargs.get("attention_mask")
    if not tokens.shape[0] or not tokens.shape[1]:
        raise ValueError(f"The batch is empty: its tokens have shape {tuple(tokens.shape[:2])}.")

    # A mask of another shape (by query and key) does not say where padding is.
    if mask is None or mask.ndim != 2:
        lengths = torch.full((tokens.shape[0],), tokens.shape[1], device=tokens.device)
        return replace(batch, lengths=lengths)
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, the tokens {tuple(tokens.shape[:2])}."
        )

    is_real = mask.bool()
    lengths = is_real.sum(1)
    if bool((lengths == 0).any()):
        raise ValueError(
            f"Example {int((lengths == 0).nonzero()[0])} has no real token: its "
            "attention_mask is all zero."
        )

    # The real tokens first, each group in its order: the sort is stable.
    order = is_real.int().argsort(dim=1, descending=True, stable=True)
    columns = torch.arange(mask.shape[1], device=mask.device)
    if bool((is_real == (columns < lengths.unsqueeze(1))).all()):
        # The batch is right-padded as it came.
        return replace(batch, lengths=lengths)
    if batch.encoder_decoder:
        raise ValueError(
            "Of an encoder-decoder the prompts are padded on the right: its outputs belong to "
            "either of two sequences."
        )

    # Each example's real tokens have to be one run of columns.
    first = is_real.int().argmax(1)
    if not bool(
        (
            is_real
            == ((columns >= first.unsqueeze(1)) & (columns < (first + lengths).unsqueeze(1)))
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
            # [batch, seq] → the shape of the input, whose later dimensions move along.
            index = order.reshape(*order.shape, *[1] * (value.ndim - 2)).expand(value.shape)
            kwargs[key] = value.gather(1, index)

    # The network counts positions from the prompt's start now. What a caller derived from a
    # left-padded layout would be wrong.
    kwargs.pop("position_ids", None)
    return replace(batch, kwargs=kwargs, lengths=lengths, order=order)


def _counted(batch: Batch) -> Batch:
    """The batch with the positions of its roles as columns, also where they count from the end."""
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
    """The columns of positions, where a negative one counts from the end of its example.

    Arguments:
        lengths: how many positions each example has.
        absent: entries to leave as they are.
        what: what the positions belong to, for the error.

    Raises ValueError where an example has no such position.
    """
    ends = lengths.unsqueeze(1)
    column = torch.where((index < 0) & ~absent, index + ends, index)
    wrong = ~absent & ((column < 0) | (column >= ends))
    if bool(wrong.any()):
        row, number = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{what}: position {int(index[row, number])} is outside example {row} of the batch, "
            f"which has {int(lengths[row])} positions."
        )
    return column


def restored(output: Any, batch: Batch) -> Any:
    """The network's output in the caller's layout.

    Where the batch was repadded, the token axes of every tensor in the output are permuted back.

    Raises ValueError for a bare Tensor[batch, n] with as many columns as tokens: these may be
    tokens or classes.
    """
    if batch.order is None:
        return output
    size, seq = batch.order.shape

    # The inverse permutation, Tensor[batch, seq].
    back = batch.order.argsort(dim=1)

    def restore(value: Tensor, name: str) -> Tensor:
        # What a vision encoder made has no entry for each token of the prompt.
        if ".image_" in name or ".vision_" in name:
            return value
        # [batch, head, query, key]. This comes first: there may be as many heads as tokens.
        if value.ndim == 4 and value.shape[0] == size and value.shape[2:] == (seq, seq):
            rows = back[:, None, :, None].expand(value.shape)
            return value.gather(2, rows).gather(3, back[:, None, None, :].expand(value.shape))
        if value.shape[:2] != (size, seq):
            return value
        if value.ndim == 2 and not name:
            raise ValueError(
                f"An output of shape {(size, seq)} has one entry a token, or a class: give prompts "
                "padded on the right."
            )
        if value.ndim == 2 and not name.endswith((".start_logits", ".end_logits")):
            # Classes or a pooled state: only the logits of a span have tokens in two dimensions.
            return value
        return value.gather(1, back.reshape(size, seq, *[1] * (value.ndim - 2)).expand(value.shape))

    return each_tensor(output, restore)
