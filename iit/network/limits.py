"""How many tokens a network knows, and how long its prompts may be."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from iit.network.answering import IGNORED, is_encoder_decoder, is_masked


def n_embeddings(network: nn.Module) -> int | None:
    """How many token ids the network has an embedding for; None where it does not say."""
    try:
        table = getattr(network, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        return None
    return getattr(table, "num_embeddings", None)


def n_positions(network: nn.Module) -> int | None:
    """How many tokens the network has positions for; None where positions are rotary, or not numbered."""
    config: Any = getattr(network, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    config = config.get_text_config()
    relative = getattr(config, "position_embedding_type", None) in ("rotary", "alibi")
    if relative or getattr(config, "rope_parameters", None):
        return None
    table = getattr(getattr(getattr(network, "base_model", None), "embeddings", None), "position_embeddings", None)
    if getattr(table, "padding_idx", None) is not None:
        return table.num_embeddings - table.padding_idx - 1  # RoBERTa counts on from its padding token
    limit = getattr(config, "max_position_embeddings", None)
    return limit if limit is not None and limit > 0 else None


def check_limits(
    network: nn.Module, ids: Tensor | None, lengths: Tensor | None, answer: Tensor | None, texts: Sequence[str] = ()
) -> None:
    """Raises ValueError, naming the prompt, for token ids without embedding, and prompts longer than the positions.

    Arguments:
        ids: Tensor[batch, seq]; None where embeddings are given in their place.
        lengths: Tensor[batch], how many of these are no padding.
        answer: Tensor[batch, n_answer]; all but its last token come behind the prompt.
    """
    n_known, limit = n_embeddings(network), n_positions(network)
    assert lengths is not None

    def name(row: int) -> str:
        return f"Prompt {row}" + (f" ({texts[row]!r})" if texts else "")

    if ids is not None and n_known is not None:
        unknown = (ids < 0) | (ids >= n_known)
        if bool(unknown.any()):
            row = int(unknown.any(1).nonzero()[0])
            raise ValueError(
                f"{name(row)} has the token {int(ids[row][unknown[row]][0])}; {type(network).__name__} has embeddings for 0 to "
                f"{n_known - 1}. Give the tokenizer that belongs to it, or call its `resize_token_embeddings`."
            )
    continues = not is_masked(network) and not is_encoder_decoder(network)
    if answer is not None and answer.ndim == 2 and continues:
        lengths = lengths + ((answer != IGNORED).sum(1) - 1).clamp(min=0)
    if limit is not None and bool((lengths > limit).any()):
        row = int((lengths > limit).nonzero()[0])
        raise ValueError(
            f"{name(row)} is {int(lengths[row])} tokens long, answer included; {type(network).__name__} has positions for "
            f"{limit}. Shorten it."
        )
