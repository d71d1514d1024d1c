import pytest
import torch
import transformers as t
from torch import nn

import iit
from iit import Site
from iit.network.components import COMPONENTS
from iit.network.families import FAMILIES
from iit.site import resolve
from tests.families import MAKERS, SIZES, make, prompts
from tests.oracles import ORACLES, edited_attention, head_columns, raw_hook, router_hook
from tests.seeds import shifted

CASES = [
    (family, component)
    for family in ORACLES
    for component in ORACLES[family]
    if component != "heads"
]
UNLAYERED = ("embedding_output", "final_norm_output")
HEADED = ("attention_value_output", "query_output", "key_output", "value_output")
_made = {}


def network_of(family, attention=None):
    """One network a family for the whole file."""
    if (family, attention) not in _made:
        _made[family, attention] = make(family, attention=attention)
    return _made[family, attention]


def hooks_on(network):
    return [
        m
        for m in network.modules()
        if m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called
    ]


def final(network, batch):
    output = network(**batch)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def site_of(component, layer=1, **kwargs):
    return Site(component, layer=None if component in UNLAYERED else layer, **kwargs)


def check_unit(family, component, columns, site):
    """Read and edit through the engine and through a raw hook on a literal path; values and
    gradients agree.
    """
    network, batch = network_of(family), prompts((6, 6))
    seen = []
    handle = raw_hook(network, family, component, 1, columns, lambda h: seen.append(h.clone()) or h)
    final(network, batch)
    handle.remove()
    torch.testing.assert_close(iit.capture(network, batch, site)[site], seen[0], atol=0, rtol=0)

    generator = torch.Generator().manual_seed(shifted(3))
    added = torch.randn(seen[0].shape[-1], generator=generator)
    ours, oracle = added.clone().requires_grad_(), added.clone().requires_grad_()
    edited = iit.IntervenedModel(network, {site: iit.LambdaIntervention(lambda h: h * 0.5 + ours)})
    out = edited(batch)
    found = out.logits if hasattr(out, "logits") else out.last_hidden_state
    handle = raw_hook(network, family, component, 1, columns, lambda h: h * 0.5 + oracle)
    expected = final(network, batch)
    handle.remove()
    assert not torch.allclose(expected, final(network, batch), atol=1e-4), (
        "the oracle's edit must show"
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(ours.grad, oracle.grad, atol=1e-5, rtol=1e-4)
    assert not hooks_on(network)


@pytest.mark.parametrize(("family", "component"), CASES)
def test_component_equals_raw_hooks(family, component):
    check_unit(family, component, ORACLES[family][component][2], site_of(component))


@pytest.mark.parametrize("family", list(ORACLES))
@pytest.mark.parametrize("component", HEADED)
def test_heads_equal_raw_hooks(family, component):
    n = ORACLES[family]["heads"]["keys"] if component in ("key_output", "value_output") else 4
    check_unit(
        family, component, head_columns(family, component, n - 1), site_of(component, head=n - 1)
    )
    if n > 2:
        both = head_columns(family, component, 2) + head_columns(family, component, 0)
        check_unit(family, component, both, site_of(component, head=[2, 0]))
    with pytest.raises(ValueError, match=f"head={n} is out of range.*0 to {n - 1}"):
        resolve(network_of(family), site_of(component, head=n))


@pytest.mark.parametrize("family", [f for f in ORACLES if f not in ("bert", "falcon_old", "esm")])
def test_writes_sum_to_the_change_of_the_residual_stream(family):
    network, batch = network_of(family), prompts((6, 6))
    sites = [
        Site(c, layer=1) for c in ("block_input", "block_output", "attention_write", "mlp_write")
    ]
    before, after, attention, mlp = iit.capture(network, batch, sites).values()
    torch.testing.assert_close(after - before, attention + mlp, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", list(ORACLES))
def test_heads_times_output_weight_is_the_attention_output(family):
    network, batch = network_of(family), prompts((6, 6))
    sites = [Site("attention_value_output", layer=0, head=h) for h in range(4)]
    found = iit.capture(network, batch, [*sites, Site("attention_output", layer=0)])
    projection = network.get_submodule(ORACLES[family]["attention_output"][0].format(i=0))
    weight = projection.weight.T if type(projection).__name__ != "Conv1D" else projection.weight
    total = sum(
        found[site] @ weight[head_columns(family, "attention_value_output", h)]
        for h, site in enumerate(sites)
    )
    if projection.bias is not None:
        total = total + projection.bias
    torch.testing.assert_close(
        total, found[Site("attention_output", layer=0)], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "gptj", "llama", "phi3", "falcon", "falcon_new", "gemma3"]
)
def test_queries_keys_and_values_are_told_apart(family):
    """Without values heads write nothing; without keys, or queries, attention is uniform over what
    is visible.
    """
    network, batch = network_of(family), prompts((4, 4))
    heads, values = Site("attention_value_output", layer=0), Site("value_output", layer=0)
    n = ORACLES[family]["heads"]["keys"]
    mean = iit.capture(network, batch, values)[values].cumsum(1) / torch.arange(1, 5).view(1, 4, 1)
    mean = mean.unflatten(-1, (n, -1)).repeat_interleave(4 // n, 2).flatten(2)
    expected = {"value_output": torch.zeros_like(mean), "key_output": mean, "query_output": mean}
    for component, value in expected.items():
        edited = iit.IntervenedModel(network, {Site(component, layer=0): iit.ZeroIntervention()})
        torch.testing.assert_close(
            iit.capture(edited, batch, heads)[heads], value, atol=1e-5, rtol=1e-5
        )


def reporting(family):
    """The same weights again: a network that was once asked for its own activations keeps hooks for
    them.
    """
    return make(family, attention="eager")


@pytest.mark.parametrize("family", list(MAKERS))
def test_attention_weights_equal_an_edited_softmax(family):
    network, batch = network_of(family, "eager"), prompts((6, 6))
    reported = reporting(family)(**batch, output_attentions=True).attentions[1]
    whole, one, two = (Site("attention_weight", layer=1, head=h) for h in (None, 2, [3, 0]))
    found = iit.capture(network, batch, [whole, one, two])
    torch.testing.assert_close(
        found[whole].unflatten(-1, (4, 6)).transpose(1, 2), reported, atol=0, rtol=0
    )
    torch.testing.assert_close(found[one], reported[:, 2], atol=0, rtol=0)
    torch.testing.assert_close(
        found[two], torch.cat([reported[:, 3], reported[:, 0]], -1), atol=0, rtol=0
    )

    unchanged = iit.IntervenedModel(network, {whole: iit.LambdaIntervention(torch.clone)})
    out = unchanged(batch)
    out = out.logits if hasattr(out, "logits") else out.last_hidden_state
    torch.testing.assert_close(out, final(network, batch), atol=0, rtol=0)

    ours, oracle = (torch.linspace(0, 1, 6).requires_grad_() for _ in range(2))
    edited = iit.IntervenedModel(network, {one: iit.LambdaIntervention(lambda h: h * 0.5 + ours)})
    out = edited(batch)
    out = out.logits if hasattr(out, "logits") else out.last_hidden_state
    with edited_attention(1, 2, lambda h: h * 0.5 + oracle):
        expected = final(network, batch)
    assert not torch.allclose(expected, final(network, batch), atol=1e-4), (
        "the oracle's edit must show"
    )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(ours.grad, oracle.grad, atol=1e-5, rtol=1e-4)
    assert not hooks_on(network)


def test_attention_weights_are_edited_where_they_are_asked_for():
    """One query position of two heads at once, by two edits that are nested in one forward."""
    network, batch = network_of("llama", "eager"), prompts((6, 6))
    sites = [Site("attention_weight", layer=0, head=h, position=-1) for h in (1, 3)]
    edited = iit.IntervenedModel(network, {site: iit.ZeroIntervention() for site in sites})
    weights = Site("attention_weight", layer=0)
    before, after = (
        iit.capture(n, batch, weights)[weights].unflatten(-1, (4, 6)) for n in (network, edited)
    )
    expected = before.clone()
    expected[:, -1, [1, 3]] = 0
    assert torch.equal(after, expected)


@pytest.mark.parametrize("broken", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_a_forward_that_raises(broken):
    network, batch = network_of("mixtral", "eager"), prompts((6, 6))
    before = final(network, batch)

    def fail(activation):
        raise broken

    for component in ("attention_weight", "router_output", "mlp_input", "block_output"):
        attached = resolve(network, Site(component, layer=1)).attach(fail)
        with pytest.raises(broken):
            network(**batch)
        attached.remove()
        assert not torch.overrides._get_current_function_mode_stack()
        assert not hooks_on(network)
    assert torch.equal(final(network, batch), before)


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c != "mlp_activation"])
def test_hooks_go_one_by_one_and_the_users_stay(component):
    network, batch = network_of("mixtral", "eager"), prompts((6, 6))
    calls = []
    users = network.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append("user"))
    before = final(network, batch)
    seen = {"first": [], "second": []}
    attached = {
        name: resolve(network, site_of(component)).attach(found.append)
        for name, found in seen.items()
    }
    assert torch.equal(final(network, batch), before)
    attached["first"].remove()
    final(network, batch)
    attached["second"].remove()
    final(network, batch)
    assert [len(found) for found in seen.values()] == [1, 2]
    assert len(calls) == 4
    users.remove()
    assert not hooks_on(network)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_router_logits_choose_the_experts(family):
    network, batch = network_of(family, "eager"), prompts((6, 6))
    site = Site("router_output", layer=1)
    assert resolve(network, site).width == 3
    logits = (
        reporting(family)(**batch, output_router_logits=True).router_logits[1].unflatten(0, (2, 6))
    )
    torch.testing.assert_close(iit.capture(network, batch, site)[site], logits, atol=0, rtol=0)

    ours, oracle = (torch.tensor([1.0, -2.0, 0.5]).requires_grad_() for _ in range(2))
    found = iit.IntervenedModel(network, {site: iit.LambdaIntervention(lambda h: h * 0.5 + ours)})(
        batch
    ).logits
    handle = router_hook(network, 1, lambda h: h * 0.5 + oracle)
    expected = final(network, batch)
    handle.remove()
    assert not torch.allclose(expected, final(network, batch), atol=1e-4), (
        "the oracle's edit must show"
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    torch.testing.assert_close(ours.grad, oracle.grad, atol=1e-5, rtol=1e-4)


def test_dense_blocks_of_a_mixture_have_an_activation_and_no_router():
    config = t.Qwen3MoeConfig(
        **SIZES, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2, mlp_only_layers=[0]
    )
    network = t.Qwen3MoeForCausalLM(config).eval()
    assert resolve(network, Site("mlp_activation", layer=0)).width == 24
    with pytest.raises(ValueError, match="block 0 has no router"):
        resolve(network, Site("router_output", layer=0))
    with pytest.raises(
        ValueError, match=r"block 1 has experts.*It has: .*mlp_output.*router_output"
    ):
        resolve(network, Site("mlp_activation", layer=1))


WRAPPED = {
    "bare llama": (lambda: t.LlamaModel(t.LlamaConfig(**SIZES)), "layers.1", "norm"),
    "bare gpt2": (lambda: make("gpt2").transformer, "h.1", "ln_f"),
    "bare falcon": (lambda: make("falcon").transformer, "h.1", "ln_f"),
    "bare opt": (lambda: make("opt").model, "decoder.layers.1", "decoder.final_layer_norm"),
    "bare bert": (lambda: make("bert").bert, "encoder.layer.1", None),
    "classifying llama": (
        lambda: t.LlamaForSequenceClassification(t.LlamaConfig(**SIZES)),
        "model.layers.1",
        "model.norm",
    ),
    "classifying bert": (
        lambda: t.BertForSequenceClassification(t.BertConfig(**SIZES)),
        "bert.encoder.layer.1",
        None,
    ),
    "whole t5": (
        lambda: t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=60,
                d_model=16,
                d_kv=6,
                num_layers=2,
                num_heads=4,
                d_ff=24,
                decoder_start_token_id=0,
            )
        ),
        "encoder.block.1",
        "encoder.final_layer_norm",
    ),
    "multimodal gemma3": (
        lambda: t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(
                text_config={**SIZES, "num_key_value_heads": 2, "head_dim": 6},
                vision_config={
                    "hidden_size": 8,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 8,
                },
            )
        ),
        "model.language_model.layers.1",
        "model.language_model.norm",
    ),
}


