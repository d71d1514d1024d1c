"""The row: one measured figure, the same in metrics.json, tables, loggers and reports."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, with everything that says what it is a figure of.

    Arguments:
        experiment, network, task, variable: what was asked, and of which network.
        method: the name of the intervention.
        component, layer, head, position: the site.
        rank: how many dimensions are edited. With a learned gate it is how many coordinates the
            gate lets through. None where the intervention has no rank of its own.
        seed: of the run; in a job that varies the seed, of the cell.
        split: train | validation | test.
        subset: the pairs that count. "all". "changing": the label differs from the base's own
            answer. "unchanging": the others, and of these "unchanging/another_asked" (the base asks
            for another variable) and "unchanging/same_value". "kind/NAMES": the source differs from
            the base in exactly these variables.
        control: None for the alignment itself. Otherwise the control that was scored in its place.
            In a difference it is the control that the alignment is compared with.
        metric: iia | iia_forced | iia_difference | cut | disentangle | logit_difference |
            answer_agreement | task_accuracy | divergence | principal_angle | found_in_truth |
            projection_distance | abstraction_error/up | abstraction_error/down, or a metric of a
            map. `iit.result.vocabulary` has their names in words.
        value, low, high: the figure and its 95% interval.
        n: how many pairs (or prompts) are behind it.
    """

    experiment: str | None
    network: str | None
    task: str | None
    variable: str | None
    method: str | None
    component: str | None
    layer: int | None
    head: int | list[int] | None
    position: int | str | list[int] | list[str] | None
    rank: int | None
    seed: int | None
    split: str
    subset: str
    control: str | None
    metric: str
    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The row as a JSON object, with its columns in order."""
        return asdict(self)

    def site_text(self) -> str:
        """The row's site as a site prints itself: component[layer].head[k] @ position.

        The row of a single unit (of a map) also says which unit.
        """
        text = str(self.component)
        if self.layer is not None:
            text += f"[{self.layer}]"
        if self.head is not None:
            # Several heads are a list, which is printed without its own brackets.
            text += f".head[{str(self.head).strip('[]')}]"
        if self.position is not None:
            text += f" @ {self.position}"
        # A unit stands in the method, as in `VanillaIntervention[12]`.
        _, _, unit = (self.method or "").partition("[")
        return f"{text}, unit {unit.rstrip(']')}" if unit else text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """The inverse of `to_dict`.

        Raises:
            ValueError: for unknown and missing columns, which it names.
        """
        unknown = sorted(set(values) - set(ROW_FIELDS))
        missing = [name for name in ROW_FIELDS if name not in values]
        if unknown or missing:
            raise ValueError(
                f"A row has the columns {list(ROW_FIELDS)}; unknown: {unknown}, missing: {missing}."
            )
        return cls(**values)


ROW_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Row))
