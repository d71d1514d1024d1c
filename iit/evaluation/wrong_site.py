"""The site where a variable should not be, and whether it sees the variable all the same."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from iit.alignment import Alignment
from iit.alignment.references import with_edits
from iit.data import Pairs
from iit.data.prompts import write
from iit.evaluation.scoring import encoded_prompts
from iit.intervened import capture
from iit.site import Site


def displaced(alignment: Alignment, elsewhere: Mapping[str, Any] | None) -> Alignment:
    """The same edits where the variable should not be.

    Arguments:
        elsewhere: what is different at each site; by default the position is the prompt's first
            tokens.

    Raises:
        ValueError: for sites the network lacks, or of another width.
    """

    def moved(site: Site) -> Site:
        # As many tokens as the site has positions; of a role, one.
        n = len(site.position) if isinstance(site.position, tuple) else 1
        return replace(site, **(elsewhere or {"position": tuple(range(n))}))

    edits = {}
    for key, edit in alignment.edits.items():
        sites = tuple(map(moved, edit.sites))
        source_sites = tuple(map(moved, edit.source_sites))
        edits[key] = replace(edit, sites=sites, source_sites=source_sites)
    return with_edits(alignment, edits)


def sees(alignment: Alignment, pairs: Pairs) -> bool:
    """Whether an alignment's sites follow the inputs that its variables depend on.

    Among test prompts these inputs are exchanged while all others stay. Sites that follow them then
    have other activations.

    Raises:
        ValueError: for pairs without a causal model.
    """
    sampler, network = pairs.sampler, alignment.studied
    if sampler is None or network is None:
        raise ValueError("the pairs have no causal model that says what the variable depends on")
    task, prompts = sampler.task, sampler.prompts("test", 100, 0)
    causes = set(map(str, alignment.variables))
    causes = causes.union(*map(task.model.ancestors, causes))
    inputs = dict(prompts.inputs)
    for name in causes.intersection(inputs):
        # Every prompt gets the value of the next one.
        inputs[name] = [*inputs[name][1:], inputs[name][0]]
    sites = []
    for edit in alignment.edits.values():
        sites += [*edit.sites, *edit.source_sites]
    runs = []
    for version in (prompts, write(task, inputs)):
        batch = encoded_prompts(version, network).batch(range(len(version)))
        runs.append(capture(network, batch["base"], sites))
    for site in sites:
        # The same tokens in a batch of another length give other floats.
        before, after = (activations[site] for activations in runs)
        near = 1e-4 * float(before.abs().max())
        if before.shape != after.shape or not torch.allclose(before, after, atol=near):
            return True
    return False
