"""The verdict on an alignment, criterion by criterion. It reads rows and nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

from iit.evaluation.trust import higher_is_better, thresholds_with
from iit.result import Cell, Interval, Row, where
from iit.result.table import Shown, Table
from iit.result.verdict_table import verdict_table
from iit.result.vocabulary import KIND, NULLS

RULINGS = ("pass", "open", "fail")
"""What a criterion comes to, from good to bad."""
NEEDS = {
    "faithfulness": "the alignment declares nothing inert, or all pairs have one base",
    "cut": (
        "only where pairs have the source's own answer for their label, or the site "
        "holds every token"
    ),
    "excess_rank": (
        "only with trust=full, for one variable's linear subspace of more dimensions than its "
        "values less one"
    ),
    "abstraction": (
        "only with trust=full, where a causal model has variables of few values and the "
        "network is small"
    ),
    "wrong_site": (
        "only with trust=full, and only a site that sees no token that the variable depends on"
    ),
}
"""Why a criterion may be missing, where the alignment or the network can be the reason."""
SIDES = {"abstraction_error/up": "network", "abstraction_error/down": "causal model"}
"""The metrics of the causal abstraction error, and where their interventions come from."""
LEAST = 20
"""The fewest pairs with which a figure is judged."""
Reading = tuple[Row | Interval, str] | None
"""A figure and what it is in words; None where the rows do not hold it."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one criterion.

    outcome: "pass" where the whole interval passes, "fail" where the whole interval fails, "open"
        in between; "not judged" where the figure has fewer than 20 pairs.
        `same_subspace` is judged all the same: its n counts pairs of trainings.
    value, low, high, n: the figure, its 95% interval, and the pairs behind it.
    reason: the outcome in words, with the figures that were compared.
    """

    criterion: str
    outcome: str
    value: float
    low: float
    high: float
    n: int
    reason: str


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """The conclusion from the test rows of one variable.

    outcome: the worst of the findings that are judged; at best "open" where the accuracy is not
        judged.
    not_run: criteria and controls of which the rows hold nothing.
    cannot_fail: null controls that tell nothing, because nothing could have made them right. The
        criterion `selectivity` could not fail beside them, so they do not count in it.
    """

    variable: str
    outcome: str
    findings: tuple[Finding, ...]
    not_run: tuple[str, ...]
    cannot_fail: tuple[str, ...]

    def as_table(self) -> Table:
        """A line for each criterion that does not pass."""
        return verdict_table(self.to_dict(), brief=True)

    def to_dict(self) -> dict[str, Any]:
        """The verdict as nested dicts, for JSON."""
        return asdict(self)

    def line(self) -> str:
        """One line: the outcome, what does not pass and why, and the caption of the table."""
        table, n = self.as_table(), len(self.findings)
        parts = [table.title, f"{n - len(table.lines)} of {n} criteria pass"]
        parts += map("{0[0]} ({0[1]}): {0[2]}".format, table.lines)
        return f"{'; '.join(parts)}. {table.caption}"


class Verdicts(list[Verdict]):
    """Verdicts, which a notebook shows one below the other."""

    def _repr_html_(self) -> str:
        return "".join(map(Verdict._repr_html_, self))


def verdict(
    rows: Sequence[Row], thresholds: Mapping[str, Any] | None = None, metric: str = "iia"
) -> Verdicts:
    """A verdict for each variable that test rows score by itself.

    Where no variable is scored by itself, there is a verdict for each set of variables that are
    interchanged together.

    Intervals decide: a criterion passes where its whole interval passes, fails where its whole
    interval fails, and is open in between. Differences on the same pairs have a paired interval.
    Other differences (training against test pairs, one seed against another) have Newcombe's, from
    the intervals of both figures.

    The criteria, each a figure on test pairs:

    - task: the share of prompts that the network answers.
    - accuracy: IIA on changing pairs (on all pairs where none is changing).
    - isolation: IIA on pairs whose answer should stay.
    - selectivity: accuracy − the best of those `NULLS` that can fail.
    - placebo: accuracy − the better of two placebos (see `placebos`).
    - cut: the share of pairs to which the sites' whole vectors give the source's own answer. By
      default it never fails.
    - beyond_pca: accuracy − that of principal components of equal rank. Where this is not above 0,
      training has found nothing that variance does not show.
    - generalisation: accuracy on training pairs − accuracy on test pairs.
    - worst_kind: the lowest IIA of a kind of pair.
    - faithfulness: accuracy − the same with the inert parts resampled from a third input
      (arXiv 2607.00267).
    - abstraction: the larger of the two causal abstraction errors, which are of all variables
      together (see `abstraction_error`).
    - off_target: the accuracy of this variable's edit where another variable is to be swapped.
    - seed_spread: highest − lowest accuracy among seeds.
    - same_subspace: the mean principal angle between the subspaces of different seeds, as a share
      of the 2.5% quantile of what random subspaces have.
    - excess_rank: accuracy − that of the rank that the variable's values need (see `lower_ranks`).
    - illusion: accuracy − that of the part of the subspace that the network reads behind the sites
      (arXiv 2311.17030).
    - divergence: the share of pairs whose edited activation is farther from natural ones than 95%
      of the unedited ones are (arXiv 2511.04638).

    Arguments:
        rows: of any splits; the verdict picks those that it needs.
        thresholds: criterion → (bound of passing, bound of failing), in place of those of
            `THRESHOLDS`. A criterion whose higher figures are better has the larger number first.
        metric: that of the run's score (`Score.metric`), which criteria read in place of IIA. The
            criteria `off_target` and `cut` read tokens all the same.

    Raises:
        ValueError: for thresholds that `thresholds_with` refuses, and for rows of several cells.
    """
    limits = thresholds_with(thresholds or {})
    accuracies = where(rows, split="test", control=None, metric=metric, subset="all")
    scored = dict.fromkeys(row.variable for row in accuracies if row.variable is not None)
    cells = set(map(Cell.of, accuracies))
    if len(cells) > len({cell.variable for cell in cells}):
        raise ValueError(
            f"A verdict is of one alignment; these rows are of {len(cells)} cells. Give the rows "
            "of one, by iit.result.Cell.of(row)."
        )
    # "a+b" are variables that are interchanged together.
    alone = [variable for variable in scored if "+" not in variable]
    return Verdicts(
        _judged(variable, _VariableRows(rows, variable, metric), limits)
        for variable in alone or scored
    )


class _VariableRows:
    """The rows that bear on one variable, or on variables that are interchanged together."""

    def __init__(self, rows: Sequence[Row], variable: str, metric: str):
        self.metric = metric
        self.rows = [
            row for row in rows if row.variable == variable or row.metric == "task_accuracy"
        ]
        test = where(rows, split="test")
        members = set(variable.split("+"))
        # The abstraction error is of all variables of an alignment at once.
        self.abstraction: list[Row] = []
        for metric in SIDES:
            for row in where(test, metric=metric):
                if members <= set(str(row.variable).split("+")):
                    self.abstraction.append(row)
        # These rows are another variable's: its label, with this variable's edit.
        self.off_target = where(test, control="off_target", draw=variable)
        self.subset = "changing"
        if self.row() is None:
            self.subset = "all"

    def row(self, control: str | None = None, metric: str = "iia", **columns: Any) -> Row | None:
        """The row of a figure, on changing pairs by default (on all where none is changing)."""
        columns = {"subset": self.subset, "split": "test", "draw": None} | columns
        # In place of IIA, and of its differences, stand those of the score.
        metric = metric.replace("iia", self.metric)
        rows = where(self.rows, control=control, metric=metric, **columns)
        return rows[0] if rows else None

    def cannot_fail(self) -> list[str]:
        """Null controls whose 0 on changing pairs says nothing: they could not be right there.

        Such a control is right on no unchanging pair either. `no_intervention` also is one where it
        is right on all of them: a network that gives every base its own answer is wrong on every
        changing pair.
        """
        names = []
        for name in NULLS:
            moves, stays = self.row(name), self.row(name, subset="unchanging")
            uninformative = (0, 1) if name == "no_intervention" else (0,)
            if moves is None or stays is None or stays.n < LEAST:
                continue
            if moves.value == 0 and stays.value in uninformative:
                names.append(name)
        return names


def _judged(
    variable: str, rows: _VariableRows, limits: Mapping[str, tuple[float, float]]
) -> Verdict:
    findings: list[Finding] = []
    not_run: list[str] = []
    worst = RULINGS[0]
    for criterion, read in CRITERIA.items():
        reading = read(rows)
        if reading is None:
            not_run.append(criterion)
            continue
        figure, reason = reading
        reason = reason.replace("IIA", rows.metric.upper())
        outcome = _outcome(criterion, figure, limits[criterion])
        findings.append(
            Finding(criterion, outcome, figure.value, figure.low, figure.high, figure.n, reason)
        )
        if outcome == "not judged":
            # Without enough pairs for the accuracy there is no pass; other criteria are skipped.
            outcome = "open" if criterion == "accuracy" else "pass"
        worst = max(worst, outcome, key=RULINGS.index)
    # Null controls that were not scored are named, too.
    not_run += [control for control in NULLS if rows.row(control) is None]
    for number, name in enumerate(not_run):
        if name in NEEDS:
            not_run[number] = f"{name} ({NEEDS[name]})"
    return Verdict(variable, worst, tuple(findings), tuple(not_run), tuple(rows.cannot_fail()))


def _outcome(criterion: str, figure: Row | Interval, limits: tuple[float, float]) -> str:
    if figure.n < LEAST and criterion != "same_subspace":  # whose n counts pairs of trainings
        return "not judged"
    # With this sign, larger figures are better for every criterion.
    sign = 1 if higher_is_better(criterion) else -1
    good, bad = sign * limits[0], sign * limits[1]
    # The sign may have swapped the interval's ends.
    worst, best = sorted((sign * figure.low, sign * figure.high))
    if worst >= good:
        return "pass"
    return "fail" if best < bad else "open"


def _gap(one: Row | None, other: Row | None, paired: Row | None, words: str) -> Reading:
    """The difference one − other, as the paired row has it, else with Newcombe's interval.

    Newcombe's interval is made from the intervals of both figures. It takes the figures as
    independent, which makes it too wide for figures on the same pairs.

    References:
        Newcombe 1998, Statistics in Medicine 17, 873.
    """
    if one is None or other is None:
        return None
    value = one.value - other.value
    low = value - hypot(one.value - one.low, other.high - other.value)
    high = value + hypot(one.high - one.value, other.value - other.low)
    # The paired interval is of the same pairs, so it is the better one.
    figure = paired or Interval(value, low, high, min(one.n, other.n))
    return figure, f"{words.format(one.value, other.value)}: {_in_words(figure)}"


def _stated(metric: str, words: str, **columns: Any) -> Callable[[_VariableRows], Reading]:
    """Read a figure of the alignment itself; `words` have a place for the figure."""

    def read(rows: _VariableRows) -> Reading:
        row = rows.row(metric=metric, **columns)
        return row and (row, words.format(_in_words(row), row.subset))

    return read


def _above_best(rows: _VariableRows, names: Sequence[str]) -> Reading:
    controls = list(filter(None, map(rows.row, names)))
    if not controls:
        return None
    best = str(max(controls, key=_value).control)
    return _above(best, f"of the best control, {best}")(rows)


def _above(control: str, words: str) -> Callable[[_VariableRows], Reading]:
    """Read how far the alignment is above a control."""

    def read(rows: _VariableRows) -> Reading:
        paired = rows.row(control, "iia_difference")
        return _gap(rows.row(), rows.row(control), paired, "{:.3f} against {:.3f} " + words)

    return read


def _worst_kind(rows: _VariableRows) -> Reading:
    alignment_rows = where(rows.rows, split="test", control=None, metric=rows.metric)
    kinds = [row for row in alignment_rows if row.subset.startswith(KIND) and row.n >= LEAST]
    if not kinds:
        return None
    worst = min(kinds, key=_value)
    return (
        worst,
        f"IIA {_in_words(worst)} on pairs that differ in {worst.subset.removeprefix(KIND)}",
    )


def _abstraction(rows: _VariableRows) -> Reading:
    if not rows.abstraction:
        return None
    phrases = [f"{_in_words(row)} from the {SIDES[row.metric]}" for row in rows.abstraction]
    worst = max(rows.abstraction, key=_value)
    return worst, f"causal model and network differ, under interventions {' and '.join(phrases)}"


def _off_target(rows: _VariableRows) -> Reading:
    changing = where(rows.off_target, subset="changing")
    if not changing:
        return None
    # A few pairs, which are not judged, do not hide another variable's many.
    worst = max(changing, key=lambda row: (row.n >= LEAST, row.value))
    words = f"this edit gives the label of {worst.variable}'s interchange on {_in_words(worst)}"
    return worst, f"{words} of its changing pairs"


def _excess_rank(rows: _VariableRows) -> Reading:
    least = _above("least_rank", "with as many dimensions as the variable has values, less one")
    reading = least(rows)
    if reading is None:
        return None
    figure, words = reading
    # Also say what the ranks in between reach.
    ranks = {int(row.draw or 0) for row in where(rows.rows, control="lower_rank")}
    for rank in sorted(ranks):
        row = rows.row("lower_rank", draw=rank)
        if row:
            words += f"; rank {rank} reaches {row.value:.3f}"
    return figure, words


def _seed_spread(rows: _VariableRows) -> Reading:
    scores = where(rows.rows, split="test", subset=rows.subset, metric=rows.metric)
    # The alignment itself is one of the seeds; the row without a draw averages them.
    trained = where(scores, control=None)
    trained += [row for row in where(scores, control="seeds") if row.draw is not None]
    if len(trained) < 2:
        return None
    trained.sort(key=_value)
    words = f"{len(trained)} trainings reach {{1:.3f}} to {{0:.3f}}"
    return _gap(trained[-1], trained[0], None, words)


def _same_subspace(rows: _VariableRows) -> Reading:
    row = rows.row("seeds", "principal_angle", subset="all")
    null = rows.row("random_subspace", "principal_angle", subset="all")
    if row is None or null is None:
        return None
    # 1 means: as far apart as the closest 2.5% of random subspaces.
    unit = null.low
    share = Interval(row.value / unit, row.low / unit, row.high / unit, row.n)
    return share, (
        f"subspaces of different seeds are {_apart(row)}, random ones of this rank {_apart(null)}"
    )


def _apart(row: Row) -> str:
    return f"{row.value:.0f}° apart on average ({row.low:.0f}° to {row.high:.0f}°)"


def _value(row: Row) -> float:
    return row.value


def _in_words(figure: Row | Interval) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}, n = {figure.n})"


CRITERIA: Mapping[str, Callable[[_VariableRows], Reading]] = {
    "task": _stated("task_accuracy", "the network answers {} of the prompts", subset="all"),
    "accuracy": _stated("iia", "IIA {} on {} pairs"),
    "isolation": _stated("iia", "IIA {} on pairs whose answer should stay", subset="unchanging"),
    "selectivity": lambda rows: _above_best(rows, sorted({*NULLS} - {*rows.cannot_fail()})),
    "placebo": lambda rows: _above_best(rows, ("placebo_direction", "placebo_pair")),
    "cut": _stated(
        "cut", "all that the sites hold gives the source's own answer on {}", subset="all"
    ),
    "beyond_pca": _above("pca_subspace", "of principal components of equal rank"),
    "generalisation": lambda rows: _gap(
        rows.row(split="train"), rows.row(), None, "{:.3f} on training pairs, {:.3f} on test pairs"
    ),
    "worst_kind": _worst_kind,
    "faithfulness": _above("inert_resampled", "with the inert parts from a third input"),
    "abstraction": _abstraction,
    "off_target": _off_target,
    "seed_spread": _seed_spread,
    "same_subspace": _same_subspace,
    "excess_rank": _excess_rank,
    "illusion": _above("read_part", "of the part that downstream reads"),
    "divergence": _stated(
        "divergence",
        "{} of the edited activations are farther from natural ones than 95% of the unedited",
    ),
}
