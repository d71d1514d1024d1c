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
from iit.intervened.store import ActivationStore
from iit.result import Row, where
from iit.result.vocabulary import DRAWS, RIVAL, draw, draws_of, pool_of

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
    """Interchange intervention accuracy on one split, on all, on changing, on unchanging pairs and
    on each kind of pair, with 95%
    intervals clustered by base prompt, or by template where the pairs know it.

    With pairs for several variables there are rows for each set of variables that pairs interchange
    ("a", "b", "a+b"), and the off-target matrix: `off_target/a` among the rows of b is a's edit
    where b's value is to be swapped.

    Beside the alignment (control None): `vanilla` (the sites' whole vectors), `placebos`,
    `random_subspace` (pooled over the draws) and `random_subspace/0`, …, `pca_subspace` of equal
    rank, `majority` (always the most frequent training label), `no_intervention`; `inert_resampled`
    where the alignment declares inert parts; `iia_difference` rows hold the alignment minus a
    control, pair by pair. With the test split come rows of the training split. Where the pairs know
    the right answers, `logit_difference` is the mean over changing pairs of logit(label) −
    logit(base's own answer), and `task_accuracy` is the share of all drawn prompts that the network
    answers, before filtering (where nothing was filtered, of the pairs' bases); `rival/NAME` is the
    alignment scored by what another causal model of the task says of the same pairs. `iia_forced`
    rows score the label among the pair's own alternatives, and `cut` says whether the sites pass
    the source's own answer (see `Outcomes` and `cut`). Controls are scored on the same pairs;
    nothing is filtered again. Pairs without a variable (prompts alone) give the one row
    `task_accuracy` of the network itself, likewise.

    trust: "full" adds, on the test split, what `retrained` trains, the edit on the pairs of the
        task's other variables, and the diagnostics `read_part` (and those of the whole vector and
        of random subspaces), `null_part`, `divergence`, `principal_angle` and, in small networks,
        `abstraction_error`. `verdict` says what all of this comes to.
    refit: trains the controls as the alignment was trained; by default `fit` with its own defaults.

    Raises ValueError for an unknown level of trust, pairs of other variables, and labels that are
    none of the network's answers.
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
        alignment.store.check()
    elif pairs.variables:
        alignment.store = ActivationStore(alignment.network)
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
    check_labels(network, encoded)
    told = {"seed": seed, "split": split, "experiment": experiment}
    # Of a network that was trained since, what it answered before says nothing.
    is_the_same = pairs.facts.get("answered_by") in (None, network.fingerprint())
    n = pairs.facts.get("drawn", {}).get(split) if is_the_same else None
    # Unfiltered pairs are the prompts as they were drawn.
    answers = np.arange(n) < pairs.facts["right"][split] if n else None
    if not pairs.variables:
        if answers is None:
            answers = outcomes(alignment, encoded, batch_size=batch_size, edited=False).right[None]
        return [task_accuracy(answers, describe(alignment, pairs, ()) | told)]
    scored: dict[str | None, Outcomes] = {None: outcomes(alignment, encoded, batch_size=batch_size)}
    arms: dict[str | None, np.ndarray] = {None: scored[None].right[None]}
    rows: list[Row] = []
    if controls:
        scored |= _beside(alignment, pairs, encoded, trust, seed, batch_size)
        full = trust.full and split == "test"
        if full:
            again, missing = retrained(
                alignment, pairs, refit, seeds=trust.seeds, seed=seed, elsewhere=trust.wrong_site
            )
            for name, why in missing.items():
                log.info("Not run: %s: %s", name, why)
            scored |= {
                name: outcomes(other, encoded, batch_size=batch_size)
                for name, other in again.items()
            }
            spaces = spans(alignment, pairs, encoded, batch_size)
            found = parts(alignment, spaces.get("read", {}), seed, trust.random_subspaces)
            scored |= {
                name: outcomes(part, encoded, batch_size=batch_size) for name, part in found.items()
            }
            rows += angle_rows([alignment, *draws_of(again, "seeds")], pairs, told, spaces)
            rows += divergence_rows(alignment, pairs, encoded, told, trust.resamples, batch_size)
            rows += other_variables(alignment, pairs, split, told, trust.resamples, batch_size)
            rows += abstraction_rows(alignment, pairs, split, told, trust, batch_size)
        arms |= {name: found.right[None] for name, found in scored.items()}
        if "train" in set(pairs.dataset["split"]):
            arms["majority"] = majority(pairs, encoded)
        if alignment.inert and len(set(encoded.bases)) > 1:
            arms["inert_resampled"] = inert_resampled(
                alignment, encoded, seed=seed, batch_size=batch_size
            )
        for pool in DRAWS:
            draws = draws_of(arms, pool)
            if draws:
                arms[pool] = np.stack(draws if pool != "seeds" else [arms[None], *draws], 1)
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
    rows = _rows(alignment, pairs, encoded, arms, figures, others, told, trust.resamples) + rows
    if controls:
        if answers is None:
            answers = scored["no_intervention"].right.get("base")
        if answers is not None:
            rows.append(task_accuracy(answers, describe(alignment, pairs, pairs.variables) | told))
        if split == "test" and "train" in set(pairs.dataset["split"]):
            common = {
                "controls": False,
                "batch_size": batch_size,
                "seed": seed,
                "experiment": experiment,
            }
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
    """What is scored in the alignment's place without any training."""
    others = {"vanilla": vanilla(alignment)}
    if has_random_subspace(alignment):
        for number in range(trust.random_subspaces):
            others[draw("random_subspace", number)] = random_subspace(
                alignment, seed * 1000 + number
            )
    components = pca_subspace(alignment, pairs, batch_size=batch_size)
    if components is not None:
        others["pca_subspace"] = components
    found: dict[str | None, Outcomes] = {
        name: outcomes(other, encoded, batch_size=batch_size) for name, other in others.items()
    }
    # Which pair is another one's placebo hangs on the batches: these are always of the same size. A
    # pair alone in its batch would be its own, and one of another variable has no difference to
    # give.
    found |= {
        name: outcomes(other, encoded, apart=True)
        for name, other in placebos(alignment, seed).items()
    }
    return found | {
        "no_intervention": outcomes(alignment, encoded, batch_size=batch_size, edited=False)
    }


def _pooled(scored: Mapping[str | None, Outcomes], field: str) -> dict[str | None, np.ndarray]:
    """A figure of all arms, the random draws pooled."""
    arms = {name: getattr(one, field) for name, one in scored.items()}
    draws = draws_of(arms, "random_subspace")
    kept = {name: figure for name, figure in arms.items() if pool_of(name) in (None, "seeds")}
    return kept | ({"random_subspace": np.stack(draws, 1)} if draws else {})


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
    """Rows of each set of variables that pairs interchange."""
    rows = []
    for variables in dict.fromkeys(encoded.interchanged):
        chosen = np.array([names == variables for names in encoded.interchanged])
        facts = describe(alignment, pairs, variables) | told
        silent = {
            f"{RIVAL}{name}"
            for name, speaks in encoded.speaks.items()
            if not bool(speaks[torch.from_numpy(chosen)].all())
        }
        heard = {name: right for name, right in arms.items() if name not in silent}
        rows += scores(heard, encoded, chosen, facts, resamples)
        if len(variables) == 1:
            for name, right in others.items():
                if name not in variables:
                    rows += off_target_rows(name, right, encoded, chosen, facts, resamples)
        for metric, by_arm in figures.items():
            rows += readout(by_arm, encoded, chosen, facts, resamples, metric)
        rows += agreement_rows(alignment, encoded, variables, chosen, facts, resamples)
    return rows
