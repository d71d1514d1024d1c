"""Scoring an alignment beside its controls."""

from dataclasses import dataclass

import numpy as np
import torch

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.controls import random_subspace, vanilla
from iit.evaluation.off_target import off_target
from iit.evaluation.outcomes import answered, outcomes
from iit.evaluation.rows import describe, readout, scores, task_accuracy
from iit.intervened import ActivationStore
from iit.intervention import Autoencoder, Intervention, SoftGate
from iit.result import Row


@dataclass(frozen=True)
class Trust:
    """How much is run beside an alignment.

    random_subspaces: draws of a random subspace of equal rank.
    resamples: of the bootstrap behind every interval.
    """

    random_subspaces: int = 5
    resamples: int = 2000


TRUST = {"quick": Trust()}


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
) -> list[Row]:
    """Interchange intervention accuracy on one split, on all, on changing and on unchanging pairs, with 95% intervals clustered by
    base prompt.

    With pairs for several variables there are rows for each set of variables that pairs interchange ("a", "b", "a+b"), and the
    off-target matrix: `off_target/a` among the rows of b is a's edit where b's value is to be swapped.

    Beside the alignment (control None): `vanilla` (the sites' whole vectors), `random_subspace` (pooled over the draws) and
    `random_subspace/0`, …, `no_intervention`; `iia_difference` rows hold the alignment minus a control, pair by pair. Where the
    pairs know the right answers, `logit_difference` is the mean over changing pairs of logit(label) − logit(base's own answer), and
    `task_accuracy` is the share of all drawn prompts that the network answers, before
    filtering (where nothing was filtered, of the pairs' bases); `rival/NAME` is the alignment scored by what another causal model of the task says of the same pairs. Controls are
    scored on the same pairs; nothing is filtered again. Pairs without a variable (prompts alone) give the one row
    `task_accuracy` of the network itself, of these prompts.

    Raises ValueError for an unknown level of trust, and pairs of other variables.
    """
    if isinstance(trust, str):
        if trust not in TRUST:
            raise ValueError(f"trust={trust!r} is none of {sorted(TRUST)}.")
        trust = TRUST[trust]
    network = alignment.studied
    if network is None:
        raise ValueError("evaluate tokenizes the pairs: make the alignment with the LanguageModel from iit.load_network.")
    if not set(pairs.variables) <= set(alignment.variables):
        raise ValueError(
            f"The pairs are for variable {pairs.variable!r}, the alignment for {list(map(str, alignment.variables))}."
        )
    if alignment.store is None and pairs.variables:
        alignment.store = ActivationStore(alignment.network)
    encoded = EncodedPairs(pairs.split(split), pairs.variables, network)
    told = {"seed": seed, "split": split, "experiment": experiment}
    if not pairs.variables:
        right = outcomes(alignment, encoded, batch_size=batch_size, edited=False).right[None]
        return [task_accuracy(right, describe(alignment, pairs, ()) | told)]
    scored = outcomes(alignment, encoded, batch_size=batch_size)
    arms: dict[str | None, np.ndarray] = {None: scored.right[None]}
    differences: dict[str | None, np.ndarray] = {None: scored.difference}
    if controls:
        beside = {"vanilla": outcomes(vanilla(alignment), encoded, batch_size=batch_size)}
        if has_random_subspace(alignment):
            draws = [
                outcomes(random_subspace(alignment, seed * 1000 + draw), encoded, batch_size=batch_size)
                for draw in range(trust.random_subspaces)
            ]
            arms["random_subspace"] = np.stack([draw.right[None] for draw in draws], 1)
            differences["random_subspace"] = np.stack([draw.difference for draw in draws], 1)
            arms |= {f"random_subspace/{number}": draw.right[None] for number, draw in enumerate(draws)}
        beside["no_intervention"] = outcomes(alignment, encoded, batch_size=batch_size, edited=False)
        arms |= {name: found.right[None] for name, found in beside.items()}
        differences |= {name: found.difference for name, found in beside.items()}
        arms |= {f"rival/{name}": right for name, right in scored.right.items() if name is not None}
        arms |= {f"off_target/{name}": right for name, right in off_target(alignment, encoded, batch_size).items()}
    rows = []
    for variables in dict.fromkeys(encoded.interchanged):
        chosen = np.array([names == variables for names in encoded.interchanged])
        facts = describe(alignment, pairs, variables) | told
        silent = {f"rival/{name}" for name, speaks in encoded.speaks.items() if not bool(speaks[torch.from_numpy(chosen)].all())}
        if len(variables) > 1 or len(pairs.variables) == 1:
            silent |= {f"off_target/{name}" for name in pairs.variables}
        heard = {name: right for name, right in arms.items() if name not in {*silent, *(f"off_target/{v}" for v in variables)}}
        rows += scores(heard, encoded, chosen, facts, trust.resamples)
        rows += readout(differences, encoded, chosen, facts, trust.resamples)
    if controls:
        n = pairs.facts.get("drawn", {}).get(split)
        # Unfiltered pairs are the prompts as they were drawn.
        answers = np.arange(n) < pairs.facts["right"][split] if n else answered(alignment, encoded, batch_size=batch_size)
        if answers is not None:
            rows.append(task_accuracy(answers, describe(alignment, pairs, pairs.variables) | told))
    return rows


def has_random_subspace(alignment: Alignment) -> bool:
    """Whether random subspaces of equal rank can be drawn and differ from the trained ones: of every edit some coordinates are
    swapped, not all."""
    return all(map(_has_random_subspace, (edit.intervention for edit in alignment.edits.values())))


def _has_random_subspace(intervention: Intervention) -> bool:
    rank, gate = intervention.learned_rank(), intervention.gate
    if isinstance(gate, SoftGate):
        return 0 < gate.learned_rank() < len(gate.logits())
    if rank is None or intervention.width is None or isinstance(intervention.basis, Autoencoder):
        return False
    return rank < intervention.width
