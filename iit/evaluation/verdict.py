"""The verdict on an alignment: criterion by criterion, from its rows alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from iit.evaluation.trust import thresholds_with
from iit.result import Row

OUTCOMES = ("pass", "warn", "fail")
NULLS = ("no_intervention", "majority", "random_subspace", "shuffled_label", "untrained_network", "wrong_site")
"""Controls that do not have what the hypothesis claims: an accuracy that they reach, too, says nothing. PCA of equal rank may well have
it, and has a criterion of its own."""
NEEDS = {
    "faithfulness": "the alignment declares nothing inert, or all pairs have one base",
    "abstraction": "only with trust=full, where a causal model has variables of few values and the network is small",
    "wrong_site": "only with trust=full, where the site names a role or a layer, or trust.wrong_site says where",
}
"""Why a criterion was not read, where the alignment or the network may be the reason."""
LEAST = 20
"""A kind of pair with fewer pairs is not judged."""
Reading = tuple[float, str] | None
"""(the figure, what it is in words); None where the rows do not tell."""


@dataclass(frozen=True)
class Finding:
    """One criterion. value: the figure. outcome: pass | warn | fail. reason: in words, with the figures compared."""

    criterion: str
    outcome: str
    value: float
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What the test rows of one variable come to.

    outcome: the worst of the findings'. not_run: criteria and controls that the rows say nothing of.
    """

    variable: str
    outcome: str
    findings: tuple[Finding, ...]
    not_run: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def line(self) -> str:
        """One line: the outcome, what does not pass and why, what was not run."""
        bad = [f"{f.criterion} ({f.outcome}): {f.reason}" for f in self.findings if f.outcome != "pass"]
        n = len(self.findings) - len(bad)
        told = f"Verdict on {self.variable}: {self.outcome.upper()}; {n} of {len(self.findings)} criteria pass"
        told += "".join(f"; {text}" for text in bad)
        return told + (f". Not run: {', '.join(self.not_run)}." if self.not_run else ".")


def verdict(rows: Sequence[Row], thresholds: Mapping[str, Any] | None = None) -> list[Verdict]:
    """A verdict for each variable that the test rows score by itself; where none is, for those that are interchanged together.

    thresholds: criterion → (passes up to here, warns up to here), in place of those of `THRESHOLDS`. A criterion whose higher figures
        are better has the larger number first. Raises ValueError for what `thresholds_with` refuses.

    | criterion | figure, on test |
    |---|---|
    | task | share of prompts that the network answers |
    | accuracy | IIA on changing pairs (on all where none is changing) |
    | precision | width of the accuracy's 95% interval: few base prompts show little |
    | isolation | IIA on pairs whose answer should stay |
    | selectivity | accuracy − the best of `NULLS` |
    | beyond_pca | accuracy − that of principal components of equal rank: without it training has found nothing that variance does not show |
    | generalisation | accuracy on training pairs − on test pairs |
    | worst_kind | lowest IIA of a kind of pair |
    | faithfulness | IIA on all pairs − the same with the inert parts resampled from a third input (arXiv 2607.00267) |
    | abstraction | the larger of the two causal abstraction errors, of all variables together (see `abstraction_error`) |
    | off_target | accuracy of this variable's edit where another variable is to be swapped |
    | seed_spread | highest − lowest accuracy among seeds |
    | same_subspace | mean principal angle between seeds' subspaces, as a share of the 2.5% quantile of what random subspaces have |
    | illusion | accuracy − that of the part of the subspace that downstream reads (arXiv 2311.17030) |
    | divergence | share of pairs whose edited activation is farther from natural ones than 95% of unedited ones are (arXiv 2511.04638) |
    """
    limits = thresholds_with(thresholds or {})
    test = [row for row in rows if row.split == "test"]
    scored = dict.fromkeys(
        row.variable for row in test if (row.control, row.metric, row.subset) == (None, "iia", "all") and row.variable is not None
    )
    alone = [variable for variable in scored if "+" not in variable]
    return [_judged(variable, _Rows(rows, variable), limits) for variable in alone or scored]


class _Rows:
    """The figures of one variable."""

    def __init__(self, rows: Sequence[Row], variable: str):
        self.rows = [row for row in rows if row.variable == variable or row.metric == "task_accuracy"]
        self.abstraction = [
            row
            for row in rows
            if row.metric.startswith("abstraction_error/")
            and row.split == "test"
            and set(variable.split("+")) <= set((row.variable or "").split("+"))
        ]
        self.off_target = [row for row in rows if row.control == f"off_target/{variable}" and row.split == "test"]
        self.subset = "changing" if self.value() is not None else "all"

    def row(self, control: str | None = None, metric: str = "iia", subset: str = "changing", split: str = "test") -> Row | None:
        wanted = (control, metric, subset, split)
        return next((r for r in self.rows if (r.control, r.metric, r.subset, r.split) == wanted), None)

    def value(
        self, control: str | None = None, metric: str = "iia", subset: str = "changing", split: str = "test"
    ) -> float | None:
        found = self.row(control, metric, subset, split)
        return None if found is None else found.value

    def accuracy(self, control: str | None = None, split: str = "test") -> float | None:
        """IIA on changing pairs, or on all where none is changing."""
        return self.value(control, subset=self.subset, split=split)


