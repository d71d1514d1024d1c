"""Reading and writing an activation where it passes: at a module's input, at its output, or at a
torch function inside it.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

Callback = Callable[[Tensor], Tensor | None]
"""Called with an activation; a returned tensor takes its place, None leaves it."""


class Handle(Protocol):
    """What undoes one thing that was attached."""

    def remove(self) -> None:
        """Leave everything as it was."""
        ...


class Attached(NamedTuple):
    """What stands until it is removed."""

    handles: tuple[Handle, ...]

    def remove(self) -> None:
        """Leave the modules as they were."""
        for handle in self.handles:
            handle.remove()


def at_output(module: nn.Module, callback: Callback) -> Attached:
    """Edit the first floating tensor of the module's output."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _edited(output, callback)

    hooks: Any = module._forward_hooks
    order = _Order(hooks, tuple(hooks))
    handle = module.register_forward_hook(hook)
    for key, other in list(hooks.items()):
        if records(other):
            hooks.move_to_end(key)  # what it records is what came of the edit
    return Attached((handle, order))


def records(hook: Any) -> bool:
    """Whether a hook is transformers' own, which stays once `output_hidden_states` was asked for,
    and only records.
    """
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def at_input(module: nn.Module, callback: Callback) -> Attached:
    """Edit the first floating tensor of the module's inputs, everywhere it is passed: a query may
    be key and value, too.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _edited((args, kwargs), callback)

    return Attached((module.register_forward_pre_hook(hook, with_kwargs=True),))


def at_call(module: nn.Module, function: str, callback: Callback) -> Attached:
    """Edit what the first call of a torch function of this name returns inside the module's
    forward.
    """
    return within(module, lambda: _FirstCall(function, callback))


def within(module: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> Attached:
    """Enter a fresh context for each forward of the module, and leave it also when the forward
    raises.
    """
    entered = _Entered(context)
    before = module.register_forward_pre_hook(entered.enter)
    return Attached(
        (before, module.register_forward_hook(entered.leave, always_call=True), entered)
    )


@contextmanager
def plain_attention() -> Any:
    """Without the fused attention of `nn.TransformerEncoder`, which hands nested tensors to its
    layers.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def first_tensor(value: Any) -> Tensor:
    """The first floating tensor of a nest of tuples and mappings. Raises ValueError where there is
    none.
    """
    found = _first(value)
    if found is None:
        raise ValueError(
            f"There is no floating-point tensor in the {type(value).__name__} that passes here; "
            "name another module."
        )
    return found


class _Order(NamedTuple):
    """The hooks of a module in the order that they had."""

    hooks: Any
    keys: tuple[int, ...]

    def remove(self) -> None:
        for key in self.keys:
            if key in self.hooks:
                self.hooks.move_to_end(key)


class _Entered:
    """The contexts of forwards that are under way."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]]):
        self._context = context
        self._open: list[AbstractContextManager[Any]] = []

    def enter(self, *_: Any) -> None:
        self._open.append(self._context())
        self._open[-1].__enter__()

    def leave(self, *_: Any) -> None:
        if self._open:
            self._open.pop().__exit__(None, None, None)

    def remove(self) -> None:
        # Torch skips its hooks after a KeyboardInterrupt.
        while self._open:
            self.leave()


class _FirstCall(TorchFunctionMode):
    def __init__(self, function: str, callback: Callback):
        super().__init__()
        self._function, self._edit, self._waits = function, callback, True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._waits or getattr(func, "__name__", None) != self._function:
            return result
        self._waits = False
        new = self._edit(result)
        return result if new is None else new


def _edited(value: Any, callback: Callback) -> Any:
    activation = first_tensor(value)
    new = callback(activation)
    return None if new is None else _replaced(value, activation, new)


def _first(value: Any) -> Tensor | None:
    if isinstance(value, PackedSequence):
        raise ValueError(
            "A PackedSequence has no positions to address; give padded sequences, or name "
            "another module."
        )
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    items = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, tuple | list)
        else ()
    )
    return next((found for item in items if (found := _first(item)) is not None), None)


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """The same nest with one tensor in place of another; whatever does not hold it stays the same
    object.
    """
    if value is old:
        return new
    if isinstance(value, Mapping):
        items = {key: _replaced(item, old, new) for key, item in value.items()}
        if all(items[key] is value[key] for key in items):
            return value
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, tuple | list):
        items = [_replaced(item, old, new) for item in value]
        if all(item is before for item, before in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
