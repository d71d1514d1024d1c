"""The row: one measured figure, the same in metrics.json, tables, loggers and reports."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from iit.result.table import with_interval


class Arm(NamedTuple):
    """What is scored: the alignment itself, or a control in its place.

    Arguments:
        control, draw: as the columns of a row have them.
    """

    control: str | None = None
    draw: int | float | str | None = None

    def __str__(self) -> str:
        name = self.control or "trained"
        return name if self.draw is None else f"{name}/{self.draw}"


TRAINED = Arm()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, with everything that says what it is a figure of.

    Arguments:
        experiment, network, task, variable: what was asked, and of which network.
        method: the name of the intervention. (A training is more than that: the run's config has
            its objective, weights and schedules.)
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
        draw: which one of a control's figures this is. It is a number for a random draw, a seed or
            a rank; a name for a rival or another variable; the strength of a method that steers.
            None where the control has one figure, or where this one averages its draws.
        metric: what is measured. `iit.result.vocabulary` has the metrics of an evaluation in words.
            A map has metrics of its own (`iit.patching`), and so has the job `ground_truth`
            (`iit.evaluation.angles`).
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
    draw: int | float | str | None = None
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
        text = site_text(self.component, self.layer, self.head, self.position)
        # A unit stands in the method, as in `VanillaIntervention[12]`.
        _, _, unit = (self.method or "").partition("[")
        if unit:
            text += f", unit {unit.rstrip(']')}"
        return text

    def __repr__(self) -> str:
        return (
            f"Row({self.metric}, {self.arm}: {with_interval(self)}, n = {self.n}, {self.split}, "
            f"{self.subset}; {self.cell_text()})"
        )

    def cell_text(self) -> str:
        """The row's cell in words."""
        if self.component is None:
            return f"task {self.task}"
        rank = "" if self.rank is None else f", rank {self.rank}"
        return f"{self.variable} at {self.site_text()}{rank}"

    @property
    def arm(self) -> Arm:
        """What was scored: the alignment itself, or a control in its place."""
        return Arm(self.control, self.draw)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """The inverse of `to_dict`.

        A row of the first schema has no column `draw`: there it stands in the control's name, or in
        the method's.

        Raises:
            ValueError: for unknown and missing columns, which it names.
        """
        if "draw" not in values:
            values = _with_draw(values)
        unknown = sorted(set(values) - set(ROW_FIELDS))
        missing = [name for name in ROW_FIELDS if name not in values]
        if unknown or missing:
            raise ValueError(
                f"A row has the columns {list(ROW_FIELDS)}; unknown: {unknown}, missing: {missing}."
            )
        return cls(**values)


def site_text(component: str | None, layer: Any, head: Any, position: Any) -> str:
    """component[layer].head[k] @ position, without what is None."""
    text = str(component)
    if layer is not None:
        text += f"[{layer}]"
    if head is not None:
        # Several heads are a list, which is printed without its own brackets.
        text += f".head[{str(head).strip('[]')}]"
    return text if position is None else f"{text} @ {position}"


ROW_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Row))

# In the first schema, how the name of a control with draws began → the control.
_FIRST_SCHEMA = {
    "random_subspace/": "random_subspace",
    "read_part/random_subspace/": "read_part/random_subspace",
    "seed/": "seeds",
    "rank/": "lower_rank",
    "rival/": "rival",
    "off_target/": "off_target",
}


def _with_draw(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the first schema, with its draw in a column of its own."""
    row = dict(values) | {"draw": None}
    control = row.get("control") or ""
    for start, name in _FIRST_SCHEMA.items():
        if control.startswith(start):
            draw = control.removeprefix(start)
            row["control"] = name
            row["draw"] = int(draw) if draw.isdecimal() else draw
    method, _, strength = (row.get("method") or "").partition(", strength ")
    if strength:
        row["method"] = method
        row["draw"] = float(strength)
    return row
