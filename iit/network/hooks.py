"""Reading and writing an activation at a module's input, output, or a torch function inside it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

Callback = Callable[[Tensor], Tensor | None]
"""Called with an activation; a returned tensor takes its place, None leaves it."""


class Attached(NamedTuple):
    """Attachments that stand until they are removed; `undo` takes each away."""

    undo: tuple[Callable[[], None], ...]

    def remove(self) -> None:
        """Leave the modules as they were."""
        for take_away in self.undo:
            take_away()


def at_output(module: nn.Module, callback: Callback) -> Attached:
    """Edit the first floating-point tensor of the module's output."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _edited(output, callback)

    hooks: Any = module._forward_hooks
    order = list(hooks)

    def in_order() -> None:
        for key in order:
            if key in hooks:
                hooks.move_to_end(key)

    handle = module.register_forward_hook(hook)
    for key in order:
        if records(hooks[key]):
            # Behind the edit, so that transformers records the edited activation.
            hooks.move_to_end(key)
    return Attached((handle.remove, in_order))


def records(hook: Any) -> bool:
    """Whether a hook is transformers' own and only records.

    Such a hook stays once `output_hidden_states` was asked for.
    """
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def at_input(module: nn.Module, callback: Callback) -> Attached:
    """Edit the first floating-point tensor of the module's inputs, wherever it is passed.

    In self-attention the same tensor may be passed as query, key and value.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _edited((args, kwargs), callback)

    return Attached((module.register_forward_pre_hook(hook, with_kwargs=True).remove,))


def at_call(module: nn.Module, function: str, callback: Callback) -> Attached:
    """Edit what a torch function returns when the module's forward first calls it.

    Arguments:
        function: the torch function's name.
    """
    return within(module, lambda: _FirstCall(function, callback))


def within(module: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> Attached:
    """Enter a fresh context for each forward of the module.

    It is left also when the forward raises.
    """
    # The contexts of forwards that are under way. Forwards may be nested.
    stack: list[AbstractContextManager[Any]] = []

    def enter(*_: Any) -> None:
        stack.append(context())
        stack[-1].__enter__()

    def leave(*_: Any) -> None:
        if stack:
            stack.pop().__exit__(None, None, None)

    def leave_all() -> None:
        # Torch skips its hooks after a KeyboardInterrupt.
        while stack:
            leave()

    before = module.register_forward_pre_hook(enter)
    after = module.register_forward_hook(leave, always_call=True)
    return Attached((before.remove, after.remove, leave_all))


@contextmanager
def plain_attention() -> Any:
    """Switch off the fused attention of `nn.TransformerEncoder`.

    It would hand nested tensors to the layers.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def first_tensor(value: Any) -> Tensor:
    """The first floating-point tensor in a nest of tuples, lists and mappings.

    Raises ValueError where there is none.
    """
    tensor = first_float(value)
    if tensor is None:
        raise ValueError(
            f"There is no floating-point tensor in the {type(value).__name__} that passes here; "
            "name another module."
        )
    return tensor


class _FirstCall(TorchFunctionMode):
    """Within it, the first call of a torch function is edited."""

    def __init__(self, function: str, callback: Callback):
        super().__init__()
        self._function, self._edit, self._waits = function, callback, True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._waits or getattr(func, "__name__", None) != self._function:
            return result
        # Only the first call in a forward is meant.
        self._waits = False
        new = self._edit(result)
        return result if new is None else new


def _edited(value: Any, callback: Callback) -> Any:
    activation = first_tensor(value)
    new = callback(activation)
    return None if new is None else _replaced(value, activation, new)


def first_float(value: Any) -> Tensor | None:
    """`first_tensor`, or None where there is none."""
    if isinstance(value, PackedSequence):
        raise ValueError(
            "A PackedSequence has no positions to address; give padded sequences, or name "
            "another module."
        )
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    for item in value if isinstance(value, tuple | list) else ():
        tensor = first_float(item)
        if tensor is not None:
            return tensor
    return None


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """The same nest with one tensor in place of another.

    Whatever does not hold the tensor stays the same object.
    """
    if value is old:
        return new
    if isinstance(value, Mapping):
        items = {key: _replaced(item, old, new) for key, item in value.items()}
        if all(map(is_, items.values(), value.values())):
            return value
        if type(value) is dict:
            return items
        # transformers' outputs are mappings that take their entries by keyword.
        return type(value)(**items)
    if isinstance(value, tuple | list):
        items = [_replaced(item, old, new) for item in value]
        if all(map(is_, items, value)):
            return value
        if hasattr(value, "_fields"):
            # A named tuple takes its items one by one.
            return type(value)(*items)
        return type(value)(items)
    return value
