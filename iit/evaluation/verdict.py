"""The verdict on an alignment: criterion by criterion, from its rows alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

from iit.evaluation.trust import thresholds_with
from iit.result import Interval, Row, where
from iit.result.vocabulary import KIND, NULLS, OFF_TARGET, RANK, pool_of

OUTCOMES = ("pass", "open", "fail")
NEEDS = {
    "faithfulness": "the alignment declares nothing inert, or all pairs have one base",
    "cut": (
        "only where pairs have the source's own answer for their label, or the site holds "
        "every token"
    ),
    "excess_rank": (
        "only with trust=full, for one variable's linear subspace of more dimensions "
        "than its values less one"
    ),
    "abstraction": (
        "only with trust=full, where a causal model has variables of few values and "
        "the network is small"
    ),
    "wrong_site": (
        "only with trust=full, and only a site that sees no token that the variable depends on"
    ),
}
"""Why a criterion was not read, where the alignment or the network may be the reason."""
LEAST = 20
"""A figure of fewer pairs is not judged."""
Reading = tuple[Row | Interval, str] | None
"""(the figure, what it is in words); None where the rows do not tell."""


@dataclass(frozen=True)
class Finding:
    """One criterion.

    outcome: pass where the whole interval passes, fail where the whole interval fails, open in
        between; not judged where the figure has fewer than 20 pairs.
    value, low, high, n: the figure, its 95% interval, and the pairs behind it.
    reason: in words, with the figures compared.
    """

    criterion: str
    outcome: str
    value: float
    low: float
    high: float
    n: int
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What the test rows of one variable come to.

    outcome: the worst of the findings that are judged; open at best where the accuracy is not.
    not_run: criteria and controls that the rows say nothing of.
    cannot_fail: controls that could not have reached any accuracy, and do not count.
    """

    variable: str
    outcome: str
    findings: tuple[Finding, ...]
    not_run: tuple[str, ...]
    cannot_fail: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def line(self) -> str:
        """One line: the outcome, what does not pass and why, what cannot fail, what was not run."""
        bad = [f for f in self.findings if f.outcome != "pass"]
        n = len(self.findings)
        text = (
            f"Verdict on {self.variable}: {self.outcome.upper()}; {n - len(bad)} of {n} "
            "criteria pass"
        )
        for finding in bad:
            text += f"; {finding.criterion} ({finding.outcome}): {finding.reason}"
        if self.cannot_fail:
            text += f". Cannot fail: {', '.join(self.cannot_fail)}"
        if self.not_run:
            text += f". Not run: {', '.join(self.not_run)}"
        return text + "."


def verdict(rows: Sequence[Row], thresholds: Mapping[str, Any] | None = None) -> list[Verdict]:
    """A verdict for each variable that the test rows score by itself; where none is, for those that
    are interchanged together.

    thresholds: criterion → (passes up to here, fails beyond), in place of those of `THRESHOLDS`. A
        criterion whose higher figures are better has the larger number first. Raises ValueError for
        what `thresholds_with` refuses.

    Intervals decide: a criterion passes or fails where its whole interval does, and is open in
    between. Differences on the same pairs have a paired interval. Others (training against test
    pairs, one seed against another) have Newcombe's, from the intervals of both.

    The criteria, each a figure on test:

    - task: share of prompts that the network answers.
    - accuracy: IIA on changing pairs (on all where none is changing).
    - isolation: IIA on pairs whose answer should stay.
    - selectivity: accuracy − the best of those `NULLS` that can fail.
    - placebo: accuracy − the better of two placebos (see `placebos`).
    - cut: share of pairs to which the sites' whole vectors give the source's own answer; it never
      fails.
    - beyond_pca: accuracy − that of principal components of equal rank: without it training has
      found nothing that variance does not show.
    - generalisation: accuracy on training pairs − on test pairs.
    - worst_kind: lowest IIA of a kind of pair.
    - faithfulness: accuracy − the same with the inert parts resampled from a third input (arXiv
      2607.00267).
    - abstraction: the larger of the two causal abstraction errors, of all variables together (see
      `abstraction_error`).
    - off_target: accuracy of this variable's edit where another variable is to be swapped.
    - seed_spread: highest − lowest accuracy among seeds.
    - same_subspace: mean principal angle between seeds' subspaces, as a share of the 2.5% quantile
      of what random subspaces have.
    - excess_rank: accuracy − that of the rank that the variable's values need (see `lower_ranks`).
    - illusion: accuracy − that of the part of the subspace that downstream reads (arXiv
      2311.17030).
    - divergence: share of pairs whose edited activation is farther from natural ones than 95% of
      unedited ones are (arXiv 2511.04638).
    """
    limits = thresholds_with(thresholds or {})
    own = where(rows, split="test", control=None, metric="iia", subset="all")
    scored = dict.fromkeys(row.variable for row in own if row.variable is not None)
    alone = [variable for variable in scored if "+" not in variable]
    return [_judged(variable, _Rows(rows, variable), limits) for variable in alone or scored]


