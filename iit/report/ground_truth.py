"""Methods on networks whose true subspaces are known: accuracy, distance from the truth, verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.markup import escape
from rich.table import Table

from iit.result import Row

DISTANCES = {
    "principal_angle": "largest angle to the truth (°)",
    "found_in_truth": "of what is found to the truth (°)",
    "projection_distance": "distance of projections",
}
HEADER = ("case", "method", "IIA, changing pairs", *DISTANCES.values(), "rank", "verdict", "fails, open")
REASONS = ("case", "method", "criterion", "outcome", "why")
# Okabe and Ito's colours; methods have a marker each.
COLOURS = {"pass": "#009E73", "open": "#E69F00", "fail": "#D55E00"}
MARKERS = "osD^vPX*<>hp"
NOWHERE = 1.2
"""Where what has no distance stands."""


def is_ground_truth(facts: Mapping[str, Any]) -> bool:
    """Whether a run compared methods with the truth."""
    return "verdicts" in facts


def pooled(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[Row, dict[str, Row]]]:
    """(case, method) → (test IIA over seeds on changing pairs, {metric: how far from the truth, if there is a truth})."""
    iia, distances = {}, {}
    for row in rows:
        key = (str(row.network), str(row.method))
        if (row.seed, row.control, row.metric, row.subset) == (None, None, "iia", "changing"):
            iia[key] = row
        if row.control == "truth":
            distances.setdefault(key, {})[row.metric] = row
    return {key: (row, distances.get(key, {})) for key, row in iia.items()}


def ground_truth_lines(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each case and method."""
    lines = []
    for (case, method), (iia, distances) in pooled(rows).items():
        judged = verdicts[f"{case}/{method}"]
        reasons = [
            ", ".join(f["criterion"] for f in judged["findings"] if f["outcome"] == outcome) for outcome in ("fail", "open")
        ]
        lines.append(
            (
                case,
                method,
                f"{iia.value:.3f} ({iia.low:.3f} to {iia.high:.3f})",
                *(_distance(distances, metric) for metric in DISTANCES),
                "—" if iia.rank is None else str(iia.rank),
                judged["outcome"],
                "; ".join(text if number == 0 else f"open: {text}" for number, text in enumerate(reasons) if text) or "—",
            )
        )
    return lines


def _distance(distances: Mapping[str, Row], metric: str) -> str:
    """A figure with its range, and what it is where natural activations vary and in what is read."""
    row = distances.get(metric)
    if row is None:
        return "—"
    value, low, high = (f"{round(number, 2):g}" for number in (row.value, row.low, row.high))
    text = f"{value} ({low} to {high})"
    for space in ("natural", "read"):
        other = distances.get(f"{metric}/{space}")
        text += f"; {space} {round(other.value, 2):g}" if other else ""
    return text


def ground_truth_reasons(verdicts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each criterion that did not pass: case, method, criterion, outcome, and why."""
    return [
        (*name.split("/"), found["criterion"], found["outcome"], found["reason"])
        for name, judged in verdicts.items()
        for found in judged["findings"]
        if found["outcome"] != "pass"
    ]


def ground_truth_table(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> Table:
    """For the terminal."""
    table = Table(*HEADER, title="Methods where the truth is known")
    for line in ground_truth_lines(rows, verdicts):
        table.add_row(*map(escape, line))
    return table


def ground_truth_figure(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> Figure:
    """A panel for each case: test IIA against the distance from the truth; a marker for each method, coloured by the verdict. What has
    no distance (nothing is true, or the method has no linear subspace) stands at the right."""
    found = pooled(rows)
    cases = list(dict.fromkeys(case for case, _ in found))
    n_columns = min(4, len(cases))
    n_rows = -(-len(cases) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 3.1 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).flatten()
    methods = list(dict.fromkeys(method for _, method in found))
    for axes, case in zip(panels, cases, strict=False):
        for (here, method), (iia, distances) in found.items():
            if here == case:
                distance = distances.get("projection_distance")
                x = NOWHERE if distance is None else distance.value
                marker, colour = MARKERS[methods.index(method) % len(MARKERS)], COLOURS[verdicts[f"{case}/{method}"]["outcome"]]
                reach = [[iia.value - iia.low], [iia.high - iia.value]]
                axes.errorbar(x, iia.value, reach, marker=marker, color=colour, capsize=2, alpha=0.8)
        axes.set(title=case.replace("_", " "), xlim=(-0.06, NOWHERE + 0.1), ylim=(-0.05, 1.05))
        axes.set_xticks([0, 0.5, 1, NOWHERE], ["0", "0.5", "1", "none"])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(cases) :]:
        axes.set_visible(False)
    for axes in panels[::n_columns]:
        axes.set_ylabel("test IIA, changing pairs")
    for axes in panels[-n_columns:]:
        axes.set_xlabel("distance of projections from the truth")
    handles = [
        Line2D([], [], marker=MARKERS[n % len(MARKERS)], color="0.3", linestyle="", label=m) for n, m in enumerate(methods)
    ]
    handles += [Line2D([], [], marker="s", color=colour, linestyle="", label=outcome) for outcome, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure
