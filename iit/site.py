"""A site, and how it is found in a network, read and written."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from iit.network.components import COMPONENTS, HEADED, UNLAYERED, locate

Index = int | Sequence[int] | None
Callback = Callable[[Tensor], Tensor | None]


class Attached(NamedTuple):
    """Hooks that stand until they are removed."""

    handles: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Leave the modules as they were."""
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True)
class Site:
    """A place in a network: a component of a transformer, or any module's input or output.

    component: one of `iit.network.components.COMPONENTS`, with `layer` (and `head`, an int or several, where it has heads).
    module: path of any submodule, with side "input" | "output" (the default).
    position: a role, a token index (negative counts from the end), several, or None for every position.

    Raises ValueError for both or neither of component and module, unknown names, and indices that do not belong.

    >>> print(Site("block_output", layer=17, position="s2"))
    block_output[17] @ s2
    """

    component: str | None = None
    layer: int | None = None
    head: Index = None
    position: str | Index = None
    module: str | None = None
    side: str | None = None

    def __post_init__(self) -> None:
        for name in ("head", "position"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | int):
                object.__setattr__(self, name, tuple(value))
                if not value:
                    raise ValueError(f"{name} is empty; leave it out for all.")
        if (self.component is None) == (self.module is None):
            raise ValueError(f"A site is a component or a module; got component={self.component!r} and module={self.module!r}.")
        if self.component is None:
            if self.layer is not None or self.head is not None:
                raise ValueError("A module's path says where it is: `layer` and `head` belong to components.")
            if self.side is None:
                object.__setattr__(self, "side", "output")
            if self.side not in ("input", "output"):
                raise ValueError(f"side={self.side!r} is neither 'input' nor 'output'.")
            return
        if self.component not in COMPONENTS:
            close = difflib.get_close_matches(self.component, COMPONENTS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"There is no component {self.component!r}.{hint} The components are: {', '.join(COMPONENTS)}.")
        if self.side is not None:
            raise ValueError("`side` belongs to modules; a component says itself where it is.")
        if (self.layer is None) != (self.component in UNLAYERED):
            needs = "has no layer" if self.component in UNLAYERED else "needs a layer"
            raise ValueError(f"{self.component!r} {needs}; got layer={self.layer}.")
        if self.head is not None and self.component not in HEADED:
            raise ValueError(f"{self.component!r} has no heads; those that have: {', '.join(HEADED)}.")

    @property
    def heads(self) -> tuple[int, ...] | None:
        """The heads as a tuple."""
        return (self.head,) if isinstance(self.head, int) else None if self.head is None else tuple(self.head)

    def __str__(self) -> str:
        where = f"{self.module}:{self.side}" if self.component is None else self.component
        layer = "" if self.layer is None else f"[{self.layer}]"
        head = "" if self.head is None else f".head[{', '.join(map(str, self.heads or ()))}]"
        position = self.position if isinstance(self.position, str | int) else list(self.position or ())
        return f"{where}{layer}{head}" + ("" if self.position is None else f" @ {position}")


