"""Reading a language model at its answer: teacher forcing, and the head at few columns.

The first token of an answer is predicted by the prompt alone. For the second one the first has to
stand behind the prompt, and so on: all answer tokens but the last are appended ("teacher-forced").
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from iit.batch import IGNORED, NOT_PER_TOKEN_INPUTS, Batch
from iit.network.limits import check_limits, unwrapped

ANSWER_ROLE = re.compile(r"answer\[(\d+)\]")
"""Roles of the answer's own tokens, which the prompt does not hold: `answer[0]`, `answer[1]`, …"""


def is_encoder_decoder(network: nn.Module) -> bool:
    """Whether a network runs two sequences.

    Its `input_ids` are then the encoder's, its output the decoder's.
    """
    return bool(getattr(getattr(unwrapped(network), "config", None), "is_encoder_decoder", False))


def is_masked(network: nn.Module) -> bool:
    """Whether a network is a masked language model, or wraps one."""
    return _is_called(network, "ForMaskedLM")


def is_sequence_classifier(network: nn.Module) -> bool:
    """Whether a network answers a text with a class, or wraps one that does."""
    return _is_called(network, "ForSequenceClassification")


def _is_called(network: nn.Module, ending: str) -> bool:
    return any(kind.__name__.endswith(ending) for kind in type(unwrapped(network)).__mro__)


def with_answer(
    network: nn.Module, batch: Batch
) -> tuple[Batch, Int[Tensor, "batch n_read"] | None]:
    """The batch with its answer teacher-forced, and where each of its tokens is read.

    A decoder is read behind the prompt, a masked language model at its masks (the role `mask`), an
    encoder-decoder behind its `decoder_input_ids`. Without an answer and without masks the prompt's
    last token is read.

    Tokens of the answer become roles `answer[0]`, `answer[1]`, … where they are inputs behind the
    prompt. The last one is only read, so it has no role.

    Returns:
        The batch, and LongTensor[batch, n_read], the columns of the output at which the answer's
        tokens are predicted; None where the answer is a class: for inputs without tokens, and for
        sequence classifiers.

    Raises:
        ValueError: inputs lack what is read; masks are not as many as the answer's tokens; the
            inputs cannot be teacher-forced.
    """
    has_tokens = batch.lengths is not None or batch.decoder_lengths is not None
    if not has_tokens or is_sequence_classifier(network):
        return batch, None
    name = type(network).__name__
    kwargs, positions, answer = batch.kwargs, batch.positions, batch.answer
    if is_masked(network) and (answer is not None or "mask" in positions):
        expected = positions["mask"] if answer is None else answer
        masks = positions.get("mask", torch.full_like(expected, IGNORED))
        n_more = expected.shape[1] - masks.shape[1]
        masks = pad(masks, (0, max(n_more, 0)), value=IGNORED)
        absent = masks == IGNORED
        # A prompt needs a mask for each token of its answer, and at least one.
        no_mask_due = pad(expected, (0, max(-n_more, 0)), value=IGNORED) == IGNORED
        wrong = (absent != no_mask_due).any(1) | absent.all(1)
        if bool(wrong.any()):
            raise ValueError(
                f"Prompt {int(wrong.nonzero()[0])}: {name} is read at its masks: the role `mask` "
                "must have one for each token of the answer. `LanguageModel.encode` finds "
                "those of a text."
            )
        # Absent entries (−100) become column 0, which can be gathered and is never compared.
        return batch, masks[:, : expected.shape[1]].clamp(min=0)
    side = "decoder_" if batch.encoder_decoder else ""
    names = [f"{side}input_ids", f"{side}attention_mask", f"{side}inputs_embeds"]
    ids, mask, embedded = map(kwargs.get, names)
    tokens = embedded if ids is None else ids
    if tokens is None:
        raise ValueError(
            f"{name} answers in its decoder's tokens: the batch needs `decoder_input_ids`, behind "
            "which the answer is read. `LanguageModel.encode` gives them."
        )
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    # A single token is predicted by the prompt alone: nothing is forced.
    if answer is None or answer.shape[1] == 1:
        return batch, teacher_forced(tokens, mask, answer)[2]
    # Other inputs of this side, such as position ids, would have to grow with the answer.
    others = set(kwargs) - {*names[:2], "logits_to_keep", "use_cache", *NOT_PER_TOKEN_INPUTS}
    extra = sorted(key for key in others if key.startswith(side))
    if extra:
        raise ValueError(
            f"Answers of several tokens cannot be teacher-forced beside the inputs {extra}; give "
            f"`{names[0]}` alone."
        )
    ids, mask, answer_columns = teacher_forced(tokens, mask, answer)
    check_limits(network, ids, mask.sum(1), decoder=bool(side))
    kwargs = {**kwargs, names[0]: ids, names[1]: mask}
    if not batch.encoder_decoder:
        # Answer token k stands in the column where token k + 1 is read: Tensor[batch, 1] each.
        columns = torch.where(answer[:, 1:] != IGNORED, answer_columns[:, 1:], IGNORED)
        by_token = columns.split(1, 1)
        positions = positions | {f"answer[{k}]": column for k, column in enumerate(by_token)}
    return replace(batch, kwargs=kwargs, positions=positions), answer_columns


