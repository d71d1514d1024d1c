"""Scoring an alignment beside its controls."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from iit.alignment import Alignment
from iit.alignment.labels import check_labels
from iit.data import Pairs
from iit.evaluation.agreement import agreement_rows
from iit.evaluation.controls import controls_of
from iit.evaluation.diagnostics import abstraction_rows, angle_rows, divergence_rows
from iit.evaluation.off_target import off_target, off_target_rows, task_off_target_rows
from iit.evaluation.outcomes import Outcomes, cut
from iit.evaluation.rows import Group, readout, scores, task_accuracy
from iit.evaluation.scoring import Scoring
from iit.evaluation.trust import NotApplicableError, Refit, Trust, level, train_alike
from iit.intervened.store import ActivationStore
from iit.result import TRAINED, Arm, Row, where
from iit.result.vocabulary import POOLED, draws_of, is_single_draw

log = logging.getLogger(__name__)

Arms = Mapping[Arm, np.ndarray]
"""A figure of each pair, [n], or [n, draws], for each arm."""


def evaluate(
    alignment: Alignment,
    pairs: Pairs,
    trust: str | Trust = "quick",
    *,
    split: str = "test",
    controls: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    experiment: str | None = None,
    refit: Refit = train_alike,
) -> list[Row]:
    """Interchange intervention accuracy (IIA) of an alignment on one split, beside its controls.

    IIA is given on all pairs, on changing and on unchanging pairs, and on each kind of pair. Its
    95% intervals are clustered by base prompt, or by template where the pairs know it.

    With pairs for several variables there are rows for each set of variables that pairs interchange
    ("a", "b", "a+b"). Then there is the off-target matrix, too: control `off_target` with draw a,
    among the rows of b, is the edit of a where the value of b is to be swapped.

    The controls stand beside the alignment, whose own rows have control None. They are scored on
    the same pairs, and nothing is filtered again.

    - vanilla: swaps the sites' whole vectors.
    - placebo_direction, placebo_pair: see `placebos`.
    - random_subspace: random subspaces of equal rank, pooled over the draws; the rows of single
      draws have draw 0, 1, … .
    - pca_subspace: principal components of equal rank.
    - majority: always the most frequent training label.
    - no_intervention: the network itself.
    - inert_resampled: only where the alignment declares inert parts.
    - rival: the alignment, scored by what another causal model of the task says of the same pairs.
      Its name is the draw.

    The metrics:

    - iia_difference: the alignment minus a control, pair by pair.
    - logit_difference: the mean over changing pairs of logit(label) − logit(base's own answer),
      where the pairs know the right answers.
    - iia_forced: scores the label among the pair's own alternatives (see `Outcomes`).
    - cut: whether the sites pass the source's own answer (see `cut`).
    - task_accuracy: where the pairs know the right answers, the share of all drawn prompts that the
      network answers, before filtering. It is of the pairs' bases where nothing was filtered, and
      where the network was trained since.

    With the test split come the IIA rows of the alignment on the training split. Pairs without a
    variable (prompts alone) give a single row, the `task_accuracy` of the network itself.

    Arguments:
        trust: "full" adds further rows on the test split. It trains controls as the alignment was
            trained (see `RECIPES`), runs the edit on the pairs of the task's other variables, and
            adds diagnostics. These are `read_part` (also of the whole vector and of random
            subspaces), `null_part`, `divergence`, `principal_angle` and, in small networks,
            `abstraction_error`. `verdict` draws the conclusion from all of this.
        controls: False scores the alignment alone.
        refit: trains the controls as the alignment was trained; by default `fit` with its own
            defaults.

    Raises:
        ValueError: for an unknown level of trust; for an alignment on a bare module, which cannot
            tokenize the pairs; for pairs of other variables; and for labels that are none of the
            network's answers.
    """
    scoring = Scoring(alignment, pairs, split, level(trust), refit, batch_size, seed, experiment)
    _check(alignment, pairs)
    with _stored(alignment, pairs):
        check_labels(scoring.network, scoring.encoded)
        if not pairs.variables:
            return _prompts_rows(scoring)
        return _all_rows(scoring) if controls else _alignment_rows(scoring)


def _check(alignment: Alignment, pairs: Pairs) -> None:
    """Raise ValueError for an alignment that cannot be scored on these pairs."""
    if alignment.studied is None:
        raise ValueError(
            "evaluate tokenizes the pairs: make the alignment with the LanguageModel from "
            "iit.load_network."
        )
    if not set(pairs.variables) <= set(alignment.variables):
        raise ValueError(
            f"The pairs are for variable {pairs.variable!r}, the alignment for "
            f"{list(map(str, alignment.variables))}."
        )


@contextmanager
def _stored(alignment: Alignment, pairs: Pairs) -> Iterator[None]:
    """An alignment without a store has one for this evaluation, and none after it."""
    store = alignment.store
    if store is not None:
        # The weights may have changed since the store was filled.
        store.check()
    elif pairs.variables:
        alignment.store = ActivationStore(alignment.network)
    try:
        yield
    finally:
        alignment.store = store


def _drawn_answers(scoring: Scoring) -> np.ndarray | None:
    """bool[n]: was each drawn prompt of the split answered rightly, before filtering?

    None where that is not known. Of a network that was trained since, what it answered before says
    nothing.
    """
    facts = scoring.pairs.facts
    if facts.get("answered_by") not in (None, scoring.network.fingerprint()):
        return None
    n = facts.get("drawn", {}).get(scoring.split)
    # Only the number of right answers is on record, so the first ones stand for them.
    return np.arange(n) < facts["right"][scoring.split] if n else None


def _prompts_rows(scoring: Scoring) -> list[Row]:
    """The task accuracy on prompts alone."""
    answers = _drawn_answers(scoring)
    if answers is None:
        answers = scoring.outcomes(scoring.alignment, edited=False).right[None]
    return [task_accuracy(answers, scoring.facts(()))]


def _alignment_rows(scoring: Scoring) -> list[Row]:
    """Rows of the alignment alone."""
    trained = scoring.outcomes(scoring.alignment)
    return _rows(scoring, {TRAINED: trained.right[None]}, _figures({TRAINED: trained}), {}, {})


def _all_rows(scoring: Scoring) -> list[Row]:
    """Rows of the alignment and of its controls, diagnostics, and rows of the training pairs."""
    trained = scoring.outcomes(scoring.alignment)
    controls, missing = controls_of(scoring)
    for reason in dict.fromkeys(missing.values()):
        kinds = ", ".join(kind for kind, why in missing.items() if why == reason)
        log.info("Not run: %s: %s", kinds, reason)
    scored: dict[Arm, Outcomes] = {TRAINED: trained}
    arms: dict[Arm, np.ndarray] = {TRAINED: trained.right[None]}
    for arm, control in controls.items():
        # Such a control says only which pairs are right: it has no other figures.
        if isinstance(control, np.ndarray):
            arms[arm] = control
            continue
        scored[arm] = control if isinstance(control, Outcomes) else scoring.outcomes(control)
        arms[arm] = scored[arm].right[None]
    figures = _figures(scored)
    figures["cut"] = {TRAINED: cut(scoring.alignment, scoring.encoded, scored[Arm("vanilla")])}
    # {variable: bool[n]}; empty where there is no other variable.
    others = off_target(scoring.alignment, scoring.encoded, scoring.batch_size)
    rows = _rows(scoring, _with_pools(arms), figures, trained.right, others)
    if scoring.is_full:
        rows += _diagnostics(scoring, draws_of(controls, "seeds"))
    answers = _drawn_answers(scoring)
    if answers is None:
        answers = scored[Arm("no_intervention")].right.get("base")
    if answers is not None:
        rows.append(task_accuracy(answers, scoring.facts(scoring.pairs.variables)))
    if scoring.split == "test" and scoring.has_training:
        # The verdict reads the gap between training and test pairs.
        check_labels(scoring.network, scoring.training.encoded)
        rows += where(_alignment_rows(scoring.training), metric="iia")
    return rows


def _diagnostics(scoring: Scoring, seeds: Sequence[Alignment]) -> list[Row]:
    """Rows of further questions; the log says which do not apply."""
    rows = angle_rows([scoring.alignment, *seeds], scoring.facts, scoring.spaces)
    for diagnose in (divergence_rows, task_off_target_rows, abstraction_rows):
        try:
            rows += diagnose(scoring)
        except NotApplicableError as error:
            log.info("Not run: %s: %s", diagnose.__name__, error)
    return rows


def _with_pools(arms: Arms) -> dict[Arm, np.ndarray]:
    """The arms, and behind them bool[n, draws] of each control that pools draws."""
    pools = {}
    for control in POOLED:
        draws = draws_of(arms, control)
        if draws:
            # The alignment itself is one of the seeds.
            draws = [arms[TRAINED], *draws] if control == "seeds" else draws
            pools[Arm(control)] = np.stack(draws, 1)
    return {**arms, **pools}


def _rivals(right: Mapping[str | None, np.ndarray], group: Group) -> dict[Arm, np.ndarray]:
    """The rivals that say something of each pair of the group.

    A rival is no other edit: it scores what the alignment does by other labels.

    Arguments:
        right: `Outcomes.right` of the alignment.
    """
    rivals = {}
    for name, speaks in group.encoded.speaks.items():
        answers = f"rival/{name}"
        # Where a rival says nothing of a pair, the label stands in: that would flatter it.
        if answers in right and speaks.numpy()[group.among].all():
            rivals[Arm("rival", name)] = right[answers]
    return rivals


def _figures(scored: Mapping[Arm, Outcomes]) -> dict[str, Arms]:
    """{metric: the figure of each arm}; random subspaces are pooled."""
    figures: dict[str, Arms] = {}
    for metric, field in (("logit_difference", "difference"), ("iia_forced", "forced")):
        arms = {arm: getattr(outcomes, field) for arm, outcomes in scored.items()}
        # Seeds keep a figure each; the draws of random subspaces have one together, [n, draws].
        shown = {
            arm: figure
            for arm, figure in arms.items()
            if not is_single_draw(arm) or arm.control == "seeds"
        }
        draws = draws_of(arms, "random_subspace")
        if draws:
            shown[Arm("random_subspace")] = np.stack(draws, 1)
        figures[metric] = shown
    return figures


def _rows(
    scoring: Scoring,
    arms: Arms,
    figures: Mapping[str, Arms],
    rivals: Mapping[str | None, np.ndarray],
    others: Mapping[str, np.ndarray],
) -> list[Row]:
    """The rows of each set of variables that pairs interchange.

    Arguments:
        rivals: bool[n] of each rival, as `Outcomes.right` has them.
        others: what `off_target` gives.
    """
    rows = []
    for variables, group in scoring.groups():
        # A rival may speak of the pairs of one group and not of another's.
        rows += scores({**arms, **_rivals(rivals, group)}, group)
        if len(variables) == 1:
            for name, right in others.items():
                # A variable's own edit is on target in its own pairs.
                if name not in variables:
                    rows += off_target_rows(name, right, group)
        for metric, by_arm in figures.items():
            rows += readout(by_arm, group, metric)
        rows += agreement_rows(scoring.alignment, variables, group)
    return rows
