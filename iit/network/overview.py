"""What components a network has, printed for whoever is about to study it."""

import re
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import nn

from iit.network.components import COMPONENTS, blocks_of, transformer_in
from iit.network.dimensions import running_device


def components(network: Any) -> None:
    """Print which components a network has, in which layers and where, and why it lacks others.

    Arguments:
        network: a `LanguageModel`, a transformers model, or a module that wraps one.

    Raises:
        ValueError: for a network in which no blocks are found.
    """
    module = network if isinstance(network, nn.Module) else network.model
    known, transformer = blocks_of(module), transformer_in(module)
    how = "listed by its family" if known.is_listed else "found by structure, checked by small runs"
    if running_device(transformer) is None and not known.is_listed:
        how = "found by structure; not checked, for the weights are not loaded"
    # A path that is too long for the terminal goes on in the next line.
    where_column = Column("where, or why not", overflow="fold")
    table = Table("component", "layers", "heads", where_column)
    table.title = f"{type(transformer).__name__}, {len(known.blocks)} layers; {how}"
    for component in COMPONENTS:
        # {(heads, where or why): layers}; the path of a block says {layer} in place of its number.
        rows: dict[tuple[str, str], list[int | None]] = {}
        for layer, places in known.places.items():
            place = places.get(component)
            if isinstance(place, str):
                rows.setdefault(("", f"— {place}"), []).append(layer)
            elif place is not None:
                path = re.sub(rf"\.{layer}\b", ".{layer}", place.module, count=1)
                where = f"{path}:{place.side}"
                rows.setdefault((str(place.n_heads or ""), where), []).append(layer)
        for (heads, where), layers in rows.items():
            table.add_row(component, _ranges(layers), heads, escape(where))
    Console().print(table)


def _ranges(layers: list[int | None]) -> str:
    """The layers as text: runs of numbers as first-last."""
    spans: list[list[int]] = []
    for layer in layers:
        if layer is None:
            return ""
        if spans and spans[-1][-1] == layer - 1:
            spans[-1][1:] = [layer]
        else:
            spans.append([layer])
    return ", ".join("-".join(map(str, span)) for span in spans)
