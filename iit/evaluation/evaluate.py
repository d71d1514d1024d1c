"""Scoring an alignment beside its controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.evaluation.controls import random_subspace, vanilla
from iit.evaluation.outcomes import outcomes
from iit.intervened import ActivationStore
from iit.result import Row, clustered_interval


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
    """Interchange intervention accuracy on one split, on all and on changing pairs, with 95% intervals clustered by base prompt.

    With pairs for several variables there are rows for each set of variables that pairs interchange ("a", "b", "a+b").

    Beside the alignment (control None): `vanilla` (the sites' whole vectors), `random_subspace` (pooled over the draws) and
    `random_subspace/0`, …, `no_intervention`; `iia_difference` rows hold the alignment minus a control, pair by pair. Where the
    pairs know the right answers, `logit_difference` is the mean over changing pairs of logit(label) − logit(base's own answer), and
    `task_accuracy` is the share of all drawn prompts that the network answers, before
    filtering; `rival/NAME` is the alignment scored by what another causal model of the task says of the same pairs. Controls are
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
        return [_task_accuracy(right, describe(alignment, pairs, ()) | told)]
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
    rows = []
    for variables in dict.fromkeys(encoded.interchanged):
        chosen = np.array([names == variables for names in encoded.interchanged])
        facts = describe(alignment, pairs, variables) | told
        silent = {f"rival/{name}" for name, speaks in encoded.speaks.items() if not bool(speaks[torch.from_numpy(chosen)].all())}
        heard = {control: right for control, right in arms.items() if control not in silent}
        rows += _rows(heard, encoded, chosen, facts, trust) + _readout(differences, encoded, chosen, facts, trust)
    if controls and split in pairs.facts.get("drawn", {}):
        drawn = np.arange(pairs.facts["drawn"][split])
        rows.append(_task_accuracy(drawn < pairs.facts["right"][split], describe(alignment, pairs, pairs.variables) | told))
    return rows


def has_random_subspace(alignment: Alignment) -> bool:
    """Whether a random subspace of equal rank differs from the trained one: every edit has a rank, below its width."""
    found = [edit.intervention for edit in alignment.edits.values()]
    return all(i.rank is not None and i.width is not None and i.rank < i.width for i in found)


def describe(alignment: Alignment, pairs: Pairs, variables: Sequence[str]) -> dict[str, Any]:
    """The columns of a row that tell which cell it belongs to; of several variables the first one's edit is described."""
    what = {
        "network": alignment.studied.name if alignment.studied else type(alignment.network).__name__,
        "task": pairs.task.name if pairs.task else "file",
    }
    if not variables:
        return dict.fromkeys(("variable", "method", "component", "layer", "head", "position", "rank")) | what
    edit = next(e for key, e in alignment.edits.items() if variables[0] in (key, *(e.intervention.blocks or ())))
    site = edit.sites[0]
    several = len(edit.sites) > 1
    return what | {
        "variable": "+".join(variables),
        "method": edit.intervention.name,
        "component": "+".join(str(s) for s in edit.sites) if several else site.component or f"{site.module}:{site.side}",
        "layer": None if several else site.layer,
        "head": None if several else _plain(site.head),
        "position": None if several else _plain(site.position),
        "rank": edit.intervention.rank,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _rows(
    arms: Mapping[str | None, np.ndarray], encoded: EncodedPairs, among: np.ndarray, facts: Mapping[str, Any], trust: Trust
) -> list[Row]:
    changing = encoded.changing.numpy() & among
    clusters = np.unique(encoded.bases, return_inverse=True)[1]
    rows = []
    for subset, chosen in (("all", among), ("changing", changing)):
        if not chosen.any():
            continue
        scored = {(control, "iia"): right[chosen].astype(float) for control, right in arms.items()}
        trained = scored[None, "iia"]
        for control, values in list(scored.items()):
            if control[0] in ("vanilla", "random_subspace", "no_intervention"):
                scored[control[0], "iia_difference"] = trained - (values if values.ndim == 1 else values.mean(1))
        for (control, metric), values in scored.items():
            interval = clustered_interval(values, clusters[chosen], paired=metric == "iia_difference", resamples=trust.resamples)
            rows.append(Row(**facts, subset=subset, control=control, metric=metric, **interval._asdict()))
    return rows


def _readout(
    arms: Mapping[str | None, np.ndarray], encoded: EncodedPairs, among: np.ndarray, facts: Mapping[str, Any], trust: Trust
) -> list[Row]:
    """The mean logit difference of changing pairs, where it is known."""
    chosen = encoded.changing.numpy() & among & ~np.isnan(arms[None])
    if not chosen.any():
        return []
    clusters = np.unique(encoded.bases, return_inverse=True)[1][chosen]
    rows = []
    for control, values in arms.items():
        interval = clustered_interval(values[chosen], clusters, bounded=False, resamples=trust.resamples)
        rows.append(Row(**facts, subset="changing", control=control, metric="logit_difference", **interval._asdict()))
    return rows


def _task_accuracy(right: np.ndarray, facts: Mapping[str, Any]) -> Row:
    interval = clustered_interval(right, np.arange(len(right)))
    return Row(**facts, subset="all", control=None, metric="task_accuracy", **interval._asdict())
