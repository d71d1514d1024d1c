"""Scoring an alignment beside its controls."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from iit.alignment import Alignment
from iit.alignment.labels import check_labels
from iit.alignment.references import vanilla
from iit.data import EncodedPairs, Pairs
from iit.evaluation.agreement import agreement_rows
from iit.evaluation.controls import (
    has_random_subspace,
    majority,
    pca_subspace,
    placebos,
    random_subspace,
)
from iit.evaluation.diagnostics import (
    abstraction_rows,
    angle_rows,
    divergence_rows,
    other_variables,
    parts,
    spans,
)
from iit.evaluation.faithfulness import inert_resampled
from iit.evaluation.off_target import off_target, off_target_rows
from iit.evaluation.outcomes import Outcomes, cut, outcomes
from iit.evaluation.retrained import Refit, retrained
from iit.evaluation.rows import describe, readout, scores, task_accuracy
from iit.evaluation.trust import TRUST, Trust, train_alike
from iit.intervened import ActivationStore
from iit.result import Row, where
from iit.result.vocabulary import DRAW_PREFIXES, RIVAL, draw, draws_of, pool_of

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
) -> list[Row]:
    """Interchange intervention accuracy (IIA) of an alignment on one split, beside its controls.

    IIA is given on all pairs, on changing and on unchanging pairs, and on each kind of pair. Its
    95% intervals are clustered by base prompt, or by template where the pairs know it.

    With pairs for several variables there are rows for each set of variables that pairs interchange
    ("a", "b", "a+b"). Then there is the off-target matrix, too: `off_target/a` among the rows of b
    is the edit of a where the value of b is to be swapped.

    The controls stand beside the alignment, whose own rows have control None. They are scored on
    the same pairs, and nothing is filtered again.

    - vanilla: swaps the sites' whole vectors.
    - placebo_direction, placebo_pair: see `placebos`.
    - random_subspace: random subspaces of equal rank, pooled over the draws; the single draws are
      `random_subspace/0`, … .
    - pca_subspace: principal components of equal rank.
    - majority: always the most frequent training label.
    - no_intervention: the network itself.
    - inert_resampled: only where the alignment declares inert parts.
    - `rival/NAME`: the alignment, scored by what another causal model of the task says of the same
      pairs.

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

    A footgun: an alignment without a store gets one, and keeps it.

    Arguments:
        trust: "full" adds on the test split what `retrained` trains, the edit on the pairs of
            the task's other variables, and diagnostics. These are `read_part` (also of the whole
            vector and of random subspaces), `null_part`, `divergence`, `principal_angle` and, in
            small networks, `abstraction_error`. `verdict` draws the conclusion from all of this.
        controls: False scores the alignment alone.
        refit: trains the controls as the alignment was trained; by default `fit` with its own
            defaults.

    Raises:
        ValueError: for an unknown level of trust, an alignment on a bare module, which cannot
            tokenize the pairs, pairs of other variables, and labels that are none of the network's
            answers.
    """
    if isinstance(trust, str):
        if trust not in TRUST:
            raise ValueError(f"trust={trust!r} is none of {sorted(TRUST)}.")
        trust = TRUST[trust]
    network = alignment.studied
    if network is None:
        raise ValueError(
            "evaluate tokenizes the pairs: make the alignment with the LanguageModel from "
            "iit.load_network."
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
        alignment.store = ActivationStore(alignment.network)
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
    check_labels(network, encoded)
    run_facts = {"seed": seed, "split": split, "experiment": experiment}
    # Of a network that was trained since, what it answered before says nothing.
    is_the_same = pairs.facts.get("answered_by") in (None, network.fingerprint())
    n = pairs.facts.get("drawn", {}).get(split) if is_the_same else None
    # Unfiltered pairs are the prompts as they were drawn.
    answers = np.arange(n) < pairs.facts["right"][split] if n else None
    if not pairs.variables:
        if answers is None:
            answers = outcomes(alignment, encoded, batch_size=batch_size, edited=False).right[None]
        return [task_accuracy(answers, describe(alignment, pairs, ()) | run_facts)]
    # None is the alignment itself, in this and all tables of arms.
    scored: dict[str | None, Outcomes] = {None: outcomes(alignment, encoded, batch_size=batch_size)}
    # bool[n] for each arm; bool[n, draws] for a control that pools draws.
    arms: dict[str | None, np.ndarray] = {None: scored[None].right[None]}
    rows: list[Row] = []
    if controls:
        scored |= _beside(alignment, pairs, encoded, trust, seed, batch_size)
        full = trust.full and split == "test"
        if full:
            # These controls have to be trained, so they come with full trust only.
            refitted, missing = retrained(
                alignment, pairs, refit, seeds=trust.seeds, seed=seed, elsewhere=trust.wrong_site
            )
            for name, why in missing.items():
                log.info("Not run: %s: %s", name, why)
            scored |= {
                name: outcomes(other, encoded, batch_size=batch_size)
                for name, other in refitted.items()
            }
            spaces = spans(alignment, pairs, encoded, batch_size)
            found = parts(alignment, spaces.get("read", {}), seed, trust.random_subspaces)
            scored |= {
                name: outcomes(part, encoded, batch_size=batch_size) for name, part in found.items()
            }
            rows += angle_rows([alignment, *draws_of(refitted, "seeds")], pairs, run_facts, spaces)
            rows += divergence_rows(
                alignment, pairs, encoded, run_facts, trust.resamples, batch_size
            )
            rows += other_variables(alignment, pairs, split, run_facts, trust.resamples, batch_size)
            rows += abstraction_rows(alignment, pairs, split, run_facts, trust, batch_size)
        arms |= {name: found.right[None] for name, found in scored.items()}
        if "train" in set(pairs.dataset["split"]):
            arms["majority"] = majority(pairs, encoded)
        if alignment.inert and len(set(encoded.bases)) > 1:
            arms["inert_resampled"] = inert_resampled(
                alignment, encoded, seed=seed, batch_size=batch_size
            )
        for pool in DRAW_PREFIXES:
            draws = draws_of(arms, pool)
            if draws:
                # The alignment itself is one of the seeds.
                arms[pool] = np.stack(draws if pool != "seeds" else [arms[None], *draws], 1)
        # A rival is no other edit: it scores what the alignment does by other labels.
        arms |= {
            name: right
            for name, right in scored[None].right.items()
            if (name or "").startswith(RIVAL)
        }
    others = (
        off_target(alignment, encoded, batch_size) if controls and len(pairs.variables) > 1 else {}
    )
    figures = {
        "logit_difference": _pooled(scored, "difference"),
        "iia_forced": _pooled(scored, "forced"),
    }
    if controls:
        figures["cut"] = {None: cut(alignment, encoded, scored["vanilla"])}
    rows = (
        _rows(alignment, pairs, encoded, arms, figures, others, run_facts, trust.resamples) + rows
    )
    if controls:
        if answers is None:
            answers = scored["no_intervention"].right.get("base")
        if answers is not None:
            rows.append(
                task_accuracy(answers, describe(alignment, pairs, pairs.variables) | run_facts)
            )
        if split == "test" and "train" in set(pairs.dataset["split"]):
            common = {
                "controls": False,
                "batch_size": batch_size,
                "seed": seed,
                "experiment": experiment,
            }
            # The verdict reads the gap between training and test pairs.
            rows += where(evaluate(alignment, pairs, trust, split="train", **common), metric="iia")
    return rows


def _beside(
    alignment: Alignment,
    pairs: Pairs,
    encoded: EncodedPairs,
    trust: Trust,
    seed: int,
    batch_size: int,
) -> dict[str | None, Outcomes]:
    """Outcomes of the controls that need no training."""
    others = {"vanilla": vanilla(alignment)}
    if has_random_subspace(alignment):
        # `read_controls` draws with the same seeds, so it splits these very subspaces.
        for number in range(trust.random_subspaces):
            others[draw("random_subspace", number)] = random_subspace(
                alignment, seed * 1000 + number
            )
    components = pca_subspace(alignment, pairs, batch_size=batch_size)
    if components is not None:
        others["pca_subspace"] = components
    scored: dict[str | None, Outcomes] = {
        name: outcomes(other, encoded, batch_size=batch_size) for name, other in others.items()
    }
    # The batches decide which pair is another one's placebo, so their size is always the default.
    # A pair alone in its batch would be its own placebo. A pair of another variable has no
    # difference to give. Hence `apart`.
    scored |= {
        name: outcomes(other, encoded, apart=True)
        for name, other in placebos(alignment, seed).items()
    }
    return scored | {
        "no_intervention": outcomes(alignment, encoded, batch_size=batch_size, edited=False)
    }


def _pooled(scored: Mapping[str | None, Outcomes], field: str) -> dict[str | None, np.ndarray]:
    """A figure of each arm: float[n], or float[n, draws] of the pooled random subspaces."""
    arms = {name: getattr(arm, field) for name, arm in scored.items()}
    draws = draws_of(arms, "random_subspace")
    pooled = {name: figure for name, figure in arms.items() if pool_of(name) in (None, "seeds")}
    return pooled | ({"random_subspace": np.stack(draws, 1)} if draws else {})


def _rows(
    alignment: Alignment,
    pairs: Pairs,
    encoded: EncodedPairs,
    arms: Mapping[str | None, np.ndarray],
    figures: Mapping[str, Mapping[str | None, np.ndarray]],
    others: Mapping[str, np.ndarray],
    told: dict[str, Any],
    resamples: int,
) -> list[Row]:
    """The rows of each set of variables that pairs interchange."""
    rows = []
    for variables in dict.fromkeys(encoded.interchanged):
        chosen = np.array([names == variables for names in encoded.interchanged])
        facts = describe(alignment, pairs, variables) | told
        # A rival that says nothing of some of these pairs is left out.
        silent = {
            f"{RIVAL}{name}"
            for name, speaks in encoded.speaks.items()
            if not bool(speaks[torch.from_numpy(chosen)].all())
        }
        speaking = {name: right for name, right in arms.items() if name not in silent}
        rows += scores(speaking, encoded, chosen, facts, resamples)
        if len(variables) == 1:
            for name, right in others.items():
                # A variable's own edit is on target in its own pairs.
                if name not in variables:
                    rows += off_target_rows(name, right, encoded, chosen, facts, resamples)
        for metric, by_arm in figures.items():
            rows += readout(by_arm, encoded, chosen, facts, resamples, metric)
        rows += agreement_rows(alignment, encoded, variables, chosen, facts, resamples)
    return rows
