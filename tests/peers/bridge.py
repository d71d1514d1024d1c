"""Bridges of the installed TransformerLens, against the untouched network, and their hook points
against TransformerLens's own hooks.

tests/network/test_transformer_lens.py runs this file in an environment with TransformerLens.
"""

import copy
import logging
import tempfile
from dataclasses import replace
from functools import cache, partial

import lightning
import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

import iit
from iit.alignment import one
from iit.intervened import ActivationStore
from iit.network.components import COMPONENTS, HEADED, UNLAYERED
from iit.patching import patch
from tests.families import make, prompts
from tests.made_tokenizers import byte_level
from tests.oracles import ORACLES, head_columns
from tests.patching.contrasts import contrast, last_logits, raw_activation, swapped

FAMILIES = ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "opt", "phi3", "falcon", "bloom"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LAYER, AT = 0, 3
"""The layer and the position that are edited."""


@cache
def pair_of(family):
    """A bridge, and the same network as transformers made it."""
    network = make(family, attention="eager")
    twin = copy.deepcopy(network)
    return booted(network), twin


def booted(network):
    network.config.architectures = [type(network).__name__]
    # TransformerLens loads the tokenizer once more, so it needs a folder.
    with tempfile.TemporaryDirectory() as folder:
        byte_level().save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, hf_model=network, tokenizer=tokenizer)
    # Projections that were split are new parameters.
    return bridge.eval().requires_grad_(False)


def at_last(logits, batch):
    return logits[torch.arange(len(logits)), batch["attention_mask"].sum(1) - 1]


