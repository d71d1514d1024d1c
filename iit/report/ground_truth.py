"""Methods on networks whose true subspaces are known: accuracy, angle to the truth, verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from iit.result import Row

HEADER = ("case", "method", "IIA, changing pairs", "largest angle to the truth", "rank", "verdict", "fails, warns")
# Okabe and Ito's colours, and a marker each: told apart by colour-blind eyes and in print.
MARKS = {"pass": ("o", "#009E73"), "warn": ("^", "#E69F00"), "fail": ("X", "#D55E00")}


def is_ground_truth(facts: Mapping[str, Any]) -> bool:
    """Whether a run compared methods with the truth."""
    return "verdicts" in facts


def pooled(rows: Sequence[Row]) -> dict[tuple[str, str], tuple[Row, Row | None]]:
    """(case, method) → (test IIA over seeds on changing pairs, the angle to the truth, if there is a truth)."""
    iia, angle = {}, {}
    for row in rows:
        key = (str(row.network), str(row.method))
        if (row.seed, row.control, row.metric, row.subset) == (None, None, "iia", "changing"):
            iia[key] = row
        if (row.control, row.metric) == ("truth", "principal_angle"):
            angle[key] = row
    return {key: (row, angle.get(key)) for key, row in iia.items()}


def ground_truth_lines(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each case and method."""
    lines = []
    for (case, method), (iia, angle) in pooled(rows).items():
        judged = verdicts[f"{case}/{method}"]
        reasons = [
            ", ".join(f["criterion"] for f in judged["findings"] if f["outcome"] == outcome) for outcome in ("fail", "warn")
        ]
        lines.append(
            (
                case,
                method,
                f"{iia.value:.3f} ({iia.low:.3f} to {iia.high:.3f})",
                "—" if angle is None else f"{angle.value:.0f}° ({angle.low:.0f}° to {angle.high:.0f}°)",
                "—" if iia.rank is None else str(iia.rank),
                judged["outcome"],
                "; ".join(text if number == 0 else f"warns: {text}" for number, text in enumerate(reasons) if text) or "—",
            )
        )
    return lines


def ground_truth_table(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> Table:
    """For the terminal."""
    table = Table(*HEADER, title="Methods where the truth is known")
    for line in ground_truth_lines(rows, verdicts):
        table.add_row(*map(escape, line))
    return table


def ground_truth_figure(rows: Sequence[Row], verdicts: Mapping[str, Any]) -> Figure:
    """A panel for each case: test IIA against the largest angle to the truth, a mark for each method, its shape and colour the verdict's.
    Where no subspace is true, methods stand at 90°."""
    found = pooled(rows)
    cases = list(dict.fromkeys(case for case, _ in found))
    n_columns = min(4, len(cases))
    n_rows = -(-len(cases) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns, 3.1 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, case in zip(panels, cases, strict=False):
        has_truth = any(angle is not None for (here, _), (_, angle) in found.items() if here == case)
        for number, ((here, method), (iia, angle)) in enumerate(found.items()):
            if here != case:
                continue
            marker, colour = MARKS[verdicts[f"{case}/{method}"]["outcome"]]
            x = 90.0 if angle is None else angle.value
            axes.errorbar(x, iia.value, [[iia.value - iia.low], [iia.high - iia.value]], marker=marker, color=colour, capsize=2)
            up = 6 if number % 2 else -9
            axes.annotate(method, (x, iia.value), textcoords="offset points", xytext=(-4, up), ha="right", fontsize=6.5)
        axes.set(title=case.replace("_", " ") + ("" if has_truth else "\n(no true subspace)"), xlim=(-25, 97), ylim=(-0.05, 1.08))
        axes.set_xticks([0, 30, 60, 90])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(cases) :]:
        axes.set_visible(False)
    for axes in panels[::n_columns]:
        axes.set_ylabel("test IIA, changing pairs")
    for axes in panels[-n_columns:]:
        axes.set_xlabel("largest angle to the truth (°)")
    for outcome, (marker, colour) in MARKS.items():
        panels[0].plot([], [], marker=marker, color=colour, linestyle="", label=outcome)
    panels[0].legend(frameon=False, title="verdict", fontsize=7, title_fontsize=7, loc="lower left")
    return figure
