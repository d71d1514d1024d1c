"""A small convolutional network."""

from typing import final

import torch
from torch import Tensor, nn

from iit.network.classifier import Classifier


@final
class ConvNet(nn.Module):
    """Tensor[batch, 1, height, width] → Tensor[batch, n_classes], for small images.

    `features` are two 3×3 convolutions with a 2×2 maximum between them, then another maximum;
    `layers.0` and `layers.1` are hidden layers over what they give at all places, each
    Tensor[batch, width]; then the linear `head`.
    """

    def __init__(self, size: int, n_classes: int, channels: int = 32, width: int = 256):
        super().__init__()
        self.arguments = {
            "size": size,
            "n_classes": n_classes,
            "channels": channels,
            "width": width,
        }
        wrong = {
            name: value
            for name, value in self.arguments.items()
            if value < (4 if name == "size" else 1)
        }
        if wrong:
            raise ValueError(
                "A ConvNet needs images of at least 4×4 and at least 1 of everything else; got "
                f"{wrong}."
            )
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        with torch.no_grad():
            n_features = self.features(torch.zeros(1, 1, size, size)).numel()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(n_features, width), nn.ReLU()),
            nn.Sequential(nn.Linear(width, width), nn.ReLU()),
        )
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, Tensor[batch, n_classes]."""
        return self.head(self.layers(self.features(x).flatten(1)))


def convnet(size: int, n_classes: int, channels: int = 32, width: int = 256) -> Classifier:
    """An untrained convolutional network for images of size × size."""
    return Classifier(ConvNet(size, n_classes, channels, width), "convnet")
