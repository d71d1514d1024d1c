"""Where the components of a transformer are, given the parts of its blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from iit.network.dimensions import width


def module_at(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at a path; None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


@dataclass(frozen=True)
class ComponentLocation:
    """Where one component is in one network.

    Arguments:
        module: the path of a module, from the network's root.
        side: "input" or "output" of that module, or the name of a torch function inside it. The
            component is then what the function returns.
        width: the number of units; None where it is the number of keys, which a run decides.
        units: which units of the last dimension belong to the component; None for all.
        heads: which heads belong to it, where the shape is [batch, head, query, key]; None for all.
        shape_from: the path of the block around the module, where the module may see (batch·tokens,
            width). Only the block then knows the batch's shape.
        n_heads: into how many heads the units are divided, in order; None for a part without heads.
    """

    module: str
    side: str
    width: int | None
    units: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    shape_from: str | None = None
    n_heads: int | None = None


Places = dict[str, ComponentLocation | str]
"""{component: where it is, or why there is none}"""


@dataclass(frozen=True)
class BlockParts:
    """Paths of a block's parts, inside the block; None for a part that it lacks.

    Arguments:
        attention: the module whose input is what attention receives.
        qkv: the query, key and value projections, or one module that is all three. A query
            projection may stand alone.
        attention_out: the output projection.
        mlp_input: the module whose input is what the MLP receives.
        mlp_out: the output projection, or the whole mixture.
        router: the module that has the weights of a mixture's router.
        is_mixture: whether the MLP consists of experts.
        writes: {"attention_write" | "mlp_write" | another mixer's name: modules that may give what
            it adds to the residual stream, the likeliest first}.
        fused_order: how a projection that is all three orders its units. contiguous: all queries,
            then all keys, then all values. grouped: a key and a value behind each group of queries.
        is_direct: whether a projection receives the same tensor as the attention, with no norm
            between.
    """

    attention: str | None = None
    qkv: tuple[str, ...] = ()
    attention_out: str | None = None
    mlp_input: str | None = None
    mlp_out: str | None = None
    router: str | None = None
    is_mixture: bool = False
    writes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fused_order: str = "contiguous"
    is_direct: bool = True


PROJECTED = ("query_output", "key_output", "value_output")
OF_ATTENTION = (
    *PROJECTED,
    "attention_input",
    "attention_output",
    "attention_value_output",
    "attention_weight",
    "attention_write",
)
OF_MLP = ("mlp_input", "mlp_output", "mlp_activation", "mlp_write", "router_output")

# What modules or configs call the number of query heads, and the width of a head.
_N_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_SIZES = ("qk_head_dim", "head_dim", "head_size", "attention_head_size", "dim_head", "d_kv")


class Block:
    """One block of a transformer, and where its components are.

    Arguments:
        root: the block's path.
        hidden: the width of the residual stream.
    """

    def __init__(self, root: str, module: nn.Module, parts: BlockParts, config: Any, hidden: int):
        self.root, self.module, self.parts, self.hidden = root, module, parts, hidden
        self.config = config.get_text_config()

    def places(self) -> Places:
        """Where each component is, by its parts."""
        parts = self.parts
        places: Places = {
            "block_input": ComponentLocation(self.root, "input", self.hidden),
            "block_output": ComponentLocation(self.root, "output", self.hidden),
            **dict.fromkeys(OF_ATTENTION, "has no attention with projections of its own"),
            **dict.fromkeys(OF_MLP, "has no MLP with projections of its own"),
        }
        if parts.attention is not None and parts.attention_out is not None:
            places["attention_input"] = self.place(parts.attention, "input")
            places["attention_output"] = self.place(parts.attention_out)
            places |= self._headed_places(parts.attention, parts.attention_out)
        if parts.mlp_input is not None and parts.mlp_out is not None:
            places["mlp_input"] = self.place(parts.mlp_input, "input")
            places["mlp_output"] = self.place(parts.mlp_out)
            places["mlp_activation"] = self.place(parts.mlp_out, "input")
            places["router_output"] = "has no router: it is no mixture of experts"
            if parts.is_mixture:
                places["mlp_activation"] = "has experts, and no single down projection"
            if parts.router is not None:
                n_experts = len(self.part(parts.router).weight)
                places["router_output"] = ComponentLocation(
                    f"{self.root}.{parts.router}", "linear", n_experts, shape_from=self.root
                )
        for name, paths in parts.writes.items():
            if name in places:
                places[name] = self.place(paths[0])
        return places

    def part(self, path: str) -> Any:
        """A module of the block."""
        return self.module.get_submodule(path)

    def place(self, path: str, side: str = "output") -> ComponentLocation:
        """A place without heads; its module may see (batch·tokens, width)."""
        n_units = width(self.part(path), side) or self.hidden
        return ComponentLocation(f"{self.root}.{path}", side, n_units, shape_from=self.root)

    def _headed_places(self, attention: str, out: str) -> Places:
        module, qkv = self.part(attention), self.parts.qkv
        n_heads = _number(module, self.config, _N_HEADS)
        if not n_heads:
            headed = (*PROJECTED, "attention_value_output", "attention_weight")
            return dict.fromkeys(headed, "does not say how many heads its attention has")
        size = _number(module, self.config, _SIZES) or self.hidden // n_heads
        value_size = self._n_units(out, "input") // n_heads
        n_units = self._n_units(qkv[0])
        places: Places = dict.fromkeys(PROJECTED, "makes queries, keys and values in several steps")
        places["attention_value_output"] = self._headed(out, "input", range(n_heads), value_size)
        places["attention_weight"] = ComponentLocation(
            f"{self.root}.{attention}", "softmax", None, n_heads=n_heads
        )
        if self.config._attn_implementation != "eager":
            places["attention_weight"] = (
                f"runs {self.config._attn_implementation!r} attention, and its weights exist under "
                "eager attention only: load it with attention='eager' (in transformers: "
                "attn_implementation='eager')"
            )
        if len(qkv) == 3:
            n_keys = self._n_units(qkv[1]) // size
            counts, sizes = (n_heads, n_keys, n_keys), (size, size, value_size)
            for name, path, count, one in zip(PROJECTED, qkv, counts, sizes, strict=True):
                places[name] = self._headed(path, "output", range(count), one)
        elif n_units == n_heads * size:
            places["query_output"] = self._headed(qkv[0], "output", range(n_heads), size)
        else:
            n_keys = max(n_units // size - n_heads, 0) // 2
            is_grouped = self.parts.fused_order == "grouped"
            starts = _starts(n_heads, n_keys, is_grouped=is_grouped and n_keys > 0)
            for name, part in zip(PROJECTED, starts, strict=True):
                places[name] = self._headed(qkv[0], "output", part, size, n_heads + 2 * n_keys)
        return places

    def _headed(
        self, path: str, side: str, starts: Sequence[int], size: int, n_heads: int | None = None
    ) -> ComponentLocation | str:
        """A component with heads.

        Arguments:
            starts: where each head starts, in units of a head's width.
            n_heads: of the whole module, where the component has some of them only.
        """
        n_units, n_heads = self._n_units(path, side), n_heads or len(starts)
        if not starts or n_units != n_heads * size:
            return f"has {n_units} units at {path}, which are not {n_heads} heads of {size}"
        units = None
        if n_heads != len(starts):
            units = tuple(start * size + unit for start in starts for unit in range(size))
        path = f"{self.root}.{path}"
        return ComponentLocation(path, side, len(starts) * size, units, n_heads=len(starts))

    def _n_units(self, path: str, side: str = "output") -> int:
        return width(self.part(path), side) or 0


def _number(module: nn.Module, config: Any, names: tuple[str, ...]) -> int:
    """What the attention module, or else the config, says under one of these names."""
    for holder in (module, config):
        for name in names:
            number = getattr(holder, name, None)
            if isinstance(number, int) and number > 0:
                return number
    return 0


def _starts(n_heads: int, n_keys: int, *, is_grouped: bool) -> tuple[list[int], ...]:
    """Where queries, keys and values start in a fused projection, in units of a head's width."""
    heads, keys = range(n_heads), range(n_keys)
    if not is_grouped:
        behind = n_heads + n_keys
        return list(heads), [n_heads + key for key in keys], [behind + key for key in keys]
    # Groups of queries, each with one key and one value behind it.
    group = n_heads // n_keys
    return (
        [head // group * (group + 2) + head % group for head in heads],
        [key * (group + 2) + group for key in keys],
        [key * (group + 2) + group + 1 for key in keys],
    )
