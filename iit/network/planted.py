"""Networks whose weights are written by hand so that the subspace of each variable is known, and
what is wrong with some claims too.
"""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from iit.network.classifier import Classifier

ENCODINGS = ("clean", "redundant", "leaky", "illusion", "wrong")
LOUD = 2.0
"""How much longer what nobody reads is in the state than the variables' codes: principal components
show it first.
"""
DORMANT = 4.0
"""How strongly the dormant directions are read."""
SCALE = 10.0


@final
class Planted(nn.Module):
    """(a + b + c + d) mod m of one-hot inputs: Tensor[batch, 4·m + n_noise] → logits Tensor[batch,
    m], exact on every input.

    What the input of `read` (the output of `site`) holds, Tensor[batch, width], is Rz for a random
    rotation R and z = (code of (a + b) mod m, code of (c + d) mod m, a third block of m − 1, noise,
    the inputs as far as the width goes). The code of value i of m is sᵢ with sᵢ·sⱼ = δᵢⱼ − 1/m, in
    m − 1 dimensions. `embedding` gives the rotated input, of the same width; `bypass` goes around
    the site.

    encoding:
    - clean: `read` reads both codes and nothing else.
    - redundant: the third block is another copy of the first code, which nothing reads.
    - leaky: the second value comes from the bypass alone, and nothing reads its code in the site:
      whoever claims that the bypass does not matter is right about every interchange of the first,
      and wrong.
    - illusion: the first value comes from the bypass alone. In the site nothing reads its code, and
      the third block, which is 0 on every input, is read as if it changed the first value.
    - wrong: the site holds the code of a in place of that of (a + b) mod m; b comes by the bypass
      and is added behind the site.

    truth: {"first": Tensor[width, m − 1], "second": …}, orthonormal, of the values that the site
        holds and `read` reads.
    """

    def __init__(self, n_values: int, width: int, encoding: str, n_noise: int, seed: int):
        super().__init__()
        m, r = n_values, n_values - 1
        n_inputs = 4 * m + n_noise
        least = max(3 * r + n_noise, n_inputs)
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding={encoding!r} is none of {', '.join(ENCODINGS)}.")
        if width < least:
            raise ValueError(
                f"width={width}: {m} values and {n_noise} numbers of noise need a width of {least}."
            )
        self.n_values, self.encoding = m, encoding
        generator = torch.Generator().manual_seed(seed)
        input_frame = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        into = input_frame[:, :n_inputs]
        rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        codes = simplex(m)
        self.embedding = _linear(into)
        # From one-hot i and j: indicators of (i, j), in the order of i·m + j. From these: one-hot
        # of (i + j) mod m.
        eye = torch.eye(m)
        both = torch.cat([eye.repeat_interleave(m, 0), eye.repeat(m, 1)], 1)
        added = torch.cat([eye.roll(-i, 1) for i in range(m)], 1)
        # Indicators of (a, b) and of (c, d), from the inputs.
        pairs = pad(torch.block_diag(both, both), (0, n_noise))
        self.pairs = _linear(pairs @ into.T, -torch.ones(len(pairs)))
        # One-hot of both sums, and the inputs again, from the indicators and the embedded inputs.
        sums = pad(torch.block_diag(added, added), (0, width)).view(2, m, -1)
        plain = pad(into.T, (len(pairs), 0))
        z = torch.zeros(width, len(pairs) + width)
        z[:r] = codes.T @ (plain[:m] if encoding == "wrong" else sums[0])
        z[r : 2 * r] = codes.T @ sums[1]
        if encoding == "redundant":
            z[2 * r : 3 * r] = codes.T @ sums[0]
        noise_first = torch.cat([plain[4 * m :], plain[: 4 * m]])
        loud = noise_first[: width - 3 * r]
        z[3 * r : 3 * r + len(loud)] = LOUD * loud
        self.write, self.site = _linear(rotation @ z), nn.Identity()
        # One-hot of both values, from the state.
        read_out = torch.zeros(2 * m, width)
        offset = torch.full((2 * m,), 1 / m)
        if encoding == "illusion":
            read_out[:m, 2 * r : 3 * r] = DORMANT * codes
            offset[:m] = 0.0
        else:
            read_out[:m, :r] = codes
        read_out[m:, r : 2 * r] = codes
        self.read = _linear(read_out @ rotation.T, offset)
        self.bypass = _linear(torch.cat([*sums, plain[m : 2 * m]]))
        self.combine = _linear(both, torch.full((m * m,), -0.5))
        self.head = _linear(SCALE * added)
        self.truth = {"first": rotation[:, :r].clone(), "second": rotation[:, r : 2 * r].clone()}
        if encoding in ("illusion", "wrong"):
            del self.truth["first"]
        elif encoding == "leaky":
            del self.truth["second"]

    def forward(self, x: Float[Tensor, "batch n_inputs"]) -> Float[Tensor, "batch n_values"]:
        """Logits."""
        m = self.n_values
        embedded = self.embedding(x)
        features = torch.cat([self.pairs(embedded).relu(), embedded], -1)
        state = self.site(self.write(features))
        first, second = self.read(state).split(m, -1)
        around, second_around, b = self.bypass(features).split(m, -1)
        if self.encoding == "leaky":
            second = second_around
        elif self.encoding == "illusion":
            first = first + around
        elif self.encoding == "wrong":
            # The cyclic convolution of two one-hot codes is the code of the sum.
            sums = []
            for k in range(m):
                products = [first[:, i] * b[:, (k - i) % m] for i in range(m)]
                sums.append(sum(products))
            first = torch.stack(sums, -1)
        both = torch.cat([first, second], -1)
        return self.head(self.combine(both).relu())


def simplex(n: int) -> Float[Tensor, "n {n}-1"]:
    """n points sᵢ in n − 1 dimensions with sᵢ·sⱼ = δᵢⱼ − 1/n."""
    values, vectors = torch.linalg.eigh(torch.eye(n) - 1 / n)
    return vectors[:, values > 0.5]


def planted(
    n_values: int = 3, width: int = 32, encoding: str = "clean", n_noise: int = 4, seed: int = 0
) -> Classifier:
    """A network that sums modulo `n_values`, with known subspaces; see `Planted`. Raises ValueError
    for unknown encodings and a width that is too small.
    """
    return Classifier(Planted(n_values, width, encoding, n_noise, seed), f"planted_{encoding}")


def _linear(weight: Tensor, bias: Tensor | None = None) -> Any:
    n_outputs, n_inputs = weight.shape
    linear = nn.Linear(n_inputs, n_outputs, bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear
