"""The batch: inputs of one run, right-padded, beside the roles and answers of its prompts.

What is encoded and not yet prepared for a network is a plain dict: {input, "positions", "answer"}.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import pad

IGNORED = -100
"""−100: in `answer` there is no token, in `positions` the role is absent."""

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]
"""What a user passes to a network: keyword inputs (with `positions`, `answer`), or positional."""

# Inputs that have one entry for each token, so they move with the tokens.
_PER_TOKEN_INPUTS = {
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "position_ids",
    "labels",
}
NOT_PER_TOKEN_INPUTS = {"pixel_values", "pixel_attention_mask", "image_sizes"}
"""Inputs that have no entry for each token. They may have the tokens' shape by chance."""


def behind_bridge(network: nn.Module) -> Any:
    """The transformers model that a TransformerBridge of TransformerLens runs; else the network.

    A bridge puts its modules into that model, and does not register it.
    """
    return vars(network).get("original_model", network)


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
        is_continued: whether new tokens are written behind the prompts, so that sites may be there.
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
    is_continued: bool = False

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
        ids = self.kwargs.get("input_ids")
        return self.kwargs["inputs_embeds"] if ids is None else ids

    def through(self, network: nn.Module) -> Any:
        """Run the network on copies of the inputs, because a network may write to its inputs."""
        args, kwargs = map_tensors((self.args, self.kwargs), lambda tensor, _: tensor.clone())
        if behind_bridge(network) is not network:
            # A bridge calls tokens and embeddings by one name.
            for name in {"input_ids", "inputs_embeds"} & set(kwargs):
                kwargs["input"] = kwargs.pop(name)
        return network(*args, **kwargs)

    def right_padded(self) -> "Batch":
        """A batch of tokens with each prompt at column 0, and with `lengths`.

        Raises ValueError for empty batches and prompts, and for masks with holes or of another
        shape than the tokens. Raises it also for left-padded prompts of an encoder-decoder, and
        beside left-padded prompts for an input that may or may not follow the tokens.
        """
        tokens, mask = self.tokens, self.kwargs.get("attention_mask")
        shape = tokens.shape[:2]
        if 0 in shape:
            raise ValueError(f"The batch is empty: its tokens have shape {tuple(shape)}.")

        # A mask of another shape (by query and key) does not say where padding is.
        if mask is None or mask.ndim != 2:
            lengths = torch.full(shape[:1], shape[1], device=tokens.device)
            return replace(self, lengths=lengths)
        if mask.shape != shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}, the tokens {tuple(shape)}."
            )

        is_real = mask.bool()
        lengths = is_real.sum(1)
        if not bool(lengths.all()):
            raise ValueError(
                f"Example {int(lengths.argmin())} has no real token: its attention_mask is all "
                "zero."
            )
        columns = torch.arange(mask.shape[1], device=mask.device)
        if torch.equal(is_real, columns < lengths.unsqueeze(1)):
            # The batch is right-padded as it came.
            return replace(self, lengths=lengths)
        if self.encoder_decoder:
            raise ValueError(
                "Of an encoder-decoder the prompts are padded on the right: its outputs belong to "
                "either of two sequences."
            )

        # Each example's real tokens have to be one run of columns.
        begins = is_real[:, 1:] & ~is_real[:, :-1]
        if bool((begins.sum(1) + is_real[:, 0] > 1).any()):
            raise ValueError(
                "An attention_mask has holes: padding may stand before or after a prompt, not "
                "inside."
            )

        # The real tokens first, each group in its order: the sort is stable.
        order = is_real.int().argsort(dim=1, descending=True, stable=True)
        kwargs = dict(self.kwargs)
        # The network counts positions from the prompt's start now. What a caller derived from a
        # left-padded layout would be wrong.
        kwargs.pop("position_ids", None)
        for key, value in kwargs.items():
            is_by_token = isinstance(value, Tensor) and value.shape[:2] == shape
            if not is_by_token or key in NOT_PER_TOKEN_INPUTS:
                continue
            if key not in _PER_TOKEN_INPUTS:
                raise ValueError(
                    f"Input {key!r} is shaped as the tokens are, but may not follow them: give "
                    "prompts padded on the right."
                )
            kwargs[key] = _permuted(value, order)
        return replace(self, kwargs=kwargs, lengths=lengths, order=order)

    def left_padded(self) -> tuple[dict[str, Tensor], Int[Tensor, "batch"]]:
        """The token ids and their mask with each prompt at the end, and how far each has moved."""
        assert self.lengths is not None
        n_columns = self.tokens.shape[1]
        steps = torch.arange(n_columns, device=self.tokens.device)
        shift = n_columns - self.lengths
        # Each right-padded row is turned by its number of padding columns: [batch, seq].
        rolled = (steps - shift.unsqueeze(1)) % n_columns
        ids = self.kwargs["input_ids"].gather(1, rolled)
        return {"input_ids": ids, "attention_mask": (steps >= shift.unsqueeze(1)).long()}, shift

    def restored(self, output: Any) -> Any:
        """The network's output in the caller's layout.

        Where the batch was repadded, the token axes of every tensor in the output are permuted
        back.

        Raises ValueError for a bare Tensor[batch, n] with as many columns as tokens: these may be
        tokens or classes.
        """
        if self.order is None:
            return output
        size, seq = self.order.shape
        # The inverse permutation, Tensor[batch, seq].
        back = self.order.argsort(dim=1)

        def restore(value: Tensor, name: str) -> Tensor:
            # What a vision encoder made has no entry for each token of the prompt.
            if ".image_" in name or ".vision_" in name:
                return value
            # [batch, head, query, key]. This comes first: there may be as many heads as tokens.
            by_query_and_key = value.ndim == 4 and value.shape[2:] == (seq, seq)
            if by_query_and_key and value.shape[0] == size:
                rows = back[:, None, :, None].expand(value.shape)
                columns = back[:, None, None, :].expand(value.shape)
                return value.gather(2, rows).gather(3, columns)
            if value.shape[:2] != (size, seq):
                return value
            if value.ndim == 2 and not name:
                raise ValueError(
                    f"An output of shape {(size, seq)} has one entry a token, or a class: give "
                    "prompts padded on the right."
                )
            if value.ndim == 2 and not name.endswith((".start_logits", ".end_logits")):
                # Classes or a pooled state: only the logits of a span have tokens in two
                # dimensions.
                return value
            return _permuted(value, back)

        return map_tensors(output, restore)


