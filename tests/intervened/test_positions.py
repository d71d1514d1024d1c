import pytest
import torch
import transformers as t
from torch import nn

import iit
from iit import Edit, IntervenedModel, Site
from tests.families import SIZES, make, prompts
from tests.seeds import shifted


def roles(batch, **positions):
    return batch | {"positions": {name: torch.tensor(index) for name, index in positions.items()}}


def test_several_roles_are_one_site(tiny_llama):
    base = roles(prompts((6, 4), 1), s1=[1, 0], s2=[[-1, -100], [-100, 2]])
    source = roles(prompts((5, 5), 2), s1=[2, 4], s2=[0, 3])
    together = Site("block_output", layer=0, position=["s1", "s2"])
    assert str(together) == "block_output[0] @ ['s1', 's2']"
    assert together == Site("block_output", layer=0, position=("s1", "s2"))
    apart = [Site("block_output", layer=0, position=role) for role in ("s1", "s2")]
    acts = iit.capture(tiny_llama, base, [together, *apart])
    assert torch.equal(acts[together], torch.cat([acts[site] for site in apart], 1))
    one = IntervenedModel(tiny_llama, {together: iit.VanillaIntervention()})(base, source).logits
    two = IntervenedModel(tiny_llama, {"x": Edit(apart, iit.VanillaIntervention())})(
        base, source
    ).logits
    torch.testing.assert_close(one, two)


def test_several_roles_can_be_joint(tiny_llama, tmp_path):
    base, source = (roles(prompts((6, 6), seed), s1=[1, 2], s2=[3, 5]) for seed in (1, 2))
    site, intervention = (
        Site("block_output", layer=0, position=["s2", "s1"]),
        iit.LowRankRotatedSpaceIntervention(32, 5),
    )
    edited = IntervenedModel(tiny_llama, {"x": Edit(site, intervention, joint=True)})
    h, s = (iit.capture(tiny_llama, batch, site)[site] for batch in (base, source))
    new = intervention(h.flatten(1).unsqueeze(1), s.flatten(1).unsqueeze(1)).reshape(2, 2, 16)
    expected = IntervenedModel(tiny_llama, {site: iit.VanillaIntervention()})(
        base, iit.Activations({site: new})
    ).logits
    torch.testing.assert_close(edited(base, source).logits, expected, atol=1e-5, rtol=1e-5)
    edited.save_pretrained(tmp_path / "saved")
    again = IntervenedModel.from_pretrained(tmp_path / "saved", tiny_llama)
    assert again.edits["x"].sites == (site,)
    torch.testing.assert_close(again(base, source).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("position", "given", "said"),
    [
        (["s1", "s2"], {"s1": [1, 1]}, "no role 's2'"),
        (
            ["s1", "s2"],
            {"s1": [1, 1], "s2": [[2, 3], [2, -100]]},
            "each must be one token; 's2' has more",
        ),
        (["s1", "s2"], {"s1": [1, 1], "s2": [2, 1]}, "occurs twice in example 1"),
        (["s1", "s2"], {"s1": [1, 1], "s2": [2, -100]}, "'s2' is absent in example 1"),
        ("s1", {"s1": [[1, 1], [2, 3]]}, "occurs twice in example 0"),
    ],
)
def test_roles_that_do_not_fit(tiny_llama, position, given, said):
    site = Site("block_output", layer=0, position=position)
    with pytest.raises(ValueError, match=said):
        iit.capture(tiny_llama, roles(prompts((6, 6)), **given), site)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def test_without_tokens_positions_are_checked_when_it_runs():
    torch.manual_seed(shifted(0))
    network, x = Recurrent(), torch.randn(2, 5, 3)
    states = network(x).detach()
    for position, index in ((-2, [3, 3]), ([0, -1], [[0, 4], [0, 4]])):
        site = Site(module="rnn", position=position)
        found = iit.capture(network, x, site)[site]
        torch.testing.assert_close(
            found,
            torch.stack(
                [s[torch.tensor(i)].reshape(-1, 4) for s, i in zip(states, index, strict=True)]
            ),
        )
    site = Site(module="rnn", position="step")
    found = iit.capture(network, roles({"x": x}, step=[[-1, -100], [2, 1]]), site)[site]
    torch.testing.assert_close(found[0], torch.stack([states[0, 4], torch.zeros(4)]))
    torch.testing.assert_close(found[1], states[1, [2, 1]])
    edited = IntervenedModel(network, {site: iit.ZeroIntervention()})(
        roles({"x": x}, step=[[-1, -100], [2, 1]])
    )
    assert (edited.abs().sum(-1) == 0).tolist() == [
        [False] * 4 + [True],
        [False, True, True, False, False],
    ]
    for given, said in (
        ({"step": [5, 1]}, "position 5 is outside example 0.*5 positions"),
        ({"step": [0, -6]}, "position -6 is outside"),
    ):
        with pytest.raises(ValueError, match=said):
            iit.capture(network, roles({"x": x}, **given), site)
    with pytest.raises(ValueError, match="'step' is absent in example 0"):
        iit.capture(network, roles({"x": x}, step=[-100, 1]), site)


@pytest.mark.parametrize(
    ("family", "path", "component"),
    [
        ("opt", "model.decoder.layers.0.fc2", "mlp_output"),
        ("mixtral", "model.layers.0.mlp.experts", "mlp_output"),
    ],
)
@pytest.mark.parametrize("position", [0, [1, -1], None])
def test_modules_that_see_tokens_in_one_row(family, path, component, position):
    """(batch·tokens, width): a position is the prompt's, not the first tokens of all."""
    network, base, source = make(family), prompts((7, 5)), prompts((7, 5), seed=2)
    module, known = (
        Site(module=path, position=position),
        Site(component, layer=0, position=position),
    )
    found = iit.capture(network, base, [module, known])
    torch.testing.assert_close(found[module], found[known], atol=0, rtol=0)
    logits = [
        iit.IntervenedModel(network, {site: iit.VanillaIntervention()})(base, source).logits[
            base["attention_mask"].bool()
        ]
        for site in (module, known)
    ]
    torch.testing.assert_close(*logits, atol=0, rtol=0)


@pytest.mark.parametrize("lengths", [(7, 7), (7, 5)])
def test_pooled_states_are_one_whole(lengths, tmp_path):
    torch.manual_seed(shifted(0))
    network = t.BertModel(t.BertConfig(**SIZES)).eval().requires_grad_(False)
    base, source, pooler = prompts(lengths), prompts(lengths, seed=2), Site(module="pooler")
    edited = iit.IntervenedModel(network, {pooler: iit.VanillaIntervention()})
    expected = network(**source).pooler_output
    torch.testing.assert_close(edited(base, source).pooler_output, expected)
    torch.testing.assert_close(
        edited(base, iit.capture(network, source, pooler)).pooler_output, expected
    )
    torch.testing.assert_close(iit.capture_dataset(network, [source], pooler)[pooler], expected)
    with pytest.raises(ValueError, match=r"pooler:output @ 0.*Leave `position` out"):
        iit.capture(network, base, Site(module="pooler", position=0))


def test_activations_know_how_many_positions_they_hold():
    network, base, site = make("llama"), prompts((7, 5)), Site("block_output", layer=0)
    edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
    with pytest.raises(
        ValueError, match=r"example 0: .* 7 positions in the base and 5 in the source"
    ):
        edited(base, iit.capture(network, prompts((5, 7)), site))
    edited(base, iit.capture(network, prompts((7, 5), seed=2), site))
