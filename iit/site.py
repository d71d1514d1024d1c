"""A site: how it is found in a network, read and written."""

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from iit.network import dimensions
from iit.network.components import COMPONENTS, HEADED, UNLAYERED, locate
from iit.network.hooks import (
    Attached,
    Callback,
    at_call,
    at_input,
    at_output,
    first_tensor,
    plain_attention,
    within,
)
from iit.result.row import site_text

Index = int | Sequence[int] | None


@dataclass(frozen=True)
class Site:
    """A place in a network: a component of a transformer, or any module's input or output.

    Arguments:
        component: one of `iit.network.components.COMPONENTS`.
        layer: of the component, counted from 0.
        head: an int or several, for a component that has heads; all by default.
        position: a role, a token index (negative counts from the end), several of one kind, or None
            for every position. `answer[k]` is token k of the answer, where the answer is appended
            to the prompt. A base has the label there, a source its own answer. In `generate`,
            `new[k]` is token k of what is written, and `new` is every token of it.
        module: the path of any submodule, in place of a component.
        side: "input" | "output" of the module; the output by default.

    Raises:
        ValueError: both or neither of component and module; an unknown name; a layer, head or side
            that does not belong; an index that is empty or named twice.

    Example:
        >>> print(Site("block_output", layer=17, position="s2"))
        block_output[17] @ s2
    """

    component: str | None = None
    layer: int | None = None
    head: Index = None
    position: str | Sequence[str] | Index = None
    module: str | None = None
    side: str | None = None

    def __post_init__(self) -> None:
        for name in ("layer", "head", "position"):
            value = getattr(self, name)
            if value is not None and not (name == "position" and isinstance(value, str)):
                # The class is frozen. Lists become tuples, so that a site is hashable.
                object.__setattr__(self, name, _indices(name, value))
        if (self.component is None) == (self.module is None):
            raise ValueError(
                f"A site is a component or a module; got component={self.component!r} and "
                f"module={self.module!r}."
            )
        if self.component is None:
            if self.layer is not None or self.head is not None:
                raise ValueError(
                    "A module's path says where it is: `layer` and `head` belong to components."
                )
            if self.side is None:
                object.__setattr__(self, "side", "output")
            if self.side not in ("input", "output"):
                raise ValueError(f"side={self.side!r} is neither 'input' nor 'output'.")
            return
        if self.component not in COMPONENTS:
            close = difflib.get_close_matches(self.component, COMPONENTS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"There is no component {self.component!r}.{hint} The components are: "
                f"{', '.join(COMPONENTS)}."
            )
        if self.side is not None:
            raise ValueError("`side` belongs to modules; a component says itself where it is.")
        # Exactly the embedding and the last norm have no layer.
        if (self.layer is None) != (self.component in UNLAYERED):
            needs = "has no layer" if self.component in UNLAYERED else "needs a layer"
            raise ValueError(f"{self.component!r} {needs}; got layer={self.layer}.")
        if self.head is not None and self.component not in HEADED:
            raise ValueError(
                f"{self.component!r} has no heads; those that have: {', '.join(HEADED)}."
            )

    @property
    def heads(self) -> tuple[int, ...] | None:
        """The heads as a tuple; None for all."""
        if self.head is None:
            return None
        return (self.head,) if isinstance(self.head, int) else tuple(self.head)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles in the position; () where it is given in numbers."""
        position = self.position
        positions = (position,) if isinstance(position, str | int) else position or ()
        return tuple(item for item in positions if isinstance(item, str))

    def coordinates(self) -> dict[str, Any]:
        """component, layer, head and position, as columns of a table."""
        columns: dict[str, Any] = {"component": self.component or f"{self.module}:{self.side}"}
        for name in ("layer", "head", "position"):
            value = getattr(self, name)
            columns[name] = list(value) if isinstance(value, tuple) else value
        return columns

    def __str__(self) -> str:
        return site_text(**self.coordinates())


@dataclass(frozen=True, eq=False)
class ResolvedSite:
    """A site that was found in a network.

    Arguments:
        site: the site.
        module: the module at which it is read and written.
        side: "input" or "output" of the module, or the name of a torch function inside it. The site
            is then what the function returns.
        width: of the last dimension; None where only a run tells.
        ancestors: the modules around it, the closest first.
        units: which units of the last dimension belong to the site; None for all.
        heads: which heads of [batch, head, query, key] belong to the site; None for all.
        shape_module: the block around the module, where the module may see (batch·tokens, width).
            The block's input has the batch's shape.
        encoder: the `nn.TransformerEncoder` around it; None where there is none.
        axes: {number of dimensions: what they are}, as `iit.network.dimensions.axes` says.
    """

    site: Site
    module: nn.Module
    side: str
    width: int | None
    ancestors: tuple[nn.Module, ...]
    units: Tensor | None = None
    heads: Tensor | None = None
    shape_module: nn.Module | None = None
    encoder: nn.Module | None = None
    axes: Mapping[int, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the module runs."""
        return dimensions.device_of(self.module, *self.ancestors)

    def refuse_recomputed(self) -> None:
        """Raises ValueError for a site inside a gradient-checkpointed layer.

        There the backward pass runs the forward again without hooks. Hooks on the layer itself
        stand outside of what is run again.
        """
        for layer in self.ancestors:
            is_layer = isinstance(layer, GradientCheckpointingLayer)
            if is_layer and layer.gradient_checkpointing and layer.training:
                raise ValueError(
                    f"Site {self.site} is inside a layer under gradient checkpointing, whose "
                    "backward would run it again unedited. Use block_input or block_output, put "
                    "the network in eval mode, or call its `gradient_checkpointing_disable()`."
                )

    def attach(self, callback: Callback) -> Attached:
        """Call back with Tensor[batch, position, width] whenever the module runs.

        A tensor that the callback returns takes the activation's place. The handle's `remove()`
        leaves the module as it was.

        Activations of other shapes are brought to [batch, position, width] and back:

        - [batch, width] has one position.
        - [batch, channels, height, width] has pixels as positions.
        - [batch, channels, steps] of a one-dimensional convolution, pooling or norm has steps as
            positions.
        - Attention weights have queries as positions, and heads side by side.
        - Sequences that come before the batch are transposed.

        From tuples and dicts the first floating-point tensor is taken.
        """
        undo: list[Callable[[], None]] = []
        if self.encoder is not None:
            # Fused attention would hand nested tensors to the layers.
            undo += within(self.encoder, plain_attention).undo
        # The shape of the batch, where the module may see (batch·tokens, width).
        shape: list[int] = []
        if self.shape_module is not None:

            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                shape[:] = first_tensor((args, kwargs)).shape[:2]

            handle = self.shape_module.register_forward_pre_hook(note, with_kwargs=True)
            undo.append(handle.remove)

        def edit(activation: Tensor) -> Tensor | None:
            by_position, back = self._as_positions(activation)
            laid = by_position.shape
            # A flat activation arrives as [batch·tokens, 1, width]; any other is left as it is.
            is_flat = bool(shape) and laid[:2] == (prod(shape), 1)
            if is_flat:
                by_position = by_position.reshape(*shape, -1)
            new = callback(by_position)
            if new is None:
                return None
            if is_flat:
                new = new.reshape(laid)
            return back(new)

        if self.side == "output":
            attached = at_output(self.module, edit)
        elif self.side == "input":
            attached = at_input(self.module, edit)
        else:
            attached = at_call(self.module, self.side, edit)
        return Attached((*undo, *attached.undo))

    def _as_positions(
        self, activation: Tensor
    ) -> tuple[Float[Tensor, "batch position width"], Callable[[Tensor], Tensor]]:
        """The site's part of an activation as [batch, position, width], and the way back.

        The way back takes a new part, and returns the whole activation with it.
        """
        # Units are in the last dimension; heads are in [batch, head, query, key].
        dim, index = (1, self.heads) if self.units is None else (-1, self.units)
        if index is None:
            return self._laid(activation)
        index = index.to(activation.device)
        by_position, back = self._laid(activation.index_select(dim, index))
        return by_position, lambda new: activation.index_copy(dim, index, back(new))

    def _laid(self, activation: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """`_as_positions` of an activation that belongs to the site as a whole."""
        shape = activation.shape
        if len(shape) == 2:
            # [batch, width]
            return activation.unsqueeze(1), lambda new: new.squeeze(1)
        axes = self.axes.get(len(shape))
        if axes == "batch position width":
            return activation, lambda new: new
        if axes == "position batch width":
            return activation.transpose(0, 1), lambda new: new.transpose(0, 1)
        if axes == "batch channel step":
            return activation.transpose(1, 2), lambda new: new.transpose(1, 2)
        if axes == "batch position head width":
            return activation.flatten(2), lambda new: new.reshape(shape)
        if axes == "batch channel height width":
            pixels = activation.flatten(2).transpose(1, 2)
            return pixels, lambda new: new.transpose(1, 2).reshape(shape)
        if axes == "batch head query key":
            by_query = activation.transpose(1, 2).flatten(2)
            # Contiguous, as the softmax gave it: Bloom takes a view of it.
            return (
                by_query,
                lambda new: new.unflatten(2, (shape[1], -1)).transpose(1, 2).contiguous(),
            )
        raise ValueError(
            f"Site {self.site}: activations of shape {tuple(shape)} do not say which dimension has "
            "the batch, and which the positions. Name the recurrent, linear or convolutional "
            "module before or after it."
        )


# What the dimensions of components are.
_RESIDUAL = {3: "batch position width"}
_SOFTMAX = {4: "batch head query key"}


def resolve(network: nn.Module, site: Site) -> ResolvedSite:
    """Find a site in a network, before anything runs.

    Raises ValueError for a component, layer, head or module that the network lacks; the message
    says what it has. Raises it too for compiled networks.
    """
    modules = _Modules(network.named_modules())
    _refuse_compiled(modules)
    if site.component is not None:
        location = locate(network, site.component, site.layer, site.heads)
        return ResolvedSite(
            site,
            modules[location.module],
            location.side,
            location.width,
            tuple(_ancestors(modules, location.module)),
            None if location.units is None else torch.tensor(location.units),
            None if location.heads is None else torch.tensor(location.heads),
            None if location.shape_from is None else modules[location.shape_from],
            axes=_SOFTMAX if location.side == "softmax" else _RESIDUAL,
        )
    assert site.module is not None
    assert site.side is not None
    try:
        module = modules[site.module]
    except AttributeError:
        close = difflib.get_close_matches(site.module, modules, n=3, cutoff=0.4)
        raise ValueError(
            f"{type(network).__name__} has no module {site.module!r}; close to it: "
            f"{close or list(modules)[1:6]}."
        ) from None
    ancestors = _ancestors(modules, site.module)
    # Its fused attention has to be switched off while hooks stand.
    encoder = next((m for m in ancestors if isinstance(m, nn.TransformerEncoder)), None)
    # A module inside a transformers block may see (batch·tokens, width).
    block = next((m for m in ancestors if isinstance(m, GradientCheckpointingLayer)), None)
    return ResolvedSite(
        site,
        module,
        site.side,
        dimensions.width(module, site.side),
        tuple(ancestors),
        shape_module=block,
        encoder=encoder,
        axes=dimensions.axes(site.module, modules, ancestors),
    )


class _Modules(dict[str, nn.Module]):
    """The modules of a network by path, and by its other paths where one stands in several places.

    The modules of a TransformerBridge do so.
    """

    def __missing__(self, path: str) -> nn.Module:
        return self[""].get_submodule(path)


class Sites(dict[Site, ResolvedSite]):
    """The sites of one network; each is resolved when it is first asked for."""

    def __init__(self, network: nn.Module, sites: Iterable[Site] = ()):
        super().__init__({site: resolve(network, site) for site in sites})
        self.network = network

    def __missing__(self, site: Site) -> ResolvedSite:
        self[site] = resolve(self.network, site)
        return self[site]


_KINDS = {
    "layer": "an int",
    "head": "an int or several",
    "position": "a role, an int, or several of one kind",
}


def _indices(name: str, value: Any) -> int | tuple[int, ...] | tuple[str, ...]:
    """An int, or several ints or roles as a tuple.

    Raises ValueError for anything else, for an empty sequence, and for an entry given twice.
    """
    try:
        # `operator.index` takes NumPy's and torch's whole numbers, too; a tensor without dimensions
        # has `__iter__`.
        if name == "layer" or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
            return operator.index(value)
        roles = name == "position" and all(isinstance(item, str) for item in value)
        entries = tuple(value if roles else map(operator.index, value))
    except TypeError:
        raise ValueError(f"{name} is {_KINDS[name]}; got {value!r}.") from None
    if not entries:
        raise ValueError(f"{name} is empty; leave it out for all.")
    if len(set(entries)) < len(entries):
        raise ValueError(f"{name}={entries} names one twice.")
    return entries


def _refuse_compiled(modules: dict[str, nn.Module]) -> None:
    for name, module in modules.items():
        # `torch.compile(module)` wraps a module; `module.compile()` changes it in place.
        outside = hasattr(module, "_orig_mod")
        in_place = getattr(module, "_compiled_call_impl", None) is not None
        in_place |= hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        if outside or in_place:
            what = f"Its module {name!r}" if name else "The network"
            raise ValueError(
                f"{what} is compiled. Compiled code may run past hooks that come later: nothing "
                "would be read or edited. Give the network inside of it (`compiled._orig_mod`); if "
                "it was compiled in place: load it again, and compile nothing."
            )


def _ancestors(modules: dict[str, nn.Module], path: str) -> list[nn.Module]:
    """The modules around a module, the closest first."""
    ancestors = []
    while path:
        path = path.rpartition(".")[0]
        ancestors.append(modules[path])
        # A module of a bridge runs the transformers module that it wraps.
        wrapped = modules[path]._modules.get("_original_component")
        if wrapped is not None:
            ancestors.append(wrapped)
    return ancestors