def _judged(variable: str, rows: _Rows, limits: Mapping[str, tuple[float, float]]) -> Verdict:
    findings: list[Finding] = []
    not_run: list[str] = []
    for criterion, read in CRITERIA.items():
        reading = read(rows)
        if reading is None:
            not_run.append(criterion)
            continue
        value, reason = reading
        good, fair = limits[criterion]
        sign = 1 if criterion in HIGHER else -1
        outcome = OUTCOMES[0 if sign * value >= sign * good else 1 if sign * value >= sign * fair else 2]
        findings.append(Finding(criterion, outcome, value, reason))
    not_run += [control for control in NULLS if rows.accuracy(control) is None]
    worst = max((finding.outcome for finding in findings), key=OUTCOMES.index)
    told = [f"{name} ({NEEDS[name]})" if name in NEEDS else name for name in not_run]
    return Verdict(variable, worst, tuple(findings), tuple(told))


def _precision(rows: _Rows) -> Reading:
    found = rows.row(subset=rows.subset)
    return (
        None
        if found is None
        else (found.high - found.low, f"the interval of {_told(found)} is {found.high - found.low:.3f} wide")
    )


def _task(rows: _Rows) -> Reading:
    value = rows.value(metric="task_accuracy", subset="all")
    return None if value is None else (value, f"the network answers {value:.1%} of the prompts")


def _accuracy(rows: _Rows) -> Reading:
    found = rows.row(subset=rows.subset)
    return None if found is None else (found.value, f"IIA {_told(found)} on {found.subset} pairs")


def _isolation(rows: _Rows) -> Reading:
    found = rows.row(subset="unchanging")
    return None if found is None else (found.value, f"IIA {_told(found)} on pairs whose answer should stay")


def _selectivity(rows: _Rows) -> Reading:
    controls = {name: value for name in NULLS if (value := rows.accuracy(name)) is not None}
    own = rows.accuracy()
    if not controls or own is None:
        return None
    best = max(controls, key=lambda name: controls[name])
    return own - controls[best], f"{own:.3f} against {controls[best]:.3f} of the best control, {best}"


def _above(control: str, words: str, subset: str | None = None) -> Callable[[_Rows], Reading]:
    """How far the alignment is above a control."""

    def read(rows: _Rows) -> Reading:
        own, other = (rows.accuracy(c) if subset is None else rows.value(c, subset=subset) for c in (None, control))
        return None if own is None or other is None else (own - other, f"{own:.3f} against {other:.3f} {words}")

    return read


def _generalisation(rows: _Rows) -> Reading:
    own, train = rows.accuracy(), rows.accuracy(split="train")
    return None if own is None or train is None else (train - own, f"{train:.3f} on training pairs, {own:.3f} on test pairs")


def _worst_kind(rows: _Rows) -> Reading:
    kinds = [r for r in rows.rows if r.subset.startswith("kind/") and r.split == "test" and r.control is None and r.n >= LEAST]
    if not kinds:
        return None
    worst = min(kinds, key=lambda row: row.value)
    return worst.value, f"IIA {_told(worst)} on pairs that differ in {worst.subset.removeprefix('kind/')}"


def _abstraction(rows: _Rows) -> Reading:
    if not rows.abstraction:
        return None
    sides = {"up": "network", "down": "causal model"}
    told = [f"{_told(row)} from the {sides[row.metric.rpartition('/')[2]]}" for row in rows.abstraction]
    return max(
        row.value for row in rows.abstraction
    ), f"causal model and network differ, under interventions {' and '.join(told)}"


def _off_target(rows: _Rows) -> Reading:
    found = [row for row in rows.off_target if row.subset == "changing"]
    if not found:
        return None
    worst = max(found, key=lambda row: row.value)
    return worst.value, f"this edit gives the label of {worst.variable}'s interchange on {_told(worst)} of its changing pairs"


def _seed_spread(rows: _Rows) -> Reading:
    values = [rows.accuracy()] + [
        row.value
        for row in rows.rows
        if (row.control or "").startswith("seed/") and (row.split, row.subset, row.metric) == ("test", rows.subset, "iia")
    ]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return max(known) - min(known), f"{len(known)} trainings reach {min(known):.3f} to {max(known):.3f}"


def _same_subspace(rows: _Rows) -> Reading:
    found, null = (rows.row(control, "principal_angle", "all") for control in ("seeds", "random_subspace"))
    if found is None or null is None:
        return None
    seeds, random = (f"{row.value:.0f}° apart on average ({row.low:.0f}° to {row.high:.0f}°)" for row in (found, null))
    return found.value / null.low, f"subspaces of different seeds are {seeds}, random ones of this rank {random}"


def _divergence(rows: _Rows) -> Reading:
    found = rows.row(metric="divergence")
    if found is None:
        return None
    return found.value, f"{_told(found)} of the edited activations are farther from natural ones than 95% of the unedited"


def _told(row: Row) -> str:
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f}, n = {row.n})"


HIGHER = ("task", "accuracy", "isolation", "selectivity", "beyond_pca", "worst_kind")
"""Criteria whose higher figures are better."""
CRITERIA: Mapping[str, Callable[[_Rows], Reading]] = {
    "task": _task,
    "accuracy": _accuracy,
    "precision": _precision,
    "isolation": _isolation,
    "selectivity": _selectivity,
    "beyond_pca": _above("pca_subspace", "of principal components of equal rank"),
    "generalisation": _generalisation,
    "worst_kind": _worst_kind,
    "faithfulness": _above("inert_resampled", "with the inert parts from a third input", subset="all"),
    "abstraction": _abstraction,
    "off_target": _off_target,
    "seed_spread": _seed_spread,
    "same_subspace": _same_subspace,
    "illusion": _above("read_part", "of the part that downstream reads"),
    "divergence": _divergence,
}
