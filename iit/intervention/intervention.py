"""The intervention: a basis × a gate on its coordinates × an operation."""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iit.batch import map_tensors
from iit.intervention import basis, gate, operation
from iit.intervention.basis import Basis, Coordinates
from iit.intervention.gate import All, Gate, SoftGate
from iit.intervention.operation import Operation, Swap
from iit.intervention.part import Part, Types, fresh_part, joined_table, saved_config
from iit.intervention.reversible import Reversible

PARTS: Types = {
    part.__name__: part
    for part in (
        basis.Identity,
        basis.Frame,
        basis.PrincipalComponents,
        basis.Autoencoder,
        Reversible,
        gate.All,
        gate.Subset,
        gate.Boundary,
        gate.SigmoidMask,
        Swap,
        operation.Add,
        operation.Mean,
        operation.Zero,
        operation.Keep,
        operation.Noise,
        operation.LearnedTarget,
        operation.LowRankUpdate,
    )
}
"""{class name: class}: what a saved intervention may be made of."""

SourceActivations = Tensor | Mapping[str, Tensor] | None
"""Tensor[batch, position, width], or {block: such a tensor}."""
ActiveExamples = Tensor | Mapping[str, Tensor] | None
"""Tensor[batch] of bool, or {block: such a tensor}; None for every example."""