def map_tensors(value: Any, change: Callable[[Tensor, str], Tensor], name: str = "") -> Any:
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
            changed[key] = map_tensors(item, change, f"{name}.{key}")
        return changed
    if isinstance(value, list | tuple):
        items = [map_tensors(item, change, name) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    return value


def columns_from_start(
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


def at_rows(encoded: Mapping[Any, Any], rows: Any) -> dict[Any, Any]:
    """Some rows of what was encoded.

    Arguments:
        rows: LongTensor[n], or a slice.
    """
    return map_tensors(dict(encoded), lambda tensor, _: tensor[rows])


def stacked(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of the first encoded batch, then those of the second, and so on.

    Shorter prompts, answers and roles are padded on the right. Answers and roles are padded with
    −100, which means "absent", and all else with 0.
    """
    stack: dict[str, Any] = {}
    for key, value in batches[0].items():
        if key == "positions":
            positions = [batch[key] for batch in batches]
            stack[key] = {role: _concatenated(positions, role, IGNORED) for role in value}
        else:
            fill = IGNORED if key == "answer" else 0
            stack[key] = _concatenated(batches, key, fill)
    return stack


def trimmed(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """What was encoded, without the columns in which every row is padding."""
    trim = dict(encoded)
    if "answer" in trim:
        trim["answer"] = narrowed(trim["answer"])
    if "positions" in trim:
        trim["positions"] = {role: narrowed(index) for role, index in trim["positions"].items()}
    if "attention_mask" in trim:
        # Prompts are right-padded: what lies beyond the longest of them is padding in all.
        longest = int(trim["attention_mask"].sum(1).max())
        # The decoder's tokens are another sequence.
        others = {"answer", "positions", "decoder_input_ids", *NOT_PER_TOKEN_INPUTS}
        for key in trim.keys() - others:
            trim[key] = trim[key][:, :longest]
    return trim


def narrowed(index: Tensor) -> Tensor:
    """The columns up to the last one that some row uses; at least one column stays."""
    # Several right answers, [batch, 1, n_alternatives], have one column: nothing is cut.
    if index.ndim == 3:
        return index
    used = (index != IGNORED).any(0).nonzero().flatten()
    last = max(used.tolist(), default=0)
    return index[:, : last + 1]


def _permuted(value: Tensor, order: Tensor) -> Tensor:
    """The columns of a tensor in another order; later dimensions move along.

    Arguments:
        value: Tensor[batch, seq, …].
        order: Tensor[batch, seq].
    """
    one_for_each_token = order.reshape(*order.shape, *[1] * (value.ndim - 2))
    return value.gather(1, one_for_each_token.expand(value.shape))


def _concatenated(batches: Sequence[Mapping[str, Tensor]], key: str, fill: int) -> Tensor:
    """The rows of one input, one batch under the other."""
    widest = max(batch[key].shape[-1] for batch in batches)
    padded = []
    for batch in batches:
        tensor = batch[key]
        # A tensor of one dimension, such as class indices, has nothing to pad.
        if tensor.ndim > 1:
            tensor = pad(tensor, (0, widest - tensor.shape[-1]), value=fill)
        padded.append(tensor)
    return torch.cat(padded)
