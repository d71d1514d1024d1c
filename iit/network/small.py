"""Small networks made on the spot: to be trained on a task, or with weights written by hand."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, final

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iit.network.classifier import Classifier
from iit.network.language_model import LanguageModel

PAD = "<pad>"
SHARPNESS = 100.0
"""Vectors count as equal within 1/100 of each other (the sum of absolute differences)."""


class _OfSizes(nn.Module):
    """A network that is made again from its sizes.

    Raises ValueError for a size below 1.
    """

    def __init__(self, **arguments: int):
        super().__init__()
        self.arguments = arguments
        if min(arguments.values()) < 1:
            raise ValueError(f"{type(self).__name__} needs at least 1 of each; got {arguments}.")


@final
class MLP(_OfSizes):
    """Tensor[batch, …] → Tensor[batch, n_classes]: `depth` hidden layers of ReLUs, then a linear
    one.

    What hidden layer i gives is the output of the module `layers.i`, Tensor[batch, width]; the last
    one is `head`.
    """

    def __init__(self, n_inputs: int, n_classes: int, width: int = 64, depth: int = 3):
        super().__init__(n_inputs=n_inputs, n_classes=n_classes, width=width, depth=depth)
        widths = [n_inputs, *[width] * depth]
        hidden = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*hidden)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, Tensor[batch, n_classes]."""
        return self.head(self.layers(x.flatten(1)))


def mlp(n_inputs: int, n_classes: int, width: int = 64, depth: int = 3) -> Classifier:
    """An untrained multilayer perceptron."""
    return Classifier(MLP(n_inputs, n_classes, width, depth), "mlp")


def equality_by_hand(dim: int = 4, width: int = 64) -> Classifier:
    """A perceptron that computes (a = b) = (c = d) over vectors of `dim` numbers, fed one after the
    other; right for all that are not nearly equal.

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
    # Rows of a − b, then of b − a. Adding 0 makes 0 of −0, which has other bytes.
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    parts = torch.kron(signs, torch.eye(dim)) + 0.0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        first.weight[: 4 * dim] = torch.block_diag(parts, parts)
        second.weight[0, : 2 * dim] = -SHARPNESS
        second.weight[1, 2 * dim : 4 * dim] = -SHARPNESS
        second.bias[:2] = 1.0
        third.weight[0, :2], third.bias[0] = 1.0, -1.0
        third.weight[1, :2], third.bias[1] = -1.0, 1.0
        network.head.weight[1, :2], network.head.bias[0] = 10.0, 5.0
    return Classifier(network, "equality_by_hand")


@final
class ConvNet(_OfSizes):
    """Tensor[batch, 1, height, width] → Tensor[batch, n_classes], for small images.

    `features` are two 3×3 convolutions with a 2×2 maximum between them, then another maximum;
    `layers.0` and `layers.1` are hidden layers over what they give at all places, each
    Tensor[batch, width]; then the linear `head`.
    """

    def __init__(self, size: int, n_classes: int, channels: int = 32, width: int = 256):
        super().__init__(size=size, n_classes=n_classes, channels=channels, width=width)
        if size < 4:
            raise ValueError(f"A ConvNet needs images of at least 4×4; got size={size}.")
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


def small_transformer(
    vocabulary: Sequence[str],
    n_layers: int = 2,
    n_heads: int = 4,
    width: int = 128,
    max_length: int = 64,
) -> LanguageModel:
    """An untrained transformer of Llama's kind, so that every component is a site.

    vocabulary: the words of its texts, which are separated by spaces or line breaks; one token
        each. Other words are an error.
    width: of the residual stream; the MLP's is four times that. max_length: the most words of a
        text and its answer.

    Raises ValueError for an empty vocabulary, and a width that the heads do not divide evenly.
    """
    words = list(dict.fromkeys(vocabulary))
    if not words:
        raise ValueError(
            "A small transformer needs the words of its texts; the vocabulary is empty."
        )
    if width % (2 * n_heads):
        raise ValueError(
            f"width={width} is no multiple of {2 * n_heads}: {n_heads} heads of even width each."
        )
    config = LlamaConfig(
        vocab_size=len(words) + 1,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        max_position_embeddings=max_length,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    ids = {word: i for i, word in enumerate([PAD, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=PAD)
    return LanguageModel(LlamaForCausalLM(config), fast, "transformer")