@final
class Intervention(nn.Module):
    """(base activation, source activation) → new activation.

    With c = encode(h), target = operation(c_base, c_source) and c' = c + gate·(target − c), the new
    activation is write(h, c, c').

    It is computed in the precision of the weights, whatever the network's dtype. Without weights it
    is computed in fp32, or in fp64 for an activation in fp64. The new activation has the dtype of
    the base.

    Attributes:
        block_sizes: {variable: number of coordinates}; None where the edit has one variable.

    Arguments:
        name: what it is called in configs, rows and prints.
        gate, operation: by default all coordinates are swapped.
        blocks: {variable: number of coordinates}. A block is a run of coordinates that serves one
            variable and has its own source (no block of a transformer). The first coordinates are
            those of the first variable, and so on.
        kind: what is done. "edit": the coordinates are edited. "collect": the activation is only
            read. "skip": at the output of a transformer block, the source is that block's input,
            and no source is given. "complement": all that the edit would leave is taken from the
            source.

    Raises ValueError for blocks that do not fill the basis.
    """

    def __init__(
        self,
        name: str,
        basis: Basis,
        gate: Gate | None = None,
        operation: Operation | None = None,
        *,
        blocks: Mapping[str, int] | None = None,
        kind: str = "edit",
    ):
        super().__init__()
        self.name = name
        self.basis = basis
        self.gate = gate or All()
        self.operation = operation or Swap()
        self.kind = kind
        self.block_sizes = None
        if blocks is not None:
            sizes = blocks.values()
            if min(sizes, default=0) < 1 or sum(sizes) != basis.rank:
                raise ValueError(
                    f"Blocks {blocks} must each have at least one coordinate and fill the basis's "
                    f"{basis.rank}."
                )
            self.block_sizes = dict(blocks)

    @property
    def width(self) -> int | None:
        """The width of the activation; None for any."""
        return self.basis.width

    @property
    def rank(self) -> int | None:
        """Dimensions of the edited space; None where it is the whole space, of any width."""
        return self.basis.rank

    @property
    def needs_source(self) -> bool:
        """Whether a source has to be given."""
        return self.operation.needs_source and self.kind in ("edit", "complement")

    @property
    def collects(self) -> bool:
        """Whether the activation is only read."""
        return self.kind == "collect"

    @property
    def skips(self) -> bool:
        """Whether the input of the site's transformer block stands in for a source."""
        return self.kind == "skip"

    @property
    def blocks(self) -> tuple[str, ...] | None:
        """The variables that blocks of coordinates serve; None where the edit has one variable."""
        return None if self.block_sizes is None else tuple(self.block_sizes)

    def complement(self) -> "Intervention":
        """The interchange of everything that this one leaves: h' = s + Q(Qᵀh − Qᵀs) for a frame Q.

        The two share their weights.

        Raises ValueError for an intervention that reads no source, and for one that leaves nothing.
        """
        if self.kind != "edit" or not self.operation.needs_source:
            raise ValueError(f"{self} reads no source: there is no interchange of what it leaves.")
        # A learned or fixed gate may leave coordinates of a whole basis.
        if isinstance(self.gate, All) and self.rank in (None, self.width):
            raise ValueError(f"{self} swaps the whole activation: nothing is left of it.")
        return Intervention(self.name, self.basis, self.gate, self.operation, kind="complement")

    def anneal(self, factor: float) -> None:
        """Set a learned gate's temperature to `factor` times the one it was made with.

        Raises ValueError for a factor that is not above 0.
        """
        if not factor > 0:
            raise ValueError(f"A temperature stays above 0; the factor is {factor}.")
        if isinstance(self.gate, SoftGate):
            # Relative to the first temperature, so calls do not add up.
            self.gate.temperature.fill_(factor * self.gate.arguments["temperature"])

    def penalty(self) -> Float[Tensor, ""]:
        """The soft share of coordinates that a learned gate lets through; 0 for other gates."""
        return self.gate.penalty() if isinstance(self.gate, SoftGate) else torch.zeros(())

    def learned_rank(self) -> int | None:
        """Coordinates that a learned gate lets through in evaluation.

        Other gates do not count: it is then `rank`, the number of coordinates of the basis.
        """
        return self.gate.learned_rank() if isinstance(self.gate, SoftGate) else self.rank

    @property
    def device(self) -> torch.device | None:
        """Where the weights lie; None without weights."""
        return next((t.device for t in (*self.parameters(), *self.buffers())), None)

    def forward(
        self,
        base: Float[Tensor, "batch position width"],
        source: SourceActivations = None,
        active: ActiveExamples = None,
    ) -> Float[Tensor, "batch position width"]:
        """The new activation, Tensor[batch, position, width].

        Arguments:
            source: Tensor[batch, position, width], or {block: such a tensor}. The source of an
                inactive block may be missing.
            active: Tensor[batch] of bool, or {block: such a tensor}; None for all. Inactive
                examples come back bit by bit.

        Raises ValueError for a source that is missing, needless or of another shape, a width other
        than the basis's, and unknown blocks. Raises it also where the new activation has another
        shape than the base.
        """
        self._check(base, source, active)
        # One intervention may serve sites on several devices; it computes where its weights are.
        device, near = base.device, self.device or base.device
        base, source, active = map_tensors((base, source, active), lambda t, _: t.to(near))
        # A complement edits the source, and takes the edited space from the base.
        unedited = base
        if self.kind == "complement":
            assert isinstance(source, Tensor)
            base, source = source.to(base.dtype), base

        # A network in half precision: its activation is edited in the weights' precision.
        high = base.to(self._precision(base))
        coordinates = self.basis.ready()
        old = coordinates.encode(high)
        target = self._target(old, high, source, active, coordinates)

        weights = self.gate()
        # lerp is exact at 0 and 1, also where base and target differ by orders of magnitude.
        new = target if weights is None else torch.lerp(old, target, weights.to(old.dtype))

        # What the basis does not span comes from the base.
        edited = coordinates.write(high, old, new).to(base.dtype)
        if edited.shape != base.shape:
            raise ValueError(
                f"{self} made {tuple(edited.shape)} of an activation of shape {tuple(base.shape)}; "
                "they must be equal."
            )

        if isinstance(active, Tensor):
            # [batch] → [batch, 1, 1]. In a complement `base` is the source by now, so inactive
            # examples come from `unedited`.
            edited = torch.where(active.view(-1, 1, 1), edited, unedited)
        # An example in which no block is active comes back bit by bit.
        elif active is not None and set(active) == set(self.block_sizes or ()):
            edited = torch.where(
                torch.stack(list(active.values())).any(0).view(-1, 1, 1), edited, base
            )
        return edited.to(device)

    def _precision(self, base: Tensor) -> torch.dtype:
        """The weights' own precision; without weights fp32, or the base's where it is higher."""
        weights = (*self.parameters(), *self.buffers())
        return next(
            (t.dtype for t in weights if t.is_floating_point()),
            torch.promote_types(base.dtype, torch.float32),
        )

    def _target(
        self,
        old: Tensor,
        high: Tensor,
        source: SourceActivations,
        active: ActiveExamples,
        coordinates: Coordinates,
    ) -> Tensor:
        """Target coordinates, Tensor[batch, position, n]; each block has its own source."""
        sources = source if isinstance(source, Mapping) else {"": source}
        flags = active if isinstance(active, Mapping) else {}
        # The blocks lie one after another. Without blocks all coordinates are one.
        blocks = self.block_sizes or {"": old.shape[-1]}
        sizes = list(blocks.values())
        parts = list(old.split(sizes, -1))
        for number, block in enumerate(blocks):
            source_part, source_of_block = None, sources.get(block)
            if source_of_block is not None:
                encoded = coordinates.encode(source_of_block.to(high.dtype))
                source_part = encoded.split(sizes, -1)[number]
            elif self.operation.needs_source:
                # Coordinates of an inactive block without a source stay as they are.
                continue
            target = self.operation(parts[number], source_part, high)
            if block in flags:
                target = torch.where(flags[block].view(-1, 1, 1), target, parts[number])
            parts[number] = target
        return torch.cat(parts, -1)

    def _check(self, base: Tensor, source: SourceActivations, active: ActiveExamples) -> None:
        if self.width is not None and base.shape[-1] != self.width:
            raise ValueError(
                f"{self} was made for width {self.width}; the activation has shape "
                f"{tuple(base.shape)}."
            )

        tensors, needed = {}, {"source"}
        if self.block_sizes is None:
            if isinstance(source, Mapping) or isinstance(active, Mapping):
                raise ValueError(f"{self} has no blocks: its source and `active` are tensors.")
            if source is not None:
                tensors = {"source": source}
        else:
            if isinstance(source, Tensor) or isinstance(active, Tensor):
                raise ValueError(
                    f"{self} has blocks: source and `active` are given as {{block: tensor}} for "
                    f"{list(self.block_sizes)}."
                )

            tensors, flags = dict(source or {}), dict(active or {})
            unknown = sorted((set(tensors) | set(flags)) - set(self.block_sizes))
            if unknown:
                raise ValueError(
                    f"{self} has no block {unknown}; its blocks are {list(self.block_sizes)}."
                )

            # Only a block that is inactive in every example may lack a source.
            inactive = {block for block, flag in flags.items() if not flag.any()}
            needed = set(self.block_sizes) - inactive

        missing = sorted(needed - set(tensors))
        if missing and self.operation.needs_source:
            raise ValueError(f"{self} needs a source; missing: {missing}.")
        if tensors and not self.operation.needs_source:
            raise ValueError(f"{self} reads no source, but one was given.")
        for name, tensor in tensors.items():
            if tensor.shape != base.shape:
                raise ValueError(
                    f"{self}: {name} has shape {tuple(tensor.shape)}, the base "
                    f"{tuple(base.shape)}; they must be equal."
                )

    def config(self) -> dict[str, Any]:
        """A JSON object from which `from_config` makes a fresh intervention.

        Raises ValueError for what cannot be saved: functions, a subclass of `Intervention`, and the
        user's own parts that their arguments do not make again.
        """
        if type(self) is not Intervention:
            raise ValueError(
                f"{type(self).__name__} is a subclass of Intervention and cannot be saved: what it "
                "changes would be lost. Write the change as a Basis, Gate or Operation, and pass "
                "it to Intervention(name, basis, gate, operation)."
            )
        return {
            "type": self.name,
            **{name: saved_config(part, PARTS) for name, part in self._parts()},
            "blocks": self.block_sizes,
            "kind": self.kind,
        }

    @property
    def custom_parts(self) -> Types:
        """The classes of its parts that are not in `PARTS`, by name.

        These have to be given to `from_config` as `types`.
        """
        return {
            type(part).__name__: type(part)
            for _, part in self._parts()
            if type(part).__name__ not in PARTS
        }

    def _parts(self) -> tuple[tuple[str, Part], ...]:
        return ("basis", self.basis), ("gate", self.gate), ("operation", self.operation)

    @staticmethod
    def from_config(
        config: Mapping[str, Any], types: Mapping[str, Any] | None = None
    ) -> "Intervention":
        """A fresh intervention of the same shape, with weights as at the start of a training.

        Arguments:
            types: the user's own bases, gates and operations, by name.

        Raises ValueError for a type that is in neither `types` nor `PARTS`, or in both, or that is
        no part. Raises it also for arguments that a part does not take.
        """
        table = joined_table(PARTS, types or {})
        return Intervention(
            config["type"],
            fresh_part(Basis, config["basis"], table),
            fresh_part(Gate, config["gate"], table),
            fresh_part(Operation, config["operation"], table),
            blocks=config["blocks"],
            kind=config["kind"],
        )

    def __repr__(self) -> str:
        # A rank that equals the width says nothing.
        shape = {"width": self.width, "rank": self.rank if self.rank != self.width else None}
        if self.block_sizes is not None:
            shape["blocks"] = self.block_sizes  # pyright: ignore[reportArgumentType]
        kind = ".complement" if self.kind == "complement" else ""
        shown = ", ".join(f"{key}={value}" for key, value in shape.items() if value is not None)
        return f"{self.name}{kind}({shown})"
