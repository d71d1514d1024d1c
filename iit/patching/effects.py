"""The result of a map: what editing each cell does, pair by pair."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from iit.patching.grid import MapCell
from iit.patching.metric import METRICS, NORMALISED, SHARE_METRICS, Figures
from iit.result import Cell, Interval, Row, clustered_interval
from iit.result.table import Table, to_pandas, with_interval

TableLines = list[dict[str, Any]]
"""The lines of a table, as {column: value}."""


@final
@dataclass(frozen=True, eq=False)
class Effects:
    """What editing each cell gives, pair by pair.

    cells: in order.
    values: metric → float[cell, pair]; NaN where a pair has no value.
    unedited, source: metric → float[pair], of the runs without an edit.
    clusters: int[pair], which pairs share a base, or a case where the pairs know it.
    method: what was done, as rows call it.
    controls: what rows call the runs without an edit: the unedited one, then the source's.
    labels: position → an example of its token, for axes.
    """

    cells: tuple[MapCell, ...]
    values: Figures
    unedited: Figures
    source: Figures
    clusters: np.ndarray
    method: str
    controls: tuple[str, ...] = ("no_intervention",)
    labels: Mapping[Any, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        metric = next(iter(self.values))
        lines = []
        # Where no pair has a value, no cell is shown.
        with suppress(ValueError):
            for number in self.top(10, metric):
                figure = self.interval(number, metric)
                lines.append((f"{self.cells[number]}", with_interval(figure), f"{figure.n}"))
        title = f"{metric}, {self.method}: {len(lines)} of {len(self)} cells, the strongest first"
        return Table(title, ("cell", "value (95% interval)", "n"), lines).text()

    def _repr_png_(self) -> bytes:
        from iit.result import maps  # takes matplotlib, which nothing else here needs

        return maps.heatmap(self)._repr_png_()

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` of the `table`."""
        return to_pandas(self.table())

    def of(self, metric: str) -> np.ndarray:
        """The figures of a metric, float[cell, pair].

        normalised = (edited − unedited) / (mean of the source's − mean of the unedited)

        A `normalised_` metric is 0 where an edit does nothing and 1, on average, where it does all
        that the source does.

        Raises:
            ValueError: for a metric that was not measured, and where source and base do not differ.
        """
        if metric not in self.values:
            raise ValueError(f"{metric!r} was not measured; there are {list(self.values)}.")
        if not metric.startswith(NORMALISED):
            return self.values[metric]
        before, after = self.unedited[metric], self.source[metric]
        whole = np.nanmean(after) - np.nanmean(before)
        if abs(whole) < 1e-9:
            raise ValueError(
                f"{metric} has no scale: bases and sources have the same mean, "
                f"{np.nanmean(before):g}."
            )
        return (self.values[metric] - before) / whole

    def interval(self, cell: int, metric: str) -> Interval:
        """The mean over the pairs that have a value, with its clustered interval."""
        return self._interval(metric, self.of(metric)[cell])

    def _interval(self, metric: str, values: np.ndarray) -> Interval:
        has_value = ~np.isnan(values)
        if not has_value.any():
            raise ValueError(
                f"No pair has a value of {metric}: the logit difference, for one, needs each "
                "base's own answer."
            )
        # A user's function that gives nothing but 0 and 1 counts as a share. A share's interval
        # stays between 0 and 1, also where all values are alike.
        is_custom = metric.removeprefix(NORMALISED) not in METRICS
        bounded = metric in SHARE_METRICS
        if is_custom:
            bounded = bool(np.isin(values[has_value], (0.0, 1.0)).all())
        return clustered_interval(values[has_value], self.clusters[has_value], bounded=bounded)

    def mean(self, metric: str) -> np.ndarray:
        """The mean over pairs that have a value, float[cell]."""
        return np.nanmean(self.of(metric), 1)

    def baseline(self, metric: str) -> float:
        """The mean where an edit does nothing.

        It is 0 of a normalised metric, else that of the unedited runs.

        Raises:
            ValueError: as `of` does.
        """
        self.of(metric)  # refuses what it cannot give
        return 0.0 if metric.startswith(NORMALISED) else float(np.nanmean(self.unedited[metric]))

    def table(self) -> TableLines:
        """A line for each cell and metric.

        Columns: component, layer, head, position, unit, method, metric, value, low, high, n.
        """
        lines = []
        for metric in self.values:
            for cell, values in zip(self.cells, self.of(metric), strict=True):
                line = cell.site.coordinates() | {"unit": cell.unit}
                line |= {"method": self.method, "metric": metric}
                lines.append(line | self._interval(metric, values)._asdict())
        return lines

    def rows(self, **facts: Any) -> list[Row]:
        """The effects as rows of `metrics.json`, on changing pairs.

        Runs without an edit have the `controls`.

        facts: experiment, network, task, variable, split, seed. A unit stands in the method:
            `VanillaIntervention[12]`.
        """
        # A run without an edit is of no site.
        common: dict[str, Any] = dict.fromkeys((*Cell._fields, "control"))
        common |= {"subset": "changing"} | facts
        rows = []
        for control, run in zip(self.controls, (self.unedited, self.source), strict=False):
            for metric, values in run.items():
                if not metric.startswith(NORMALISED):
                    line = common | {"control": control, "metric": metric}
                    rows.append(Row(**line, **self._interval(metric, values)._asdict()))
        for line in self.table():
            unit = line.pop("unit")
            if unit is not None:
                line["method"] += f"[{unit}]"
            rows.append(Row(**common | line))
        return rows

    def top(self, n: int, metric: str) -> list[int]:
        """The cells that change the metric most, in either direction, the largest first."""
        change = np.abs(self.mean(metric) - self.baseline(metric))
        return [int(i) for i in np.argsort(-change, kind="stable")[:n]]