class _Rows:
    """The figures of one variable."""

    def __init__(self, rows: Sequence[Row], variable: str):
        self.rows = [
            row for row in rows if row.variable == variable or row.metric == "task_accuracy"
        ]
        test = where(rows, split="test")
        among = set(variable.split("+"))
        self.abstraction = [
            row
            for metric in ("abstraction_error/up", "abstraction_error/down")
            for row in where(test, metric=metric)
            if among <= set(str(row.variable).split("+"))
        ]
        self.off_target = where(test, control=f"{OFF_TARGET}{variable}")
        self.subset = "changing"
        if self.row() is None:
            self.subset = "all"

    def row(
        self,
        control: str | None = None,
        metric: str = "iia",
        subset: str | None = None,
        split: str = "test",
    ) -> Row | None:
        """By default on changing pairs, or on all where none is changing."""
        rows = where(
            self.rows, control=control, metric=metric, subset=subset or self.subset, split=split
        )
        return rows[0] if rows else None

    def cannot_fail(self) -> list[str]:
        """Controls that are right on no pair at all, not even where the answer should stay.

        Nothing could have made them right. The network itself cannot be right on changing pairs
        where it gives every base its own answer.
        """
        names = []
        for name in NULLS:
            moves, stays = self.row(name), self.row(name, subset="unchanging")
            never = (0, 1) if name == "no_intervention" else (0,)
            if moves and stays and stays.n >= LEAST and moves.value == 0 and stays.value in never:
                names.append(name)
        return names


def _judged(variable: str, rows: _Rows, limits: Mapping[str, tuple[float, float]]) -> Verdict:
    findings: list[Finding] = []
    not_run: list[str] = []
    worst = OUTCOMES[0]
    for criterion, read in CRITERIA.items():
        reading = read(rows)
        if reading is None:
            not_run.append(criterion)
            continue
        figure, reason = reading
        outcome = _outcome(criterion, figure, limits[criterion])
        findings.append(
            Finding(criterion, outcome, figure.value, figure.low, figure.high, figure.n, reason)
        )
        if outcome == "not judged":
            outcome = "open" if criterion == "accuracy" else "pass"
        worst = max(worst, outcome, key=OUTCOMES.index)
    not_run += [control for control in NULLS if rows.row(control) is None]
    reasons = [f"{name} ({NEEDS[name]})" if name in NEEDS else name for name in not_run]
    return Verdict(variable, worst, tuple(findings), tuple(reasons), tuple(rows.cannot_fail()))


def _outcome(criterion: str, figure: Row | Interval, limits: tuple[float, float]) -> str:
    if figure.n < LEAST and criterion != "same_subspace":  # whose n counts pairs of trainings
        return "not judged"
    sign = 1 if criterion in HIGHER else -1
    good, bad = sign * limits[0], sign * limits[1]
    worst, best = sorted((sign * figure.low, sign * figure.high))
    if worst >= good:
        return "pass"
    return "fail" if best < bad else "open"


def _gap(one: Row | None, other: Row | None, paired: Row | None, words: str) -> Reading:
    """one − other, as the paired row has it, else with Newcombe's interval from the intervals of
    both.

    References: Newcombe 1998, Statistics in Medicine 17, 873. It takes the figures as independent,
    which makes it too wide for figures on the same pairs.
    """
    if one is None or other is None:
        return None
    value = one.value - other.value
    low = value - hypot(one.value - one.low, other.high - other.value)
    high = value + hypot(one.high - one.value, other.value - other.low)
    figure = paired or Interval(value, low, high, min(one.n, other.n))
    return figure, f"{words.format(one.value, other.value)}: {_told(figure)}"


def _stated(metric: str, words: str, subset: str | None = None) -> Callable[[_Rows], Reading]:
    """A figure that stands in a row of the alignment itself; `words` have a place for it."""

    def read(rows: _Rows) -> Reading:
        row = rows.row(metric=metric, subset=subset)
        return None if row is None else (row, words.format(_told(row), row.subset))

    return read


