"""Cells that share a pass give what each gives alone."""

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from iit.intervened import ActivationStore, together
from tests.families import DECODERS, make, prompts
from tests.seeds import shifted


def cell(network, intervention, *sites):
    width = iit.site.resolve(network, sites[0]).width
    return IntervenedModel(network, {"x": Edit(sites, intervention(width))})


def cells_of(network):
    torch.manual_seed(shifted(0))

    def low(rank):
        return lambda width: iit.LowRankRotatedSpaceIntervention(width, rank)

    zero = Site("block_output", layer=0, position="x")
    return [
        cell(network, low(2), zero),
        cell(network, low(3), zero),
        cell(
            network,
            lambda width: iit.RotatedSpaceIntervention(width, blocks={"x": 3, "y": width - 3}),
            zero,
        ),
        cell(network, lambda width: iit.VanillaIntervention(), zero),
        cell(network, low(2), Site("mlp_output", layer=1, position="x")),
        cell(network, low(2), zero, Site("mlp_output", layer=1, position=-1)),
        cell(network, low(2), Site("block_output", layer=0, position=-1)),
        cell(network, low(1), Site("embedding_output", position="x")),
    ]


@pytest.mark.parametrize("family", DECODERS)
def test_together_equals_one_by_one(family):
    network = make(family)
    base, source = prompts((12, 7, 12), 1), prompts((12, 7, 12), 2)
    for batch, x in ((base, [8, 2, 5]), (source, [5, 3, 0])):
        batch["positions"] = {"x": torch.tensor(x)}
    base["answer"] = torch.tensor([[9, 11], [8, -100], [7, 12]])
    cells = cells_of(network)
    del cells[2]  # its variables are others
    expected, gradients = [], []
    for one in cells:
        logits = one.answer_logits(base, source)
        expected.append(logits.detach())
        if any(p.requires_grad for p in one.parameters()):
            logits.square().mean().backward()
        gradients.append([p.grad for p in one.parameters()])
    store = ActivationStore(network)
    for one in cells:
        one.store = store
    for _ in range(2):  # alone, to be compared with whole runs; then together
        for one in cells:
            one.zero_grad()
        found = together(cells, base, source)
        torch.stack([logits.square().mean() for logits in found]).sum().backward()
    for one, logits, wanted, grads in zip(cells, found, expected, gradients, strict=True):
        torch.testing.assert_close(logits.detach(), wanted, atol=2e-5, rtol=2e-5)
        for parameter, grad in zip(one.parameters(), grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad, atol=1e-5, rtol=1e-4)


def test_what_coincides_is_run_once():
    network = make("llama")
    rows = []
    projection = network.model.layers[1].self_attn.q_proj
    real = projection.forward
    projection.forward = lambda x: rows.append(tuple(x.shape[:2])) or real(x)
    base, source = prompts((9, 6), 1), prompts((9, 6), 2)
    for batch in (base, source):
        batch["positions"] = {"x": torch.tensor([3, 2])}
    cells, store = cells_of(network), ActivationStore(network)
    for one in cells:
        one.store = store
    for _ in range(2):
        rows.clear()
        together(cells[:2] + cells[3:4] + cells[6:7], base, source)
    assert rows == [(6, 6), (2, 1)], (
        "three cells at one site, two examples each; one at the last token"
    )


def test_blocks_and_flags_of_several_cells_stay_apart():
    network = make("llama")
    base, source = prompts((9, 6), 1), prompts((9, 6), 2)
    for batch in (base, source):
        batch["positions"] = {"x": torch.tensor([3, 2])}
    made = [cells_of(network)[2] for _ in range(2)]
    torch.nn.init.normal_(made[1].interventions[0].basis.weight)
    active = {"y": torch.tensor([True, False]), "x": torch.tensor([False, True])}
    sources = {"x": source, "y": prompts((9, 6), 3) | {"positions": source["positions"]}}
    expected = [one.answer_logits(base, sources, active) for one in made]
    store = ActivationStore(network)
    for one in made:
        one.store = store
    for _ in range(2):
        found = together(made, base, sources, active)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])