@pytest.mark.parametrize("kind", list(WRAPPED))
def test_blocks_are_found_inside_other_models(kind):
    maker, block, norm = WRAPPED[kind]
    torch.manual_seed(shifted(0))
    network = maker().eval()
    site = resolve(network, Site("block_output", layer=1))
    assert site.module is network.get_submodule(block)
    assert site.width == 16
    assert resolve(network, Site("query_output", layer=1, head=3)).width in (4, 6)
    if norm is None:
        with pytest.raises(
            ValueError, match=r"family 'bert' has no 'final_norm_output'.*It has: embedding_output"
        ):
            resolve(network, Site("final_norm_output"))
    else:
        assert resolve(network, Site("final_norm_output")).module is network.get_submodule(norm)


def test_the_table_is_tested_whole():
    families = {make(family).config.get_text_config().model_type for family in MAKERS}
    assert families == set(FAMILIES)
    assert set(ORACLES) == set(MAKERS)
    assert set(ORACLES["llama"]) - {"heads"} | {"attention_weight", "router_output"} == set(
        COMPONENTS
    )


def test_what_a_network_lacks_is_named():
    gpt2 = network_of("gpt2")
    for site, said in [
        (Site("block_output", layer=2), "layer=2 is out of range.*0 to 1"),
        (Site("block_output", layer=-1), "layer=-1 is out of range.*0 to 1"),
        (Site("router_output", layer=0), "'gpt2' has no 'router_output'.*It has: .*mlp_activation"),
        (
            Site("attention_weight", layer=0),
            "runs 'sdpa' attention.*eager attention only: load it with attention='eager'",
        ),
    ]:
        with pytest.raises(ValueError, match=said):
            resolve(gpt2, site)
    with pytest.raises(ValueError, match=r"family 'mixtral' has no 'mlp_activation'.*experts"):
        resolve(network_of("mixtral"), Site("mlp_activation", layer=0))
    with pytest.raises(ValueError, match=r"head=4 is out of range.*0 to 3"):
        resolve(network_of("llama", "eager"), Site("attention_weight", layer=0, head=4))
    with pytest.raises(ValueError, match=r"no transformers model.*Name a module"):
        resolve(nn.Linear(2, 2), Site("block_output", layer=0))
    with pytest.raises(ValueError, match=r"known in ViTModel: .*no `input_ids`.*Name a module"):
        resolve(t.ViTModel(t.ViTConfig(**VIT)), Site("block_output", layer=0))


VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 4,
    "patch_size": 2,
}
