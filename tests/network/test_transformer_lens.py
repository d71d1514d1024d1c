"""Bridges of TransformerLens: here one in the real layout, and in a long test the real ones."""

import copy

import pytest
import torch
from torch import nn

import iit
from iit.intervened import ActivationStore
from tests.families import make, prompts
from tests.oracles import ORACLES
from tests.patching.contrasts import last_logits, raw_activation, swapped
from tests.peers.environments import OURS, environment, run_checks

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
AT = 3


class HookPoint(nn.Identity):
    """Does nothing, and is hooked."""


class Bridged(nn.Module):
    """A module that stands in the place of another, which it runs between two hook points.

    It gives and takes the attributes of the module that it wraps, as TransformerLens's do.
    """

    def __init__(self, original, **parts):
        super().__init__()
        self.hook_in, self.hook_out = HookPoint(), HookPoint()
        # `add_module` would find the names among the attributes of the module that is wrapped.
        self._modules.update({"_original_component": original, **parts})

    def __getattr__(self, name):
        modules = vars(self)["_modules"]
        return modules[name] if name in modules else getattr(modules["_original_component"], name)

    def __setattr__(self, name, value):
        original = vars(self).get("_modules", {}).get("_original_component")
        if original is None or not hasattr(original, name):
            super().__setattr__(name, value)
        else:
            setattr(original, name, value)

    def forward(self, *args, **kwargs):
        if args:
            args = (self.hook_in(args[0]), *args[1:])
        else:
            kwargs["hidden_states"] = self.hook_in(kwargs["hidden_states"])
        return self.leaving(self._original_component(*args, **kwargs))

    def leaving(self, output):
        if isinstance(output, tuple):
            return self.hook_out(output[0]), *output[1:]
        return self.hook_out(output)


class Attention(Bridged):
    """GPT-2's attention, computed anew from separate queries, keys and values."""

    def __init__(self, original):
        super().__init__(original, hook_pattern=HookPoint(), hook_rot_q=HookPoint())
        fused = original.c_attn
        for number, name in enumerate("qkv"):
            part = nn.Linear(fused.nx, fused.nx)
            part.weight = nn.Parameter(fused.weight.chunk(3, 1)[number].T.clone())
            part.bias = nn.Parameter(fused.bias.chunk(3)[number].clone())
            self._modules[name] = Bridged(part)
        self._modules["o"] = original.c_proj = Bridged(original.c_proj)

    def projections(self):
        return self.q, self.k, self.v

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        # As in the package: every run leaves something on the module.
        self.seen = h = self.hook_in(hidden_states)
        # [batch, head, position, width]
        q, k, v = (part(h).unflatten(-1, (4, -1)).transpose(1, 2) for part in self.projections())
        scores = self.hook_rot_q(q) @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e9)
        if attention_mask is not None:
            scores = scores + attention_mask
        z = self.hook_pattern(nn.functional.softmax(scores, -1)) @ v
        return self.leaving((self.o(z.transpose(1, 2).flatten(2)), None))


class Bridge(nn.Module):
    """Holds the network outside of registration, and puts its modules into it."""

    def __init__(self, model):
        super().__init__()
        self.__dict__["original_model"] = model
        inner = model.transformer
        self.embed = inner.wte = Bridged(inner.wte)
        blocks = []
        for block in inner.h:
            out = Bridged(block.mlp.c_proj)
            block.mlp.c_proj = out
            block.attn, block.mlp = Attention(block.attn), Bridged(block.mlp, out=out)
            blocks.append(Bridged(block, attn=block.attn, mlp=block.mlp))
        self.blocks = inner.h = nn.ModuleList(blocks)
        for block in blocks:
            # An alias is an attribute, and no registered module.
            vars(block)["hook_resid_post"] = block.hook_out
            vars(block.attn)["hook_z"] = block.attn.o.hook_in
        self.ln_final = inner.ln_f = Bridged(inner.ln_f)
        self.unembed = model.lm_head = Bridged(model.lm_head)

    def __getattr__(self, name):
        modules = vars(self)["_modules"]
        return modules[name] if name in modules else getattr(vars(self)["original_model"], name)

    def parameters(self, recurse=True):
        return self.original_model.parameters(recurse)

    def forward(self, input, return_type="logits", attention_mask=None, **kwargs):
        return self.original_model(input, attention_mask=attention_mask, **kwargs).logits


@pytest.fixture(scope="module")
def both():
    network = make("gpt2", attention="eager")
    twin = copy.deepcopy(network)
    return Bridge(network), twin