def vanilla(network, site):
    return iit.IntervenedModel(network, {site: iit.VanillaIntervention()})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unedited_bridge_is_the_network(family):
    bridge, twin = pair_of(family)
    base = prompts()
    logits = bridge(base["input_ids"], attention_mask=base["attention_mask"])
    torch.testing.assert_close(at_last(logits, base), last_logits(twin, base), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_components_are_those_of_raw_hooks_on_the_network(family):
    bridge, twin = pair_of(family)
    base, source = prompts(), prompts(seed=3)
    unedited = last_logits(twin, base)
    for component in ORACLES[family]:
        if component not in COMPONENTS or component in ("router_output", "attention_weight"):
            continue
        for head in (None, 0) if component in HEADED else (None,):
            layer = None if component in UNLAYERED else LAYER
            site = iit.Site(component, layer=layer, head=head, position=AT)
            columns = ORACLES[family][component][2]
            if head is not None:
                columns = head_columns(family, component, head)
            raw = partial(raw_activation, twin, family, component, layer)

            found = iit.capture(bridge, base, site)[site]
            torch.testing.assert_close(found[:, 0], raw(base, columns)[:, AT], **CLOSE)

            hook = (family, component, layer, columns, swapped(raw(source, columns), AT))
            expected = last_logits(twin, base, [hook])
            edited = vanilla(bridge, site)
            torch.testing.assert_close(at_last(edited(base, source), base), expected, **CLOSE)
            answers = edited.answer_logits(base, source)[:, 0]
            torch.testing.assert_close(answers, expected, **CLOSE)
            if component != "final_norm_output":
                assert not torch.allclose(expected, unedited, **CLOSE), site


@pytest.mark.parametrize("family", FAMILIES)
def test_other_components_are_those_of_the_network(family):
    """Those that have no raw hook: they are there where the network has them."""
    bridge, twin = pair_of(family)
    base, source = prompts(), prompts(seed=3)
    for component in ("attention_weight", "router_output", "final_norm_output", "mlp_activation"):
        layer = None if component in UNLAYERED else LAYER
        site = iit.Site(component, layer=layer, position=AT)
        try:
            right = vanilla(twin, site)
        except ValueError:
            with pytest.raises(ValueError, match=f"has no '{component}'"):
                vanilla(bridge, site)
            continue
        torch.testing.assert_close(
            at_last(vanilla(bridge, site)(base, source), base),
            at_last(right(base, source).logits, base),
            **CLOSE,
        )


REFUSED = {
    # whole numbers, one row for the whole batch, and heads of which nothing tells where they are
    "no floating-point tensor": ("embed.hook_in",),
    "the batch holds 2×6": ("hook_cos", "hook_sin"),
    "do not say which dimension": ("normed", "_norm.hook_in", "_norm.hook_out", "hook_normalized"),
}
"""{what the error says: how the names of such hook points end}"""


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_points_are_those_of_transformer_lens(family):
    """Every hook point that a run passes, under every name: read, and edited at one position."""
    bridge, _ = pair_of(family)
    base, source = prompts((6, 6)), prompts((6, 6), seed=3)
    _, read = bridge.run_with_cache(base["input_ids"])
    _, theirs = bridge.run_with_cache(source["input_ids"])
    names = [name for name in bridge.hook_dict if name in read]
    assert len(names) > 30
    refused, exact = [], []
    for name in names:
        activation, other = read[name], theirs[name]
        whole, site = iit.Site(module=name), iit.Site(module=name, position=AT)
        try:
            found = iit.capture(bridge, base, whole)[whole]
            logits = vanilla(bridge, site)(base, source)
        except (ValueError, RuntimeError) as error:
            refused.append((name, str(error)))
            continue

        dim = 2 if name.endswith(("hook_pattern", "hook_attn_scores")) else 1
        if activation.ndim == 2:
            # OPT's MLP sees the tokens of the whole batch side by side.
            activation, other = activation.unflatten(0, (2, -1)), other.unflatten(0, (2, -1))
        by_position = activation.movedim(dim, 1).flatten(2)
        torch.testing.assert_close(found, by_position, **CLOSE, msg=name)

        def swap(tensor, hook, other=other, dim=dim):
            new = tensor.clone().view(other.shape)
            new.select(dim, AT).copy_(other.select(dim, AT))
            return new.view(tensor.shape)

        expected = bridge.run_with_hooks(base["input_ids"], fwd_hooks=[(name, swap)])
        torch.testing.assert_close(logits, expected, **CLOSE, msg=name)
        exact.append(name)
    print(f"{family}: {len(exact)} hook points are exact, {len(refused)} are refused")
    assert f"blocks.{LAYER}.hook_out" in exact
    assert {f"blocks.{LAYER}.attn.hook_z", f"blocks.{LAYER}.hook_resid_post"} <= set(exact)
    for name, message in refused:
        ends = [REFUSED[said] for said in REFUSED if said in message]
        assert ends, (name, message)
        assert name.endswith((*ends[0], "hook_scale")), (name, message)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_maps_are_those_of_the_network(family):
    bridge, twin = pair_of(family)
    pairs = contrast(family)
    maps = []
    for network in (bridge, twin):
        found = replace(pairs, network=network)
        cells = {"components": ["block_output", "mlp_output"], "positions": ["a", "b", "last"]}
        heads = {"components": ["attention_value_output"], "heads": "all", "positions": ["b"]}
        for where in (cells, heads):
            maps.append(patch(network, found, **where).of("logit_difference"))
    np.testing.assert_allclose(maps[0], maps[2], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(maps[1], maps[3], atol=1e-5, rtol=1e-5)


def fitted(network, pairs, site):
    torch.manual_seed(5)
    alignment = one(network, "name", site, partial(iit.LowRankRotatedSpaceIntervention, rank=2))
    trainer = partial(
        lightning.Trainer, enable_progress_bar=False, enable_model_summary=False, logger=False
    )
    iit.fit(alignment, pairs, trainer=trainer, batch_size=8, max_epochs=2, seed=4)
    return alignment, alignment.interventions[0].basis.weight.detach()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_alignment_is_fitted_as_on_the_network(family):
    """By a component, and by the hook point at the same place; with the language model's own pairs,
    and through an activation store.
    """
    network = make(family, attention="eager")
    tokenizer = byte_level()
    network.resize_token_embeddings(len(tokenizer))
    lm = iit.LanguageModel(copy.deepcopy(network), tokenizer)
    bridge = iit.LanguageModel(booted(network), tokenizer)
    texts = ["When John and Mary left, John gave milk to", "When Mary and John left, Mary gave"]
    rows = []
    for number in range(16):
        base, source = texts[number % 2], texts[1 - number % 2]
        rows.append(
            {
                "base": base,
                "source": source,
                "label": (" Mary", " John")[number // 2 % 2],
                "split": ("train", "validation")[number // 8],
            }
        )
    pairs = iit.Pairs.of(rows, variable="name")
    component = iit.Site("block_output", layer=0, position="last")
    hook = iit.Site(module="blocks.0.hook_out", position="last")
    _, right = fitted(lm, pairs, component)
    for site in (component, hook):
        alignment, weight = fitted(bridge, pairs, site)
        torch.testing.assert_close(weight, right, **CLOSE)
    assert alignment.studied is bridge
    assert bridge.answers_right(texts, [" Mary", " John"]).dtype == bool


def test_what_stays_as_it_was():
    """Hooks, modes and attributes of the bridge's modules, and what it computes."""
    network = make("llama", attention="eager")
    twin, bridge = copy.deepcopy(network), booted(network)
    base, source = prompts(), prompts(seed=3)

    def state():
        parts = []
        for module in bridge.original_model.modules():
            hooks = (*module._forward_hooks, *module._forward_pre_hooks)
            parts.append((hooks, module.training, "forward" in vars(module)))
        return parts

    # In its first run transformers installs hooks that record, and leaves them.
    bridge(base["input_ids"])
    before = state()
    for site in (iit.Site("query_output", layer=0), iit.Site(module="blocks.0.hook_out")):
        vanilla(bridge, site)(base, source)
    assert state() == before
    torch.testing.assert_close(
        at_last(iit.IntervenedModel(bridge, {})(base), base), last_logits(twin, base), **CLOSE
    )


def test_runs_are_whole_and_the_log_says_so(caplog):
    bridge, _ = pair_of("llama")
    base, source = prompts(), prompts(seed=3)
    edited = vanilla(bridge, iit.Site("block_output", layer=1, position="last"))
    right = edited.answer_logits(base, source)
    edited.store = ActivationStore(bridge)
    with caplog.at_level(logging.INFO):
        torch.testing.assert_close(edited.answer_logits(base, source), right, **CLOSE)
    assert "The whole network runs: every run of a TransformerBridge" in caplog.text
    assert not len(edited.store)


@pytest.mark.parametrize("scope", ["prompt", "all"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_is_that_of_the_network(family, scope):
    bridge, twin = pair_of(family)
    base, source = prompts(), prompts((7, 5), seed=3)
    site = iit.Site("block_output", layer=0, position="last")
    options = {"max_new_tokens": 4, "do_sample": False, "scope": scope, "eos_token_id": None}
    bridge(base["input_ids"])  # it notes the size of the batch
    for rows in (slice(None), slice(1)):
        ours, theirs = (
            vanilla(network, site).generate(
                {key: value[rows] for key, value in base.items()},
                {key: value[rows] for key, value in source.items()},
                **options,
            )
            for network in (bridge, twin)
        )
        assert torch.equal(ours, theirs)


def test_what_is_refused_in_words():
    bridge, _ = pair_of("llama")
    base = prompts()
    with pytest.raises(ValueError, match=r"takes no input 'input'; it takes .*input_ids"):
        iit.capture(bridge, {"input": base["input_ids"]}, iit.Site("block_output", layer=0))
    with pytest.raises(ValueError, match=r"has no module 'blocks\.0\.hook_nothing'; close"):
        iit.capture(bridge, base, iit.Site(module="blocks.0.hook_nothing"))
    with pytest.raises(ValueError, match="layer=7 is out of range"):
        iit.capture(bridge, base, iit.Site("block_output", layer=7))