def teacher_forced(
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"],
    answer: Int[Tensor, "batch n_answer"] | None,
) -> tuple[Int[Tensor, "batch longer"], Int[Tensor, "batch longer"], Int[Tensor, "batch n_read"]]:
    """Append all answer tokens but the last column to right-padded prompts.

    Returns:
        The ids, LongTensor[batch, longer]; the mask, likewise; and LongTensor[batch, n_read], the
        columns whose logits predict `answer[:, 0], answer[:, 1], …`. Without an answer it is the
        column of each prompt's last token. Columns of absent answer tokens (−100) repeat the last
        column that is read.
    """
    lengths = attention_mask.sum(1)
    if answer is None:
        return input_ids, attention_mask, (lengths - 1).unsqueeze(1)
    n_answer, forced = answer.shape[1], answer[:, :-1]
    is_forced = forced != IGNORED
    # An answer of n tokens is read at n columns.
    steps = torch.arange(n_answer, device=input_ids.device)
    answer_columns = lengths.unsqueeze(1) - 1 + steps.minimum(is_forced.sum(1, keepdim=True))
    if n_answer == 1:
        return input_ids, attention_mask, answer_columns
    ids = pad(input_ids, (0, n_answer - 1))
    mask = pad(attention_mask, (0, n_answer - 1))
    rows, steps = is_forced.nonzero(as_tuple=True)
    # Each prompt's answer starts right behind the prompt, in its padding.
    columns = lengths[rows] + steps
    ids[rows, columns] = forced[rows, steps]
    mask[rows, columns] = 1
    return ids, mask, answer_columns


def logits_of(output: Any) -> Tensor | None:
    """The logits in a network's output; None where there are none.

    They are its `logits`, or the output itself, or the first item of a tuple.
    """
    if isinstance(output, tuple | list):
        output = output[0]
    if isinstance(output, Mapping):
        output = output.get("logits")
    return output if isinstance(output, Tensor) else getattr(output, "logits", None)


def logits_at(
    output: Any, answer_columns: Int[Tensor, "batch n_read"] | None, gathered: bool
) -> Tensor:
    """The logits in a network's output where its answer is read.

    Arguments:
        answer_columns: these columns; None where the answer is a class.
        gathered: whether the output has these columns alone (see `head_at`).

    Returns Tensor[batch, n_read, vocab], or Tensor[batch, 1, classes].

    Raises ValueError where the answer is a class, and the output has no classes.
    """
    logits = logits_of(output)
    if answer_columns is not None and logits is not None and logits.ndim == 3:
        return logits if gathered else at_columns(logits, answer_columns)
    if logits is None or logits.ndim != 2:
        raise ValueError(
            "Without `input_ids` the answer is a class: the output must be Tensor[batch, classes] "
            f"or have such `.logits`; {type(output).__name__} does not."
        )
    return logits.unsqueeze(1)


@contextmanager
def head_at(
    network: nn.Module,
    answer_columns: Int[Tensor, "rows n_read"] | None,
    edited: Iterable[nn.Module] = (),
) -> Iterator[bool]:
    """Within the context, the output head sees only the columns where the answer is read.

    A forward pre-hook gathers the head's input. The logits then come out as Tensor[batch, n_read,
    vocab], equal to the full logits at these columns.

    Arguments:
        answer_columns: these columns, of every example or of the first ones; None for all.
        edited: modules that are edited. An edit's positions count all columns. Where one of these
            modules is in the head or around it, nothing is gathered.

    Yields whether the columns are gathered. They are not where the network has no head, either.
    """
    head = getattr(network, "get_output_embeddings", lambda: None)()
    columns = answer_columns
    if (
        columns is None
        or not isinstance(head, nn.Module)
        or any(head in m.modules() or m in head.modules() for m in edited)
    ):
        yield False
        return

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (at_columns(args[0], columns), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield True
    finally:
        handle.remove()


def at_columns(
    tensor: Float[Tensor, "batch seq width"], columns: Int[Tensor, "rows n"]
) -> Float[Tensor, "rows n width"]:
    """What a tensor holds at some columns of each example, or of each of its first rows."""
    index = columns.to(tensor.device).unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
    return tensor.gather(1, index)
