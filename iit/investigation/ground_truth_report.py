"""What is shown of methods where the truth is known: accuracy, distance from it, verdict."""

from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from typing import Any

from matplotlib.lines import Line2D

from iit.result import Row, where
from iit.result.figure import Figure
from iit.result.maps import styled
from iit.result.table import Table, with_interval

# Metric of `distances` → the header of its column.
DISTANCES = {
    "principal_angle": "largest angle to the truth (°)",
    "found_in_truth": "of what is found to the truth (°)",
    "projection_distance": "distance of projections",
}
HEADER = (
    "case",
    "method",
    "IIA, changing pairs",
    *DISTANCES.values(),
    "rank",
    "verdict",
    "fails, open",
)
REASONS = ("case", "method", "criterion", "outcome", "why")
# Okabe and Ito's colours, which colour-blind readers can tell apart. Methods differ in markers.
COLOURS = {"pass": "#009E73", "open": "#E69F00", "fail": "#D55E00"}
MARKERS = "osD^vPX*<>hp"
NOWHERE = 1.2
"""The place on the x axis of what has no distance. The distance of projections is at most 1."""


def pooled(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[Row, dict[str, Row]]]:
    """The test IIA of each case and method, and the distances of its subspaces from the truth.

    Returns:
        {(case, method): (row, {metric: row})}. The first row is IIA on changing pairs, over seeds.
        The others are distances; there are none without a true or without a linear subspace.
    """
    distances: dict[Any, dict[str, Row]] = {}
    for row in where(rows, control="truth"):
        distances.setdefault((row.network, row.method), {})[row.metric] = row
    figures = {}
    # Only pooled rows have no seed.
    for row in where(rows, seed=None, control=None, metric="iia", subset="changing"):
        key = str(row.network), str(row.method)
        figures[key] = row, distances.get(key, {})
    return figures


def ground_truth_tables(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> list[Table]:
    """Two tables: a line for each case and method, and one for each criterion that does not pass.

    The second is for the page only, and says why.

    Arguments:
        verdicts: {"CASE/METHOD": the verdict as a dict}.
    """
    lines = []
    for (case, method), (iia, distances) in pooled(rows).items():
        verdict = verdicts[f"{case}/{method}"]
        failed, unsure = _criteria(verdict, "fail"), _criteria(verdict, "open")
        lines.append(
            (
                case,
                method,
                with_interval(iia),
                *(_distance(distances, metric) for metric in DISTANCES),
                "—" if iia.rank is None else str(iia.rank),
                verdict["outcome"],
                "; ".join(filter(None, [failed, unsure and f"open: {unsure}"])) or "—",
            )
        )
    reasons = []
    for name, verdict in sorted(verdicts.items()):
        for finding in verdict["findings"]:
            if finding["outcome"] != "pass":
                why = finding["criterion"], finding["outcome"], finding["reason"]
                reasons.append((*name.split("/"), *why))
    # A page shows the second table folded: its title opens the HTML element, its caption closes it.
    summary = "<details><summary>Why: each criterion that does not pass</summary>"
    return [
        Table("Methods where the truth is known", HEADER, lines, n_words=2),
        Table(summary, REASONS, reasons, "</details>", n_words=len(REASONS), page_only=True),
    ]


def _criteria(verdict: Mapping[str, Any], outcome: str) -> str:
    """The names of the criteria with this outcome."""
    findings = verdict["findings"]
    return ", ".join(f["criterion"] for f in findings if f["outcome"] == outcome)


def _distance(distances: Mapping[str, Row], metric: str) -> str:
    """A distance with its range over seeds, and its values in the natural and in the read space."""
    row = distances.get(metric)
    if row is None:
        return "—"
    text = f"{_rounded(row.value)} ({_rounded(row.low)} to {_rounded(row.high)})"
    for space in ("natural", "read"):
        other = distances.get(f"{metric}/{space}")
        if other:
            text += f"; {space} {_rounded(other.value)}"
    return text


def _rounded(number: float) -> str:
    return f"{round(number, 2):g}"


@styled
def ground_truth_figure(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> Figure:
    """A panel for each case: test IIA against the distance from the truth.

    Each method has its marker, coloured by the verdict. A method without a distance stands at the
    right: the claim is not true of the network, or the method has no linear subspace.
    """
    figures = pooled(rows)
    cases_of_figures, methods = zip(*figures, strict=True)
    cases = list(dict.fromkeys(cases_of_figures))
    markers = dict(zip(dict.fromkeys(methods), cycle(MARKERS), strict=False))
    n_columns = min(4, len(cases))
    # Rounded up.
    n_rows = -(-len(cases) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 3.1 * n_rows))
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).flatten()
    for (case, method), (iia, distances) in figures.items():
        distance = distances.get("projection_distance")
        x = NOWHERE if distance is None else distance.value
        # How far the interval reaches below and above the value, as matplotlib takes it.
        reach = [[iia.value - iia.low], [iia.high - iia.value]]
        colour = COLOURS[verdicts[f"{case}/{method}"]["outcome"]]
        style = {"marker": markers[method], "color": colour, "alpha": 0.8}
        panels[cases.index(case)].errorbar(x, iia.value, reach, **style)
    for axes, case in zip_longest(panels, cases):
        # A panel behind the last case stays empty.
        if case is None:
            axes.set_visible(False)
            continue
        axes.set(title=case.replace("_", " "), xlim=(-0.06, NOWHERE + 0.1), ylim=(-0.05, 1.05))
        axes.set_xticks([0, 0.5, 1, NOWHERE], ["0", "0.5", "1", "none"])
    for axes in panels[::n_columns]:
        axes.set_ylabel("test IIA, changing pairs")
    for axes in panels[-n_columns:]:
        axes.set_xlabel("distance of projections from the truth")
    # {name: (marker, colour)}, the methods before the outcomes.
    styles = {method: (marker, "0.3") for method, marker in markers.items()}
    styles |= {outcome: ("s", colour) for outcome, colour in COLOURS.items()}
    handles = []
    for name, (marker, colour) in styles.items():
        handles.append(Line2D([], [], marker=marker, color=colour, linestyle="", label=name))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure
