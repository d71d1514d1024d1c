"""What does not fit is refused before the network runs on the base."""

import pytest
import torch
from torch import nn

import iit
from iit import Edit, IntervenedModel, Site
from tests.families import prompts

BLOCK = Site("block_output", layer=0, position="r")


def test_sites_and_source_sites_are_equally_wide(tiny_llama):
    narrow = Site("query_output", layer=0, head=1, position=1)
    with pytest.raises(
        ValueError, match=r"has width 16, its source site query_output\[0\]\.head\[1\] @ 1 4"
    ):
        IntervenedModel(
            tiny_llama,
            {
                "x": Edit(
                    Site("block_output", layer=0, position=1), iit.VanillaIntervention(), narrow
                )
            },
        )
    other = Site("query_output", layer=1, head=3, position=1)
    IntervenedModel(tiny_llama, {"x": Edit(narrow, iit.VanillaIntervention(), other)})(
        prompts(), prompts()
    )


def joint(network, site=BLOCK, width=32):
    return IntervenedModel(
        network, {"x": Edit(site, iit.LowRankRotatedSpaceIntervention(width, 3), joint=True)}
    )


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        (
            [[1, 2], [3, -100]],
            "must select as many positions in every example; here it selects 1 to 2",
        ),
        (
            [[1, 2, 3], [1, 2, 3]],
            "selects 3 positions of width 16; its intervention was made for width 32",
        ),
        ([1, 2], "selects 1 positions of width 16"),
    ],
)
def test_joint_spans_fit_before_anything_runs(tiny_llama, positions, said):
    base, source = (
        prompts((6, 6), seed) | {"positions": {"r": torch.tensor(positions)}} for seed in (1, 2)
    )
    runs = []
    handle = tiny_llama.model.embed_tokens.register_forward_hook(lambda *_: runs.append(1))
    with pytest.raises(ValueError, match=said):
        joint(tiny_llama)(base, source)
    handle.remove()
    assert not runs


def test_joint_spans_of_inactive_examples_may_be_absent(tiny_llama):
    base, source = (
        prompts((6, 6), seed) | {"positions": {"r": torch.tensor([[1, 2], [-100, -100]])}}
        for seed in (1, 2)
    )
    edited = joint(tiny_llama)
    found = edited(base, source, {"x": torch.tensor([True, False])}).logits
    torch.testing.assert_close(
        found[1], tiny_llama(base["input_ids"]).logits[1], atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(found[0], tiny_llama(base["input_ids"]).logits[0], atol=1e-3)
    torch.testing.assert_close(
        edited(base, source, {"x": False}).logits, tiny_llama(base["input_ids"]).logits
    )


def test_joint_over_every_position(tiny_llama):
    whole = joint(tiny_llama, Site("block_output", layer=0), 6 * 16)
    whole(prompts((6, 6), 1), prompts((6, 6), 2))
    with pytest.raises(
        ValueError, match="selects 5 positions of width 16; its intervention was made for width 96"
    ):
        whole(prompts((5, 5), 1), prompts((5, 5), 2))
    with pytest.raises(ValueError, match="here it selects 4 to 6"):
        whole(prompts((6, 4), 1), prompts((6, 4), 2))


def test_joint_sites_are_positions_of_one_place():
    sites = [Site("block_output", layer=layer, position=1) for layer in (0, 1)]
    with pytest.raises(
        ValueError, match=r"A joint edit has one site.*2 were given.*the later depends on"
    ):
        Edit(sites, iit.LowRankRotatedSpaceIntervention(32, 3), joint=True)


@pytest.mark.parametrize(
    ("shape", "position", "expected"),
    [
        ((2, 1, 8), 1, "2, 1, 16"),
        ((3, 1, 16), 1, "2, 1, 16"),
        ((2, 5, 16), None, "2, 6, 16"),
        ((2, 16), 1, "2, 1, 16"),
    ],
)
def test_given_activations_fit(tiny_llama, shape, position, expected):
    runs = []
    handle = tiny_llama.model.embed_tokens.register_forward_hook(lambda *_: runs.append(1))
    edited = IntervenedModel(
        tiny_llama,
        {"x": Edit(Site("block_output", layer=0, position=position), iit.VanillaIntervention())},
    )
    with pytest.raises(ValueError, match=rf"expected \[{expected}\] for site"):
        edited(prompts((6, 6)), {"x": torch.zeros(shape)})
    handle.remove()
    assert not runs


def test_given_activations_fit_where_there_are_no_tokens():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    edited = IntervenedModel(
        network, {"x": Edit(Site(module="0", position=0), iit.VanillaIntervention())}
    )
    good = {Site(module="0", position=0): torch.ones(5, 1, 4)}
    torch.testing.assert_close(
        edited(torch.randn(5, 3), iit.Activations(good)), network[1](torch.ones(5, 4))
    )
    for shape in ((5, 2, 4), (5, 1, 3), (4, 1, 4)):
        bad = iit.Activations({Site(module="0", position=0): torch.ones(shape)})
        with pytest.raises(ValueError, match=r"expected \[5, 1, 4\]"):
            edited(torch.randn(5, 3), bad)
