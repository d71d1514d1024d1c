"""What bases, gates and operations share: a type name, and arguments that make a fresh one."""

import json
from abc import ABC
from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import nn


class Part(nn.Module, ABC):
    """A basis, gate or operation.

    Arguments:
        arguments: {name: value}, what the constructor of the subclass was called with. The values
            are as JSON has them. Weights and buffers are in the state dict.
    """

    def __init__(self, **arguments: Any):
        super().__init__()
        self.arguments = arguments

    def config(self) -> dict[str, Any]:
        """{"type": class name, **arguments}: enough for a fresh part of the same shape."""
        return {"type": type(self).__name__, **self.arguments}

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())


Kind = TypeVar("Kind", bound=Part)
Types = Mapping[str, type[Part]]
"""{class name: class}, of parts."""


def saved_config(part: Part, table: Types) -> dict[str, Any]:
    """The config of a part, for a saved file.

    Arguments:
        table: {class name: class} of iit's own parts.

    Raises ValueError for a part of the user's own class that its config does not make again.
    """
    config, kind = part.config(), type(part)
    # The parts of the table can be made again from their arguments. A user's class is tried below.
    if table.get(kind.__name__) is kind:
        return config
    if kind.__name__ in table:
        raise ValueError(
            f"Your class {kind.__name__} has the name of one of iit's own: it cannot be "
            "saved. Rename it."
        )

    needed = (
        f"{kind.__name__} cannot be saved: it is made again from the arguments that it gives to "
        f"`super().__init__(**arguments)`, which are {part.arguments}. Give it all of its "
        "constructor's arguments there, as JSON, and keep everything else in "
        "parameters and buffers."
    )
    # Through JSON, as a saved file would hold them (tuples become lists).
    try:
        arguments = json.loads(json.dumps(part.arguments))
        # A second part is made to see whether the arguments are enough.
        with torch.random.fork_rng(devices=[]):
            again = kind(**arguments)
        again.load_state_dict(part.state_dict())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{needed} ({error})") from error
    if again.arguments != part.arguments:
        raise ValueError(f"{needed} (Made again it would have {again.arguments}.)")
    return config


def joined_table(table: Types, types: Mapping[str, Any]) -> Types:
    """The table with a user's own parts.

    Raises ValueError for a name that both have, and for what is no part.
    """
    for name, kind in types.items():
        if not (isinstance(kind, type) and issubclass(kind, Part)):
            raise ValueError(
                f"types={{{name!r}: {kind!r}}}: a type is a class that extends Basis, "
                "Gate or Operation."
            )
        if name in table:
            raise ValueError(
                f"types names {name!r}, which is one of iit's own parts; rename your class."
            )
    return {**table, **types}


def fresh_part(part_class: type[Kind], config: Mapping[str, Any], table: Types) -> Kind:
    """A fresh part, made from its config: the inverse of `Part.config`, but for the weights.

    Arguments:
        part_class: Basis, Gate or Operation.
        table: {class name: class} of all parts.

    Raises ValueError for a type that is not in the table or is of another class, and for arguments
    that it does not take.
    """
    name = config["type"]
    arguments = {key: value for key, value in config.items() if key != "type"}
    if name not in table:
        raise ValueError(
            f"There is no part {name!r}; there is {', '.join(sorted(table))}. Pass your own with "
            f"types={{name: class}}."
        )
    if not issubclass(table[name], part_class):
        raise ValueError(f"{name} is no {part_class.__name__}.")
    try:
        part = table[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be made of {arguments}: {error}.") from error
    assert isinstance(part, part_class)
    return part


def checked_rank(rank: int, width: int) -> int:
    """The rank, where it fits the width.

    Raises ValueError for a rank that is no whole number, below 1, or above the width.
    """
    # Integral, so that numpy's integers pass and 2.0 does not.
    if not isinstance(rank, Integral) or not 1 <= rank <= width:
        raise ValueError(
            f"rank={rank} does not fit a space of width {width}; it must be a whole number between "
            f"1 and {width}."
        )
    return rank
