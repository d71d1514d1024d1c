"""A network whose weights are written by hand, so that what it computes where is known."""

from typing import Any

import torch

from iit.network.classifier import Classifier
from iit.network.mlp import MLP

SHARPNESS = 100.0
"""Vectors count as equal within 1/100 of each other (the sum of absolute differences)."""


def equality_by_hand(dim: int = 4, width: int = 64) -> Classifier:
    """A perceptron that computes (a = b) = (c = d) over vectors of `dim` numbers, fed one after the
    other; right for all that are not
    nearly equal.

    Of its three hidden layers the first holds the positive and negative parts of a − b and c − d;
    the second, in its units 0 and 1, whether a = b and whether c = d (1 or 0); the third, in its
    units 0 and 1, whether both hold and whether neither does. The other units are 0.

    Raises ValueError for a width below 4·dim.
    """
    if dim < 1 or width < 4 * dim:
        raise ValueError(
            f"Equality by hand needs at least 4·dim={4 * dim} units a layer; got dim={dim}, "
            f"width={width}."
        )
    network = MLP(n_inputs=4 * dim, n_classes=2, width=width, depth=3)
    layers: Any = network.layers
    first, second, third = (layer[0] for layer in layers)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for pair in range(2):
            for i in range(dim):
                one, other = 2 * pair * dim + i, (2 * pair + 1) * dim + i
                for sign, unit in ((1.0, one), (-1.0, other)):
                    first.weight[unit, one], first.weight[unit, other] = sign, -sign
                    second.weight[pair, unit] = -SHARPNESS
            second.bias[pair] = 1.0
        third.weight[0, :2], third.bias[0] = 1.0, -1.0
        third.weight[1, :2], third.bias[1] = -1.0, 1.0
        network.head.weight[1, :2], network.head.bias[0] = 10.0, 5.0
    return Classifier(network, "equality_by_hand")
