"""Scoring an alignment beside its controls."""

import logging
from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np

from iit.alignment import Alignment
from iit.alignment.labels import check_labels
from iit.data import Pairs
from iit.evaluation.agreement import agreement_rows
from iit.evaluation.controls import controls_of
from iit.evaluation.diagnostics import abstraction_rows, angle_rows, divergence_rows
from iit.evaluation.off_target import off_target_rows, task_off_target_rows
from iit.evaluation.outcomes import Outcomes, asking, cut
from iit.evaluation.rows import mean_rows, row_of, scores
from iit.evaluation.scoring import Scoring
from iit.evaluation.trust import NotApplicableError, Refit, Trust, train_alike, trust_named
from iit.intervened.score import ARGMAX, Score
from iit.intervened.store import ActivationStore
from iit.progress import progress
from iit.result import TRAINED, Arm, Row, Rows, clustered_interval, where
from iit.result.vocabulary import AVERAGED, is_single_draw, of_single_draws

log = logging.getLogger(__name__)


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
    score: Score = ARGMAX,
) -> Rows:
    """Interchange intervention accuracy (IIA) of an alignment on one split, beside its controls.

    IIA is given on all pairs, on changing and on unchanging pairs, and on each kind of pair. Its
    95% intervals are clustered by base prompt, or by case where the pairs know it (see `COLUMNS`).

    With pairs for several variables there are rows for each set of variables that pairs interchange
    ("a", "b", "a+b"). Then there is the off-target matrix, too: control `off_target` with draw a,
    among the rows of b, is the edit of a where the value of b is to be swapped.

    The controls stand beside the alignment, whose own rows have control None. They are scored on
    the same pairs, and nothing is filtered again.

    - vanilla: swaps the sites' whole vectors.
    - placebo_direction, placebo_pair: see `placebos`.
    - random_subspace: random subspaces of equal rank, a mean over the draws; the rows of single
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
    - iia_generated: with a score "generated", whether what is written is the label.
    - cut: whether swapping the sites' whole vectors gives the source's own answer (see `cut`).
    - disentangle: the mean of the IIA on changing and the IIA on unchanging pairs.
    - answer_agreement: for sites at answer tokens (see `agreement_rows`).
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
        score: when the label counts as the answer; by default where its tokens are the argmax.
            Another score has a metric of its own, with all controls and differences but rivals. The
            rows of `iia` stand beside it. `cut`, `off_target` and `answer_agreement` read tokens
            all the same. `task_accuracy` is there where prompts were filtered by that score.

    Returns:
        The rows, a list that shows itself as a table. `alignment.rows`, which a saved folder holds,
        is the user's to set: `alignment.rows = iit.evaluate(alignment, pairs)`.

    Raises:
        ValueError: for an unknown name of a trust; for an alignment on a bare module, which cannot
            encode the pairs; for pairs of other variables; for labels that are none of the
            network's answers; for what `Score.check` refuses; and where no pair has a score.
    """
    if alignment.studied is None:
        raise ValueError(
            "evaluate encodes the pairs, which a bare module cannot: make the alignment with a "
            "LanguageModel (iit.load_network) or a Classifier."
        )
    if not set(pairs.variables) <= set(alignment.variables):
        raise ValueError(
            f"The pairs are for variable {pairs.variable!r}, the alignment for "
            f"{list(map(str, alignment.variables))}."
        )
    if alignment.store is not None:
        # The weights may have changed since the store was filled.
        alignment.store.check()
    elif pairs.variables:
        # The copy has the same weights; the user's alignment stays without a store.
        alignment = copy(alignment)
        alignment.store = ActivationStore(alignment.network)
    scoring = Scoring(
        alignment, pairs, split, trust_named(trust), refit, batch_size, seed, experiment, score
    )
    return scored_rows(scoring, controls)