def edited(network, site):
    return iit.IntervenedModel(network, {site: iit.VanillaIntervention()})


SITES = {
    "block_output": ["blocks.0.hook_out", "blocks.0.hook_resid_post"],
    "attention_value_output": ["blocks.0.attn.o.hook_in", "blocks.0.attn.hook_z"],
    "query_output": ["blocks.0.attn.q.hook_out", "blocks.0.attn.hook_rot_q"],
    "value_output": ["blocks.0.attn.v.hook_out"],
    "attention_output": ["blocks.0.attn.hook_out"],
    "mlp_output": ["blocks.0.mlp.hook_out", "blocks.0.mlp.out.hook_out"],
}


@pytest.mark.parametrize("component", SITES)
def test_components_and_hook_points_are_those_of_the_network(both, component):
    """Also where the bridge has several names for a module, and where its projections are apart."""
    bridge, twin = both
    base, source = prompts(), prompts(seed=3)
    columns = ORACLES["gpt2"][component][2]
    theirs = raw_activation(twin, "gpt2", component, 0, source, columns)
    hook = ("gpt2", component, 0, columns, swapped(theirs, AT))
    expected = last_logits(twin, base, [hook])
    assert not torch.allclose(expected, last_logits(twin, base), **CLOSE)

    sites = [iit.Site(component, layer=0, position=AT)]
    sites += [iit.Site(module=name, position=AT) for name in SITES[component]]
    for site in sites:
        found = iit.capture(bridge, source, site)[site]
        torch.testing.assert_close(found[:, 0], theirs[:, AT], **CLOSE, msg=str(site))
        model = edited(bridge, site)
        torch.testing.assert_close(model.answer_logits(base, source)[:, 0], expected, **CLOSE)
        last = base["attention_mask"].sum(1) - 1
        whole = model(base, source)[torch.arange(2), last]
        torch.testing.assert_close(whole, expected, **CLOSE)


def test_heads_attention_weights_and_generation(both):
    bridge, twin = both
    base, source = prompts(), prompts(seed=3)
    for site in (
        iit.Site("attention_value_output", layer=0, head=2, position=AT),
        iit.Site("key_output", layer=0, head=[0, 3], position=AT),
        iit.Site("attention_weight", layer=0, head=1, position=AT),
        iit.Site("final_norm_output", position=-1),
        iit.Site("embedding_output", position=AT),
    ):
        torch.testing.assert_close(
            edited(bridge, site).answer_logits(base, source),
            edited(twin, site).answer_logits(base, source),
            **CLOSE,
        )
    options = {"max_new_tokens": 3, "do_sample": False, "use_cache": False, "scope": "all"}
    site = iit.Site("block_output", layer=0, position="last")
    ours, theirs = (edited(net, site).generate(base, source, **options) for net in both)
    assert torch.equal(ours, theirs)


def test_a_run_with_a_store_is_whole_and_leaves_everything_as_it_was(both):
    bridge, twin = both
    base, source = prompts(), prompts(seed=3)
    model = edited(bridge, iit.Site("block_output", layer=1, position="last"))
    expected = model.answer_logits(base, source)
    model.store = ActivationStore(bridge)
    torch.testing.assert_close(model.answer_logits(base, source), expected)
    assert not len(model.store)
    for module in bridge.original_model.modules():
        assert not module._forward_hooks
        assert "forward" not in vars(module)
    logits = iit.IntervenedModel(bridge, {})(base)
    torch.testing.assert_close(logits[:, -1][:1], last_logits(twin, base)[:1], **CLOSE)


def test_what_a_bridge_cannot_do_is_said(both):
    bridge, _ = both
    base = prompts()
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel takes no input 'input'; it takes"):
        iit.capture(bridge, {"input": base["input_ids"]}, iit.Site("block_output", layer=0))
    with pytest.raises(ValueError, match=r"has no module 'blocks.0.hook_nothing'"):
        iit.capture(bridge, base, iit.Site(module="blocks.0.hook_nothing"))
    name = "blocks.0.attn.hook_of_four_dimensions"
    vars(bridge.blocks[0].attn)["hook_of_four_dimensions"] = bridge.blocks[0].attn.hook_rot_q
    with pytest.raises(ValueError, match="do not say which dimension has the batch"):
        iit.capture(bridge, base, iit.Site(module=name))


@pytest.mark.long
def test_bridges_of_the_package():
    """Everything in tests/peers/bridge.py, in an environment with TransformerLens."""
    python = environment(*OURS, "transformer-lens>=4.3,<5", "pytest", constrained=["transformers"])
    run_checks(python, "bridge.py")
