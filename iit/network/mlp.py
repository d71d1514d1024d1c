"""A multilayer perceptron."""

from itertools import pairwise
from typing import final

from torch import Tensor, nn

from iit.network.classifier import Classifier


@final
class MLP(nn.Module):
    """Tensor[batch, …] → Tensor[batch, n_classes]: `depth` hidden layers of ReLUs, then a linear
    one.

    What hidden layer i gives is the output of the module `layers.i`, Tensor[batch, width]; the last
    one is `head`.
    """

    def __init__(self, n_inputs: int, n_classes: int, width: int = 64, depth: int = 3):
        super().__init__()
        self.arguments = {
            "n_inputs": n_inputs,
            "n_classes": n_classes,
            "width": width,
            "depth": depth,
        }
        wrong = {name: value for name, value in self.arguments.items() if value < 1}
        if wrong:
            raise ValueError(f"An MLP needs at least 1 of each; got {wrong}.")
        widths = [n_inputs, *[width] * depth]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths))
        )
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, Tensor[batch, n_classes]."""
        return self.head(self.layers(x.flatten(1)))


def mlp(n_inputs: int, n_classes: int, width: int = 64, depth: int = 3) -> Classifier:
    """An untrained multilayer perceptron."""
    return Classifier(MLP(n_inputs, n_classes, width, depth), "mlp")
