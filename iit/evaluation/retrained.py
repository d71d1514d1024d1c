"""Controls that have to be trained as the alignment was: on shuffled labels, an untrained network, a wrong site, from other seeds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from iit.alignment import Alignment
from iit.data import Pairs
from iit.evaluation.controls import fresh
from iit.intervened import ActivationStore
from iit.network import untrained
from iit.network.components import blocks_of
from iit.site import Site

Refit = Callable[[Mapping[str, Alignment], Pairs, int], Any]
"""Trains alignments side by side: (name → alignment, pairs, seed)."""
SEEDS = "seed/"
RETRAINED = ("wrong_site", "shuffled_label", "untrained_network")


def retrained(
    alignment: Alignment, pairs: Pairs, refit: Refit, *, seeds: int, seed: int, elsewhere: Mapping[str, Any] | None
) -> tuple[dict[str, Alignment], dict[str, str]]:
    """({control: alignment, trained as the given one was}, {control: why there is none}).

    `seed/K`: other draws of the start, on the same pairs in the same order. `wrong_site`: the same intervention where the hypothesis does
    not place the variable. `shuffled_label`: the labels of the training and validation pairs are permuted. `untrained_network`: the
    same architecture with random weights and the trained network's prompts, which are not filtered again.

    Nothing is trained where the pairs lack what a training needs: a training and a validation split, and all of the alignment's variables.
    Where nothing of the alignment is trained (no parameter requires gradients) the labels have no part in it, and are not shuffled.
    """
    lacking = sorted({"train", "validation"} - set(pairs.dataset["split"])) + sorted(
        {str(v) for v in alignment.variables} - set(pairs.variables)
    )
    if lacking:
        return {}, dict.fromkeys(("seeds", *RETRAINED), f"the pairs lack {', '.join(lacking)}")
    made = {f"{SEEDS}{number}": fresh(alignment, seed + number) for number in range(1, seeds)}
    missing: dict[str, str] = {}
    moved = displaced(alignment, pairs, elsewhere)
    if moved is None:
        missing["wrong_site"] = "the site names no role and no layer; say where with trust.wrong_site"
    else:
        wrong = fresh(alignment, seed, moved=moved)
        try:
            wrong.check_apart()
            made["wrong_site"] = wrong
        except ValueError as error:
            missing["wrong_site"] = str(error)
    refit(made, pairs, seed)
    if any(p.requires_grad for p in alignment.parameters()):
        made["shuffled_label"] = fresh(alignment, seed)
        refit({"shuffled_label": made["shuffled_label"]}, shuffled(pairs, seed), seed)
    else:
        missing["shuffled_label"] = "nothing is trained, so the labels have no part in it"
    assert alignment.studied is not None
    try:
        other = untrained(alignment.studied, seed)
    except ValueError as error:
        missing["untrained_network"] = str(error)
        return made, missing
    random = fresh(alignment, seed, network=other)
    random.store = ActivationStore(other.model)
    refit({"untrained_network": random}, pairs, seed)
    return made | {"untrained_network": random}, missing


def displaced(alignment: Alignment, pairs: Pairs, elsewhere: Mapping[str, Any] | None) -> Callable[[Site], Site] | None:
    """Where the variable should not be: as `elsewhere` says; another role that all prompts have; half of the blocks away. None where the
    sites name neither."""
    if elsewhere:
        return lambda site: replace(site, **elsewhere)
    sites = [site for edit in alignment.edits.values() for site in edit.sites]
    taken = {role for site in sites for role in (site.position if isinstance(site.position, tuple) else (site.position,))}
    if any(isinstance(role, str) for role in taken):
        roles = _roles(pairs)
        others = [role for role in sorted(roles) if role not in taken]
        if others:
            return lambda site: replace(site, position=others[0])
    if all(site.layer is not None for site in sites):
        n = len(blocks_of(alignment.network)[1])
        return lambda site: replace(site, layer=((site.layer or 0) + n // 2) % n)
    return None


def _roles(pairs: Pairs) -> set[str]:
    """The roles, of one token's span or more, that every base and every source has."""
    columns = [c for c in pairs.dataset.column_names if c.partition("[")[0] in ("base_roles", "source_roles")]
    found = [
        {role for role, span in row.items() if span is not None} for column in columns for row in pairs.dataset[column] if row
    ]
    return set.intersection(*found) if found else set()


def shuffled(pairs: Pairs, seed: int) -> Pairs:
    """The labels of each split permuted among its pairs; which pairs are changing follows."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {name: list(pairs.dataset[name]) for name in ("split", "label")}
    labels = list(columns["label"])
    for split in dict.fromkeys(columns["split"]):  # a set of texts has another order in each process
        rows = [i for i, s in enumerate(columns["split"]) if s == split]
        for row, other in zip(rows, rng.permutation(rows).tolist(), strict=True):
            labels[row] = columns["label"][other]
    dataset = pairs.dataset.remove_columns("label").add_column("label", labels)  # pyright: ignore[reportCallIssue]
    if "base_answer" in pairs.dataset.column_names:
        changing = [label != own for label, own in zip(labels, pairs.dataset["base_answer"], strict=True)]
        dataset = dataset.remove_columns("changing").add_column("changing", changing)  # pyright: ignore[reportCallIssue]
    return replace(pairs, dataset=dataset, again=None)
