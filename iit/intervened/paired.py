"""A source's activations, laid out as the base's."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from iit.intervened.batch import Batch
from iit.intervened.positions import Columns
from iit.network.answering import IGNORED


def as_base(tensor: Tensor, place: Columns, own: Columns) -> Tensor:
    """Tensor[batch, position, width] with the positions of the base's `place`; spans are of equal
    length, as was checked.

    Where an example has fewer positions than others the rest holds the mean of its own: there
    nothing is written, and what is taken from all positions, as a mean is, does not depend on the
    batch.

    own: where it was read. Of a module that has positions of its own the whole is taken as it is.
    """
    n_positions = place.n_positions
    whole = own.n_positions not in (None, tensor.shape[1])
    if place.tokens is None or n_positions is None or whole:
        return tensor
    tensor = pad(tensor, (0, 0, 0, n_positions - tensor.shape[1]))
    if not isinstance(place.index, Tensor) or not bool((absent := place.index == IGNORED).any()):
        return tensor
    present = ~absent.unsqueeze(-1)
    mean = (tensor * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    return torch.where(present, tensor, mean)


def keys_as_base(weights: Tensor, base: Batch, source: Batch, active: Tensor | None) -> Tensor:
    """Attention weights, Tensor[batch, query, heads·keys], with the base's number of keys: token n
    of one is token n of the other.

    Raises ValueError where the source attends to a token that the base lacks.
    """
    assert base.lengths is not None
    n_source, n_base = source.tokens.shape[1], base.tokens.shape[1]
    by_key = weights.unflatten(-1, (-1, n_source))
    beyond = torch.arange(n_source, device=weights.device) >= base.lengths.unsqueeze(1)
    lost = ((by_key != 0) & beyond[:, None, None]).flatten(1).any(1) & (
        True if active is None else active
    )
    if bool(lost.any()):
        row = int(lost.nonzero()[0])
        raise ValueError(
            f"Attention weights of the source in example {row} reach beyond the base's "
            f"{int(base.lengths[row])} tokens; "
            "edit earlier queries, or pair prompts of equal length."
        )
    return pad(by_key, (0, n_base - n_source)).flatten(2)