@dataclass(frozen=True, eq=False)
class ResolvedSite:
    """A site found in a network.

    module, side: whose input or output it is. columns: of the last dimension, None = all. width: None where only a run tells.
    shaper: the module whose input has the batch's shape, where `module` sees (batch·tokens, width).
    """

    site: Site
    module: nn.Module
    side: str
    columns: Tensor | None
    width: int | None
    shaper: nn.Module | None = None

    def attach(self, callback: Callback) -> "Attached":
        """Call back with Tensor[batch, position, width] whenever the module runs; a returned tensor takes its place.

        The handle's `remove()` leaves the module as it was. Activations of other shapes are brought to [batch, position, width] and back:
        [batch, width] has one position, [batch, channels, height, width] has pixels as positions, sequences of recurrent
        networks and of attention with `batch_first=False` are transposed. Of tuples and dicts the first tensor is taken.
        """
        handles = []
        if self.shaper is not None:
            callback, noted = self._unflattened(callback)
            handles.append(self.shaper.register_forward_pre_hook(noted, with_kwargs=True))
        if self.side == "output":
            handles.append(self.module.register_forward_hook(self._output_hook(callback)))
        else:
            handles.append(self.module.register_forward_pre_hook(self._input_hook(callback), with_kwargs=True))
        return Attached(tuple(handles))

    def _unflattened(self, callback: Callback) -> tuple[Callback, Callable[..., None]]:
        shape: list[torch.Size] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shape[:] = [_first_tensor(args or kwargs, self.site)[0].shape]

        def unflattened(activation: Tensor) -> Tensor | None:
            new = callback(activation.reshape(*shape[0][:2], -1))
            return None if new is None else new.reshape(activation.shape)

        return unflattened, note

    def _output_hook(self, callback: Callback) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            activation, rebuild = _first_tensor(output, self.site)
            new = self._edited(activation, callback)
            return None if new is None else rebuild(new)

        return hook

    def _input_hook(self, callback: Callback) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                activation, rebuild = _first_tensor(args, self.site)
                new = self._edited(activation, callback)
                return None if new is None else (rebuild(new), kwargs)
            activation, rebuild = _first_tensor(kwargs, self.site)
            new = self._edited(activation, callback)
            return None if new is None else (args, rebuild(new))

        return hook

    def _edited(self, activation: Tensor, callback: Callback) -> Tensor | None:
        laid, back = _as_positions(activation, self.module, self.site)
        if self.columns is None:
            new = callback(laid)
            return None if new is None else back(new)
        columns = self.columns.to(laid.device)
        new = callback(laid.index_select(-1, columns))
        return None if new is None else back(laid.index_copy(-1, columns, new))


def resolve(network: nn.Module, site: Site) -> ResolvedSite:
    """Find a site in a network, before anything runs.

    Raises ValueError for what the network lacks: the component, the layer, the head, or the module, naming what is close.
    """
    if site.component is not None:
        place = locate(network, site.component, site.layer, site.heads)
        columns = None if place.columns is None else torch.tensor(place.columns)
        shaper = None if place.flat is None else network.get_submodule(place.flat)
        return ResolvedSite(site, network.get_submodule(place.module), place.side, columns, place.width, shaper)
    assert site.module is not None
    assert site.side is not None
    modules = dict(network.named_modules())
    if site.module not in modules:
        close = difflib.get_close_matches(site.module, modules, n=3, cutoff=0.4)
        raise ValueError(f"{type(network).__name__} has no module {site.module!r}; close to it: {close or list(modules)[1:6]}.")
    module = modules[site.module]
    width = getattr(module, "in_features" if site.side == "input" else "out_features", None)
    return ResolvedSite(site, module, site.side, None, width)


def _first_tensor(value: Any, site: Site) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The first floating tensor of a nest of tuples and mappings, and how to put another in its place."""
    found = _search(value)
    if found is None:
        raise ValueError(f"Site {site}: there is no floating-point tensor among {type(value).__name__}.")
    return found


def _search(value: Any) -> tuple[Tensor, Callable[[Tensor], Any]] | None:
    if isinstance(value, Tensor):
        return (value, lambda new: new) if value.is_floating_point() else None
    if isinstance(value, Mapping):
        for key, item in value.items():
            if (found := _search(item)) is not None:
                return found[0], lambda new, key=key, put=found[1]: _with_item(value, key, put(new))
    if isinstance(value, tuple | list):
        for number, item in enumerate(value):
            if (found := _search(item)) is not None:
                return found[0], lambda new, n=number, put=found[1]: _with_element(value, n, put(new))
    return None


def _with_item(value: Mapping[str, Any], key: str, item: Any) -> Any:
    items = {**value, key: item}
    return items if type(value) is dict else type(value)(**items)


def _with_element(value: Any, number: int, item: Any) -> Any:
    items = [*value[:number], item, *value[number + 1 :]]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _as_positions(activation: Tensor, module: nn.Module, site: Site) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The activation as [batch, position, width], and the way back."""
    if activation.ndim == 2:
        return activation.unsqueeze(1), lambda new: new.squeeze(1)
    if activation.ndim == 3:
        if getattr(module, "batch_first", True):
            return activation, lambda new: new
        return activation.transpose(0, 1), lambda new: new.transpose(0, 1)
    if activation.ndim == 4:
        shape = activation.shape
        return activation.flatten(2).transpose(1, 2), lambda new: new.transpose(1, 2).reshape(shape)
    raise ValueError(f"Site {site}: activations of shape {tuple(activation.shape)} have no positions; name another module.")
