"""Components, generation and resuming inside of a wrapper; widths from one run; sites at the head;
caches of a network's own.
"""

from functools import partial

import pytest
import torch
from torch import nn

import iit
from iit.alignment import one
from iit.intervened import ActivationStore
from iit.site import resolve
from tests.families import make, prompts


class Tuner(nn.Module):
    """As peft's LoraModel: the network is its `model`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class Wrapper(Tuner):
    """As peft's PeftModel: `base_model.model`; it generates by the network inside."""

    def __init__(self, model):
        nn.Module.__init__(self)
        self.base_model = Tuner(model)

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.base_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def generate(self, **kwargs):
        return self.base_model.model.generate(**kwargs)

    def __getattr__(self, name):
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return getattr(nn.Module.__getattr__(self, "base_model"), name)


class Plain(nn.Module):
    """One's own: it passes no cache on."""

    def __init__(self, model):
        super().__init__()
        self.lm = model

    def forward(self, input_ids, attention_mask):
        return self.lm(input_ids=input_ids, attention_mask=attention_mask).logits


COMPONENTS = ["block_output", "mlp_activation", "query_output"]


@pytest.mark.parametrize("wrap", [Wrapper, Plain])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_components_inside_a_wrapper(wrap, family):
    network = make(family)
    outside = wrap(network).eval()
    base, source = prompts(), prompts(seed=3)
    for component in COMPONENTS:
        site = iit.Site(component, layer=1, position="last")
        assert resolve(outside, site).module is resolve(network, site).module
        edited, right = (
            iit.IntervenedModel(n, {site: iit.VanillaIntervention()}) for n in (outside, network)
        )
        want = right.answer_logits(base, source)
        for store in (None, ActivationStore(outside)):
            edited.store = store
            torch.testing.assert_close(
                edited.answer_logits(base, source), want, atol=1e-5, rtol=1e-5
            )
        assert wrap is Plain or len(store), "it resumes"
    if wrap is Wrapper:
        options = {"max_new_tokens": 3, "do_sample": False, "scope": "all"}
        assert torch.equal(
            edited.generate(base, source, **options), right.generate(base, source, **options)
        )


def test_several_networks_in_one_are_not_guessed():
    several = nn.ModuleList([make("llama"), make("gpt2")])
    with pytest.raises(ValueError, match="holds several transformers models"):
        resolve(several, iit.Site("block_output", layer=0))


MODULES = {
    "model.layers.0": 16,
    "model.norm": 16,
    "model.layers.0.mlp.act_fn": 24,
    "model": 16,
    "": 60,
    "model.rotary_emb": 4,
}


@pytest.mark.parametrize("module", MODULES)
def test_a_width_comes_from_one_run(module):
    made = partial(iit.LowRankRotatedSpaceIntervention, rank=1)
    alignment = one(make("llama"), "v", iit.Site(module=module), made)
    assert alignment.edits["v"].intervention.width == MODULES[module]


def test_a_width_may_be_said():
    network = nn.Sequential(nn.Conv1d(2, 3, 1))
    with pytest.raises(ValueError, match=r"first run failed.*\+intervention.width=NUMBER"):
        one(network, "v", iit.Site(module=""), partial(iit.LowRankRotatedSpaceIntervention, rank=1))
    alignment = one(
        network,
        "v",
        iit.Site(module=""),
        partial(iit.LowRankRotatedSpaceIntervention, rank=1, width=3),
    )
    assert alignment.edits["v"].intervention.width == 3
    with pytest.raises(ValueError, match="as wide as its batch is long"):
        one(
            make("llama", attention="eager"),
            "v",
            iit.Site("attention_weight", layer=0),
            partial(iit.VanillaIntervention),
        )


@pytest.mark.parametrize("module", ["lm_head", ""])
@pytest.mark.parametrize("position", ["last", 2, None])
def test_the_head_is_a_site(module, position):
    network = make("llama")
    base, source = prompts((7, 5)), prompts((7, 5), 3)
    edited = iit.IntervenedModel(
        network, {iit.Site(module=module, position=position): iit.VanillaIntervention()}
    )
    want = network(**(base if position == 2 else source)).logits[[0, 1], [6, 4]]
    torch.testing.assert_close(
        edited.answer_logits(base, source).squeeze(1), want, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("cache", ["hybrid", "static", "offloaded", "sliding_window"])
def test_a_networks_own_wish_for_a_cache_is_not_followed(cache):
    network, plain = make("gemma2"), make("gemma2")
    network.generation_config.cache_implementation = cache
    site, options = (
        iit.Site("block_output", layer=0, position="last"),
        {"max_new_tokens": 3, "do_sample": False},
    )
    edited, right = (
        iit.IntervenedModel(n, {site: iit.VanillaIntervention()}) for n in (network, plain)
    )
    want = right.generate(prompts(), prompts(seed=3), **options)
    assert torch.equal(edited.generate(prompts(), prompts(seed=3), **options), want)
    assert network.generation_config.cache_implementation == cache
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        edited.generate(prompts(), prompts(seed=3), cache_implementation="static", **options)


def test_compiled_networks_are_told_how_they_were_compiled():
    cases = []
    for where in (lambda n: n, lambda n: n.model.layers[0]):
        network = make("llama")
        where(network).compile(backend="eager")
        cases.append((network, "in place: load it again"))
    network = make("llama")
    network.forward = torch.compile(network.forward, backend="eager")
    cases.append((network, "in place: load it again"))
    cases.append((torch.compile(make("llama"), backend="eager"), "_orig_mod"))
    for network, said in cases:
        with pytest.raises(ValueError, match=said):
            resolve(network, iit.Site(module=""))
