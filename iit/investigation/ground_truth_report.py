"""Methods on networks whose true subspaces are known: accuracy, distance from the truth,
verdict.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iit.report.table import Table, with_interval
from iit.result import Row, where

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
# Okabe and Ito's colours; methods have a marker each.
COLOURS = {"pass": "#009E73", "open": "#E69F00", "fail": "#D55E00"}
MARKERS = "osD^vPX*<>hp"
NOWHERE = 1.2
"""Where what has no distance stands."""


def pooled(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[Row, dict[str, Row]]]:
    """(case, method) → (test IIA over seeds on changing pairs, {metric: how far from the truth, if
    there is a truth}).
    """
    distances: dict[Any, dict[str, Row]] = {}
    for row in where(rows, control="truth"):
        distances.setdefault((row.network, row.method), {})[row.metric] = row
    found = {}
    for row in where(rows, seed=None, control=None, metric="iia", subset="changing"):
        key = str(row.network), str(row.method)
        found[key] = row, distances.get(key, {})
    return found


def ground_truth_tables(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> list[Table]:
    """A line for each case and method; and, for the page, each criterion that does not pass, and
    why.

    verdicts: CASE/METHOD → the verdict.
    """
    lines = []
    for (case, method), (iia, distances) in pooled(rows).items():
        verdict = verdicts[f"{case}/{method}"]
        failed, unsure = (_criteria(verdict, outcome) for outcome in ("fail", "open"))
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
    summary = "<details><summary>Why: each criterion that does not pass</summary>"
    return [
        Table("Methods where the truth is known", HEADER, lines, n_words=2),
        Table(summary, REASONS, reasons, "</details>", n_words=len(REASONS), page_only=True),
    ]


def _criteria(verdict: Mapping[str, Any], outcome: str) -> str:
    return ", ".join(
        finding["criterion"] for finding in verdict["findings"] if finding["outcome"] == outcome
    )


def _distance(distances: Mapping[str, Row], metric: str) -> str:
    """A figure with its range, and what it is where natural activations vary and in what is
    read.
    """
    row = distances.get(metric)
    if row is None:
        return "—"
    value, low, high = (f"{round(number, 2):g}" for number in (row.value, row.low, row.high))
    text = f"{value} ({low} to {high})"
    for space in ("natural", "read"):
        other = distances.get(f"{metric}/{space}")
        text += f"; {space} {round(other.value, 2):g}" if other else ""
    return text


def ground_truth_figure(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> Figure:
    """A panel for each case: test IIA against the distance from the truth; a marker for each
    method, coloured by the verdict.

    What has no distance (nothing is true, or the method has no linear subspace) stands at the
    right.
    """
    found = pooled(rows)
    cases = list(dict.fromkeys(case for case, _ in found))
    markers = dict(zip(dict.fromkeys(method for _, method in found), cycle(MARKERS), strict=False))
    n_columns = min(4, len(cases))
    n_rows = -(-len(cases) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 3.1 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).flatten()
    for (case, method), (iia, distances) in found.items():
        distance = distances.get("projection_distance")
        x = NOWHERE if distance is None else distance.value
        reach = [[iia.value - iia.low], [iia.high - iia.value]]
        style = {
            "marker": markers[method],
            "color": COLOURS[verdicts[f"{case}/{method}"]["outcome"]],
        }
        panels[cases.index(case)].errorbar(x, iia.value, reach, capsize=2, alpha=0.8, **style)
    for axes, case in zip_longest(panels, cases):
        if case is None:
            axes.set_visible(False)
            continue
        axes.set(title=case.replace("_", " "), xlim=(-0.06, NOWHERE + 0.1), ylim=(-0.05, 1.05))
        axes.set_xticks([0, 0.5, 1, NOWHERE], ["0", "0.5", "1", "none"])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[::n_columns]:
        axes.set_ylabel("test IIA, changing pairs")
    for axes in panels[-n_columns:]:
        axes.set_xlabel("distance of projections from the truth")
    handles = [
        Line2D([], [], marker=marker, color="0.3", linestyle="", label=method)
        for method, marker in markers.items()
    ]
    handles += [
        Line2D([], [], marker="s", color=colour, linestyle="", label=outcome)
        for outcome, colour in COLOURS.items()
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8
    )
    return figure
