"""How many tokens a network knows, and how long its prompts may be."""

from math import inf
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from iit.batch import behind_bridge

_GROWING = ("xglm", "m2m_100", "nllb-moe")  # their tables of positions grow with the prompt


def unwrapped(network: nn.Module) -> Any:
    """The outermost transformers model that a network is or wraps; without one, itself."""
    network = behind_bridge(network)
    models = (module for module in network.modules() if isinstance(module, PreTrainedModel))
    return next(models, network)


def n_embeddings(network: Any) -> int | float:
    """The number of token ids with an embedding; infinite where the network does not say."""
    # A module without the method, a family that does not implement it, or embeddings of another
    # kind say nothing.
    try:
        return network.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return inf


def n_positions(network: Any) -> int | float:
    """The number of positions for tokens; infinite where positions are rotary, or not numbered."""
    config = getattr(network, "config", None)
    rotary = (
        getattr(config, "rope_parameters", None)
        or getattr(config, "position_embedding_type", None) == "rotary"
    )
    limit = getattr(config, "max_position_embeddings", None) or 0
    # Some networks add no position embeddings, whatever their config's limit.
    unlearned = getattr(config, "position_biased_input", True) is False
    unlearned = unlearned or getattr(config, "model_type", None) in _GROWING
    if rotary or unlearned or limit <= 0:
        return inf
    embeddings = getattr(getattr(network, "base_model", None), "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    # RoBERTa counts on from its padding token
    return limit if padding is None else limit - padding - 1


def check_limits(
    network: Any,
    ids: Tensor | None,
    lengths: Tensor,
    *,
    decoder: bool = False,
) -> None:
    """Check token ids and lengths against what the network has.

    Raises ValueError, naming the prompt, for token ids without an embedding, and for prompts longer
    than the positions.

    Arguments:
        ids: Tensor[batch, seq]; None where embeddings stand in their place.
        lengths: Tensor[batch], up to the last token that is read.
        decoder: whether these are the tokens of an encoder-decoder's decoder.
    """
    network = unwrapped(network)
    if decoder and hasattr(network, "get_decoder"):
        network = network.get_decoder()
    name, n_known, limit = type(network).__name__, n_embeddings(network), n_positions(network)
    longest = int(lengths.argmax())
    if lengths[longest] > limit:
        raise ValueError(
            f"Prompt {longest} is {int(lengths[longest])} tokens long, its answer included; {name} "
            f"has {limit} positions."
        )
    if ids is None:
        return
    is_unknown = (ids < 0) | (ids >= n_known)
    for row, column in is_unknown.nonzero().tolist():
        raise ValueError(
            f"Prompt {row} has the token {int(ids[row, column])}; {name} has embeddings for 0 to "
            f"{n_known - 1}. Give the tokenizer that belongs to it, or call its "
            "`resize_token_embeddings`."
        )
