"""A block of a transformer that is run alone, to see what an edit at one place moves."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from iit.network.hooks import Attached, at_call, at_input, at_output
from iit.network.location import ComponentLocation


class Call(NamedTuple):
    """One call of a module: the first floating-point tensors that went in and came out."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    before: Tensor | None
    after: Tensor | None


class Response(NamedTuple):
    """What a change at one token of one place moves at another place.

    Arguments:
        moved: BoolTensor[position, width], what moves beyond rounding.
        is_linear: whether the opposite change moves it as far the other way.
    """

    moved: Tensor
    is_linear: bool


class Probe:
    """One block, run alone on the inputs of a call that was recorded.

    Arguments:
        root: the block's path.
        call: its call, in a batch of one.
        tolerance: the share of the largest change that counts as rounding.
        leak: the share of it that may reach other tokens by rounding.
    """

    token = 2  # the one that is changed

    def __init__(self, root: str, call: Call, tolerance: float, leak: float):
        assert call.before is not None
        assert call.after is not None
        self._root, self._module, self.tolerance, self._leak = root, call.module, tolerance, leak
        # A cache would grow with every run.
        self._args = tuple(map(_without_cache, call.args))
        self._kwargs = {name: _without_cache(value) for name, value in call.kwargs.items()}
        # {place: its activation without a change}
        self._bases: dict[ComponentLocation, Tensor] = {}
        self.after = call.after[0].float()
        self.before = call.before[0].to(self.after)
        self.epsilon = torch.finfo(call.after.dtype).eps

    def run(
        self,
        reads: Sequence[ComponentLocation],
        edit: ComponentLocation | None = None,
        change: Callable[[Tensor], None] | None = None,
    ) -> list[Tensor]:
        """Run the block, and read places as Tensor[position, width].

        Arguments:
            edit: a place that is changed.
            change: changes its activation in place.
        """
        seen: dict[int, Tensor] = {}

        def edited(activation: Tensor) -> Tensor:
            assert change is not None
            activation = activation.clone()
            change(activation)
            return activation

        with ExitStack() as stack:
            if edit is not None:
                stack.callback(self._attach(edit, edited).remove)
            for number, place in enumerate(reads):

                def read(activation: Tensor, number: int = number) -> None:
                    seen[number] = activation.float().reshape(len(self.before), -1).clone()

                stack.callback(self._attach(place, read).remove)
            self._module(*self._args, **self._kwargs)
        return [seen[number] for number in range(len(reads))]

    def response(self, place: ComponentLocation, at: ComponentLocation) -> Response:
        """Change a place at one token, far, once forth and once back: what moves elsewhere?"""
        # So far beyond the activation's spread no softmax is nearly linear.
        forth, back = (self.change(place, at, step) for step in (8.0, -8.0))
        size = torch.maximum(forth.abs(), back.abs())
        # A change of the last digits only is rounding, too.
        digits = 4 * self.epsilon * self._base(at).abs().amax(1, keepdim=True)
        far = size > digits.clamp(min=self._leak * float(size.max()))
        threshold = (self.tolerance * size.max()).maximum(digits.max())
        return Response(far, bool((forth + back).abs().max() <= threshold))

    def change(
        self, place: ComponentLocation, at: ComponentLocation, step: float, head: int | None = None
    ) -> Tensor:
        """Change a place at one token: how far another moves, as Tensor[position, width].

        Arguments:
            step: the size of the change, as a multiple of the activation's spread.
            head: of the place, which alone is changed; all of it by default.
        """
        # Of attention weights one row of queries is changed, for all heads and keys.
        units = torch.tensor(place.units or range(place.width or len(self.before)))
        if head is not None and place.n_heads is not None:
            units = units.reshape(place.n_heads, -1)[head]
        noise = torch.randn(len(units), generator=torch.Generator().manual_seed(1))

        def add(activation: Tensor) -> None:
            tokens = activation.reshape(-1, len(self.before), activation.shape[-1])
            added = step * (tokens.float().std() + 1e-3) * noise.to(tokens.device)
            tokens[:, self.token, units.to(tokens.device)] += added.to(tokens.dtype)

        return self.run([at], place, add)[0] - self._base(at)

    def _base(self, at: ComponentLocation) -> Tensor:
        if at not in self._bases:
            (self._bases[at],) = self.run([at])
        return self._bases[at]

    def _attach(self, place: ComponentLocation, callback: Callable[[Tensor], Any]) -> Attached:
        path = place.module.removeprefix(self._root).removeprefix(".")
        module = self._module.get_submodule(path)
        if place.side == "output":
            return at_output(module, callback)
        if place.side == "input":
            return at_input(module, callback)
        return at_call(module, place.side, callback)


def _without_cache(value: Any) -> Any:
    return None if isinstance(value, Cache) else value
