"""Controls that have to be trained as the alignment was: on shuffled labels, an untrained network,
a wrong site, from other seeds.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from iit.alignment import Alignment
from iit.data import EncodedPairs, Pairs
from iit.data.pairing import Paired
from iit.data.prompts import write
from iit.data.table import columns_of, dataset
from iit.evaluation.controls import fresh, lower_ranks
from iit.intervened import capture
from iit.intervened.store import ActivationStore
from iit.network import untrained
from iit.result.vocabulary import draw
from iit.site import Site

Refit = Callable[[Mapping[str, Alignment], Pairs, int], Any]
"""Trains alignments side by side: (name → alignment, pairs, seed)."""


def retrained(
    alignment: Alignment,
    pairs: Pairs,
    refit: Refit,
    *,
    seeds: int,
    seed: int,
    elsewhere: Mapping[str, Any] | None,
) -> tuple[dict[str, Alignment], dict[str, str]]:
    """({control: alignment, trained as the given one was}, {control: why there is none}).

    `seed/K`: other draws of the start, on the same pairs in the same order. `least_rank`, `rank/K`:
    see `lower_ranks`.
    `wrong_site`: the same intervention at a site that sees no token that the variable depends on
    (see `displaced` and `sees`). `shuffled_label`: the labels of the training and validation pairs
    are permuted. `untrained_network`: the same architecture with random weights and the trained
    network's prompts, which are not filtered again.

    Nothing is trained where the pairs lack what a training needs: a training and a validation
    split, and all of the alignment's variables. Where nothing of the alignment is trained (no
    parameter requires gradients) the labels have no part in it, and are not shuffled.
    """
    lacking = sorted({"train", "validation"} - set(pairs.dataset["split"])) + sorted(
        {str(v) for v in alignment.variables} - set(pairs.variables)
    )
    if lacking:
        return {}, {"what is trained again": f"the pairs lack {', '.join(lacking)}"}
    made = {draw("seeds", number): fresh(alignment, seed + number) for number in range(1, seeds)}
    made |= lower_ranks(alignment, pairs, seed)
    missing: dict[str, str] = {}
    try:
        wrong = fresh(alignment, seed, moved=partial(displaced, elsewhere=elsewhere))
        wrong.check_apart()
        if sees(wrong, pairs):
            where = elsewhere or "the first tokens"
            raise ValueError(
                f"at {where} stands what the variable depends on; set trust.wrong_site"
            )
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


def displaced(site: Site, elsewhere: Mapping[str, Any] | None) -> Site:
    """Where the variable should not be: as `elsewhere` says, else the prompt's first tokens."""
    n = len(site.position) if isinstance(site.position, tuple) else 1
    return replace(site, **(elsewhere or {"position": tuple(range(n))}))


def sees(alignment: Alignment, pairs: Pairs) -> bool:
    """Whether an alignment's sites follow the inputs that its variables depend on.

    These inputs are exchanged among test prompts while all others stay; then the activations
    change. Raises ValueError for pairs without a causal model.
    """
    task, network = pairs.task, alignment.studied
    if task is None or pairs.prompts is None or network is None:
        raise ValueError("the pairs have no causal model that says what the variable depends on")
    prompts = pairs.prompts("test", 100, 0)
    causes = set(map(str, alignment.variables))
    causes = causes.union(*map(task.model.ancestors, causes))
    inputs = dict(prompts.inputs)
    for name in causes.intersection(inputs):
        inputs[name] = [*inputs[name][1:], inputs[name][0]]
    sites = [
        site for edit in alignment.edits.values() for site in (*edit.sites, *edit.source_sites)
    ]
    seen = []
    for each in (prompts, write(task, inputs)):
        table = dataset(columns_of(Paired(each, {}, {}, each.answers, {}), "test"))
        base = EncodedPairs(table, (), network).batch(range(len(each)))["base"]
        seen.append(capture(network, base, sites))
    for site in sites:
        one, other = (activations[site] for activations in seen)
        # The same tokens in a batch of another length give other floats.
        near = 1e-4 * float(one.abs().max())
        if one.shape != other.shape or not torch.allclose(one, other, atol=near):
            return True
    return False


def shuffled(pairs: Pairs, seed: int) -> Pairs:
    """The labels of each split permuted among its pairs; which pairs are changing follows."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {name: list(pairs.dataset[name]) for name in ("split", "label")}
    labels = list(columns["label"])
    # a set of texts has another order in each process
    for split in dict.fromkeys(columns["split"]):
        rows = [i for i, s in enumerate(columns["split"]) if s == split]
        for row, other in zip(rows, rng.permutation(rows).tolist(), strict=True):
            labels[row] = columns["label"][other]
    dataset = _with_column(pairs.dataset, "label", labels)
    if "base_answer" in pairs.dataset.column_names:
        changing = [
            label != own for label, own in zip(labels, pairs.dataset["base_answer"], strict=True)
        ]
        dataset = _with_column(dataset, "changing", changing)
    return replace(pairs, dataset=dataset, again=None)


def _with_column(dataset: Any, name: str, values: list[Any]) -> Any:
    return dataset.remove_columns(name).add_column(name, values)