def _above_best(rows: _Rows, names: Sequence[str]) -> Reading:
    controls = [row for row in map(rows.row, names) if row is not None]
    if not controls:
        return None
    best = max(controls, key=lambda row: row.value).control or ""
    return _above(best, f"of the best control, {best}")(rows)


def _above(control: str, words: str) -> Callable[[_Rows], Reading]:
    """How far the alignment is above a control."""

    def read(rows: _Rows) -> Reading:
        paired = rows.row(control, "iia_difference")
        return _gap(rows.row(), rows.row(control), paired, "{:.3f} against {:.3f} " + words)

    return read


def _worst_kind(rows: _Rows) -> Reading:
    own = where(rows.rows, split="test", control=None)
    kinds = [row for row in own if row.subset.startswith(KIND) and row.n >= LEAST]
    if not kinds:
        return None
    worst = min(kinds, key=lambda row: row.value)
    return worst, f"IIA {_told(worst)} on pairs that differ in {worst.subset.removeprefix(KIND)}"


def _abstraction(rows: _Rows) -> Reading:
    if not rows.abstraction:
        return None
    sides = {"up": "network", "down": "causal model"}
    told = [
        f"{_told(row)} from the {sides[row.metric.rpartition('/')[2]]}" for row in rows.abstraction
    ]
    worst = max(rows.abstraction, key=lambda row: row.value)
    return worst, f"causal model and network differ, under interventions {' and '.join(told)}"


def _off_target(rows: _Rows) -> Reading:
    changing = where(rows.off_target, subset="changing")
    if not changing:
        return None
    # A few pairs, which are not judged, do not hide another variable's many.
    worst = max(changing, key=lambda row: (row.n >= LEAST, row.value))
    return (
        worst,
        (
            f"this edit gives the label of {worst.variable}'s interchange on {_told(worst)} of its "
            "changing pairs"
        ),
    )


def _excess_rank(rows: _Rows) -> Reading:
    reading = _above("least_rank", "with as many dimensions as the variable has values, less one")(
        rows
    )
    if reading is None:
        return None
    figure, words = reading
    controls = {row.control or "" for row in rows.rows}
    ranks = sorted(int(name.removeprefix(RANK)) for name in controls if name.startswith(RANK))
    for rank in ranks:
        row = rows.row(f"{RANK}{rank}")
        words += f"; rank {rank} reaches {row.value:.3f}" if row else ""
    return figure, words


def _seed_spread(rows: _Rows) -> Reading:
    scores = where(rows.rows, split="test", subset=rows.subset, metric="iia")
    trained = [row for row in scores if row.control is None or pool_of(row.control) == "seeds"]
    if len(trained) < 2:
        return None
    trained.sort(key=lambda row: row.value)
    words = f"{len(trained)} trainings reach {{1:.3f}} to {{0:.3f}}"
    return _gap(trained[-1], trained[0], None, words)


def _same_subspace(rows: _Rows) -> Reading:
    row, null = (
        rows.row(control, "principal_angle", "all") for control in ("seeds", "random_subspace")
    )
    if row is None or null is None:
        return None
    seeds, random = (
        f"{r.value:.0f}° apart on average ({r.low:.0f}° to {r.high:.0f}°)" for r in (row, null)
    )
    share = Interval(row.value / null.low, row.low / null.low, row.high / null.low, row.n)
    return share, f"subspaces of different seeds are {seeds}, random ones of this rank {random}"


def _told(figure: Row | Interval) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}, n = {figure.n})"


HIGHER = (
    "task",
    "accuracy",
    "isolation",
    "selectivity",
    "placebo",
    "cut",
    "beyond_pca",
    "worst_kind",
)
"""Criteria whose higher figures are better."""
CRITERIA: Mapping[str, Callable[[_Rows], Reading]] = {
    "task": _stated("task_accuracy", "the network answers {} of the prompts", "all"),
    "accuracy": _stated("iia", "IIA {} on {} pairs"),
    "isolation": _stated("iia", "IIA {} on pairs whose answer should stay", "unchanging"),
    "selectivity": lambda rows: _above_best(rows, sorted({*NULLS} - {*rows.cannot_fail()})),
    "placebo": lambda rows: _above_best(rows, ("placebo_direction", "placebo_pair")),
    "cut": _stated("cut", "all that the sites hold gives the source's own answer on {}", "all"),
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
