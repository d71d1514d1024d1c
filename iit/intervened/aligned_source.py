"""A source's activations, laid out as the base's."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from iit.batch import IGNORED, Batch
from iit.intervened.positions import SiteColumns


def as_base(tensor: Tensor, base_columns: SiteColumns, source_columns: SiteColumns) -> Tensor:
    """A source's activation with the positions of `base_columns`.

    Spans are of equal length, which was checked before. Where an example has fewer positions than
    others, the rest holds the mean of its own positions. Nothing is written there. An operation
    that takes all positions together, such as a mean, then does not depend on the batch.

    Arguments:
        tensor: Tensor[batch, position, width], as it was read of the source.
        source_columns: where it was read. A module with positions of its own is taken whole, as it
            is.

    Returns Tensor[batch, position, width].
    """
    n_positions = base_columns.n_positions
    # The module had another number of positions than its tokens.
    whole = source_columns.n_positions not in (None, tensor.shape[1])
    if base_columns.token_shape is None or n_positions is None or whole:
        return tensor
    # Zeros behind the last position; a negative number cuts positions off.
    tensor = pad(tensor, (0, 0, 0, n_positions - tensor.shape[1]))
    if base_columns.index is None:
        return tensor
    # [batch, position, 1]
    present = (base_columns.index != IGNORED).unsqueeze(-1)
    if bool(present.all()):
        return tensor
    n_present = present.sum(1, keepdim=True).clamp(min=1)
    mean = (tensor * present).sum(1, keepdim=True) / n_present
    return torch.where(present, tensor, mean)


def keys_as_base(weights: Tensor, base: Batch, source: Batch, active: Tensor | None) -> Tensor:
    """Attention weights with the base's number of keys: token n of one is token n of the other.

    Arguments:
        weights: Tensor[batch, query, heads·keys], as they were read of the source.
        active: which examples are edited; None for every one.

    Raises ValueError where the source attends to a token that the base lacks.
    """
    assert base.lengths is not None
    n_source, n_base = source.tokens.shape[1], base.tokens.shape[1]
    # [batch, query, head, key]
    by_key = weights.unflatten(-1, (-1, n_source))
    beyond = torch.arange(n_source, device=weights.device) >= base.lengths.unsqueeze(1)
    # Weight on keys that the base lacks would be lost: the rest would not sum to 1.
    weight_beyond = (by_key != 0) & beyond[:, None, None]
    lost = weight_beyond.flatten(1).any(1)
    if active is not None:
        lost &= active
    if bool(lost.any()):
        row = int(lost.nonzero()[0])
        raise ValueError(
            f"Attention weights of the source in example {row} reach beyond the base's "
            f"{int(base.lengths[row])} tokens; edit earlier queries, or pair prompts "
            "of equal length."
        )
    return pad(by_key, (0, n_base - n_source)).flatten(2)