def scored_rows(scoring: Scoring, with_controls: bool = True) -> Rows:
    """The rows of `evaluate`, for those who also want the outcomes of each pair.

    The scoring has them afterwards (`own_outcomes` and `unedited`). Its alignment should have a
    store: without one every prompt is run anew.
    """
    check_labels(scoring.network, scoring.encoded)
    if not scoring.pairs.variables:
        return Rows(_task_accuracy(scoring))
    scored = {TRAINED: scoring.own_outcomes}
    if not with_controls:
        return Rows(_rows(scoring, scored))
    controls, missing = controls_of(scoring)
    for kind, reason in missing.items():
        log.info("Not run: %s: %s", kind, reason)
    for arm, control in progress(controls.items(), "Evaluating {0[0]}"):
        if not isinstance(control, Outcomes):
            control = scoring.outcomes(control)
        scored[arm] = control
    rows = Rows(_rows(scoring, scored))
    passes = cut(scoring.alignment, scoring.encoded, scored[Arm("vanilla")])
    for _, group in scoring.groups():
        rows += mean_rows({TRAINED: passes}, group, "cut")
    rows += off_target_rows(scoring)
    if scoring.is_full:
        rows += _diagnostics(scoring, of_single_draws(controls, "seeds"))
    rows += _task_accuracy(scoring)
    if scoring.split == "test" and scoring.has_training:
        # The verdict reads the gap between training and test pairs.
        on_train = scoring.on_train_split
        check_labels(on_train.network, on_train.encoded)
        metric = scoring.score.metric
        rows += where(_rows(on_train, {TRAINED: on_train.own_outcomes}), metric=metric)
    return rows


def _rows(scoring: Scoring, scored: Mapping[Arm, Outcomes]) -> list[Row]:
    """The rows of each set of variables that pairs interchange."""
    right = {arm: outcomes.right[None] for arm, outcomes in scored.items()}
    # What a rival says is compared with tokens only.
    by_score = {arm: outcomes.scored for arm, outcomes in scored.items() if arm.control != "rival"}
    # Where the score is that of tokens, the second takes the place of the first.
    arms = {scoring.score.metric: by_score, "iia": right}
    figures = {}
    for metric, field in (("logit_difference", "difference"), ("iia_forced", "forced")):
        if metric in arms:
            continue
        by_arm = {arm: getattr(outcomes, field) for arm, outcomes in scored.items()}
        by_arm = _with_averages(by_arm, ["random_subspace"])
        # Seeds keep a figure each; the draws of random subspaces have one together.
        figures[metric] = {
            arm: figure
            for arm, figure in by_arm.items()
            if arm.control == "seeds" or not is_single_draw(arm)
        }
    rows = []
    for variables, group in scoring.groups():
        for metric, by_arm in arms.items():
            rows += scores(_with_averages(by_arm, AVERAGED), group, metric)
        for metric, by_arm in figures.items():
            rows += mean_rows(by_arm, group, metric)
        rows += agreement_rows(scoring.alignment, variables, group)
    return rows


def _with_averages(
    figures: Mapping[Arm, np.ndarray], controls: Sequence[str]
) -> dict[Arm, np.ndarray]:
    """The figures, and behind them those of all draws of these controls, [n, draws].

    The mean over its draws is then the figure of a pair.
    """
    averages = {}
    for control in controls:
        draws = of_single_draws(figures, control)
        if draws and control == "seeds":
            # The alignment itself is one of the seeds.
            draws.insert(0, figures[TRAINED])
        if draws:
            averages[Arm(control)] = np.stack(draws, 1)
    return {**figures, **averages}


def _diagnostics(scoring: Scoring, seeds: Sequence[Alignment]) -> list[Row]:
    """Rows of further questions; the log says which do not apply."""
    rows = angle_rows([scoring.alignment, *seeds], scoring.cell_columns, scoring.spaces)
    for diagnose in (divergence_rows, task_off_target_rows, abstraction_rows):
        try:
            rows += diagnose(scoring)
        except NotApplicableError as error:
            log.info("Not run: %s: %s", diagnose.__name__, error)
    return rows


def _task_accuracy(scoring: Scoring) -> list[Row]:
    """The share of prompts that the network answers, as a row; nothing where it is not known."""
    counts, variables = scoring.pairs.facts, scoring.pairs.variables
    n = counts.get("drawn", {}).get(scoring.split)
    # Of a network that was trained since, what it answered before says nothing.
    answerer = asking(scoring.network, scoring.score).fingerprint()
    if n and counts.get("answered_by") in (None, answerer):
        # Only the number of right answers is on record, so the first ones stand for them.
        right = np.arange(n) < counts["right"][scoring.split]
    elif not variables:
        # Of prompts alone, the label is the answer.
        right = scoring.unedited.scored
    else:
        # Another score says nothing of the base's own answer.
        is_argmax = scoring.score.kind == "argmax"
        right = scoring.unedited.right.get("base") if is_argmax else None
    if right is None:
        return []
    # Each prompt is its own cluster.
    interval = clustered_interval(right, np.arange(len(right)))
    return [row_of(scoring.cell_columns(variables), interval, "task_accuracy")]
