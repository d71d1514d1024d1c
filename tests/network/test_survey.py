"""Components found by structure: against literal paths and raw hooks, and wrong finders."""

from dataclasses import replace

import pytest
import torch

import iit
from iit import Site
from iit.intervened.store import ActivationStore
from iit.network.families import FAMILIES
from iit.network.location import ComponentLocation
from iit.network.structure import structure_of
from iit.network.survey import survey, surveyed
from tests import zoo

LLAMA = {
    "block": "model.layers.{i}",
    "attention": "self_attn",
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": "self_attn.o_proj",
    "mlp": "mlp",
    "mlp_out": "mlp.down_proj",
    "keys": 4,
}
MIXTURE = {**LLAMA, "mlp_out": "mlp"}
GROUPED = {**LLAMA, "keys": 2}
GROUPED_MIXTURE = {**MIXTURE, "keys": 2}
BART = {
    "block": "model.decoder.layers.{i}",
    "attention": "self_attn",
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "out": "self_attn.out_proj",
    "mlp": "fc1",
    "mlp_out": "fc2",
    "keys": 4,
}
ROBERTA = {
    "block": "roberta.encoder.layer.{i}",
    "attention": "attention.self",
    "qkv": ("query", "key", "value"),
    "out": "attention.output.dense",
    "mlp": "intermediate.dense",
    "mlp_out": "output.dense",
    "keys": 4,
}

# Written from the modeling files of transformers, family by family.
LITERAL = {
    "apertus": LLAMA,
    "arcee": LLAMA,
    "bart": BART,
    "bigbird_pegasus": BART,
    "biogpt": {**BART, "block": "biogpt.layers.{i}"},
    "blenderbot-small": BART,
    "camembert": ROBERTA,
    "cohere": LLAMA,
    "cohere2": LLAMA,
    "ctrl": {
        "block": "transformer.h.{i}",
        "attention": "multi_head_attention",
        "qkv": ("Wq", "Wk", "Wv"),
        "out": "multi_head_attention.dense",
        "mlp": "ffn",
        "mlp_out": "ffn.2",
        "keys": 4,
    },
    "cwm": GROUPED,
    "electra": {**ROBERTA, "block": "electra.encoder.layer.{i}"},
    "ernie": {**ROBERTA, "block": "ernie.encoder.layer.{i}"},
    "ernie4_5": GROUPED,
    "exaone4": LLAMA,
    "flex_olmo": MIXTURE,
    "glm": GROUPED,
    "glm4": GROUPED,
    "gpt_bigcode": {
        "block": "transformer.h.{i}",
        "attention": "attn",
        # One key and one value for all queries, behind them in one projection.
        "fused": ("c_attn", range(8, 16), range(32, 40), range(40, 48)),
        "out": "attn.c_proj",
        "mlp": "mlp",
        "mlp_out": "mlp.c_proj",
        "keys": 1,
    },
    "gpt_neox_japanese": {
        "block": "gpt_neox_japanese.layers.{i}",
        "attention": "attention",
        # Query, key and value of each head in turn.
        "fused": ("query_key_value", range(24, 32), range(32, 40), range(40, 48)),
        "out": "attention.dense",
        "mlp": "mlp",
        "mlp_out": "mlp.dense_4h_to_h",
        "keys": 4,
    },
    "gpt_oss": {**GROUPED_MIXTURE},
    "granite": LLAMA,
    "granitemoe": {**MIXTURE, "mlp": "block_sparse_moe", "mlp_out": "block_sparse_moe"},
    "helium": LLAMA,
    "internlm3": GROUPED,
    "jais2": LLAMA,
    "llama4_text": {**GROUPED_MIXTURE, "mlp": "feed_forward", "mlp_out": "feed_forward"},
    "marian": BART,
    "ministral": GROUPED,
    "modernbert-decoder": {
        "block": "model.layers.{i}",
        "attention": "attn",
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "out": "attn.Wo",
        "mlp": "mlp",
        "mlp_out": "mlp.Wo",
        "keys": 4,
    },
    "mpt": {
        "block": "transformer.blocks.{i}",
        "attention": "attn",
        # All queries, then all keys, then all values.
        "fused": ("Wqkv", range(8, 16), range(40, 48), range(72, 80)),
        "out": "attn.out_proj",
        "mlp": "ffn",
        "mlp_out": "ffn.down_proj",
        "keys": 4,
    },
    "nanochat": {**LLAMA, "mlp_out": "mlp.fc2"},
    "nemotron": {**GROUPED},
    "olmo": LLAMA,
    "olmo3": LLAMA,
    "olmoe": MIXTURE,
    "pegasus": BART,
    "persimmon": {
        "block": "model.layers.{i}",
        "attention": "self_attn",
        "fused": ("query_key_value", range(24, 32), range(32, 40), range(40, 48)),
        "out": "self_attn.dense",
        "mlp": "mlp",
        "mlp_out": "mlp.dense_4h_to_h",
        "keys": 4,
    },
    "phi": {**LLAMA, "out": "self_attn.dense", "mlp_out": "mlp.fc2"},
    "phimoe": GROUPED_MIXTURE,
    "qwen2_moe": MIXTURE,
    "roberta": ROBERTA,
    "seed_oss": GROUPED,
    "smollm3": GROUPED,
    "stablelm": LLAMA,
    "starcoder2": {**GROUPED, "mlp_out": "mlp.c_proj"},
    "trocr": BART,
    "vaultgemma": GROUPED,
    "xglm": {**BART, "block": "model.layers.{i}"},
    "xlm-roberta": ROBERTA,
}
QUICK = ("smollm3", "gpt_oss", "gpt_neox_japanese", "mpt", "biogpt")
LAYER = 2
IDS = torch.tensor([[11, 23, 35, 47, 59, 71], [12, 24, 36, 48, 60, 72]])


def literal_sites(paths):
    """{site: (literal path, side, units or None)} of one layer, heads by their first and last."""
    block = paths["block"].format(i=LAYER)
    attention = f"{block}.{paths['attention']}"
    sites = {
        Site("block_input", layer=LAYER): (block, "input", None),
        Site("block_output", layer=LAYER): (block, "output", None),
        Site("attention_input", layer=LAYER): (attention, "input", None),
        Site("attention_output", layer=LAYER): (f"{block}.{paths['out']}", "output", None),
        Site("mlp_input", layer=LAYER): (f"{block}.{paths['mlp']}", "input", None),
        Site("mlp_output", layer=LAYER): (f"{block}.{paths['mlp_out']}", "output", None),
    }
    names = ("query_output", "key_output", "value_output")
    if "fused" in paths:
        path, *units = paths["fused"]
        for name, part in zip(names, units, strict=True):
            head = 0 if paths["keys"] == 1 and name != "query_output" else 1
            site = Site(name, layer=LAYER, head=head)
            sites[site] = (f"{attention}.{path}", "output", list(part))
    else:
        for name, path in zip(names, paths["qkv"], strict=True):
            sites[Site(name, layer=LAYER)] = (f"{attention}.{path}", "output", None)
    return sites


def changed(activation):
    return activation.roll(1, dims=-1) * 0.5 + 0.3


def raw_hook(network, path, side, units, edit):
    """Edit a literal module with torch alone."""
    module = network.get_submodule(path)

    def edited(tensor):
        if units is None:
            return edit(tensor)
        tensor = tensor.clone()
        tensor[..., units] = edit(tensor[..., units])
        return tensor

    if side == "output":

        def after(module, args, output):
            if isinstance(output, tuple):
                return (edited(output[0]), *output[1:])
            return edited(output)

        return module.register_forward_hook(after)

    def before(module, args, kwargs):
        if args:
            # CTRL's attention gets the same tensor three times: as values, keys and queries.
            new = edited(args[0])
            return tuple(new if arg is args[0] else arg for arg in args), kwargs
        return args, {**kwargs, "hidden_states": edited(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def families(names):
    """Parameters of a test: a few quick families, and all others in the long tests."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in names]


@pytest.mark.parametrize("family", families(LITERAL))
def test_found_components_equal_raw_hooks_on_literal_paths(family):
    assert family not in FAMILIES
    network = zoo.make(family)
    with torch.no_grad():
        plain = network(input_ids=IDS).logits
        for site, (path, side, units) in literal_sites(LITERAL[family]).items():
            seen = []
            handle = raw_hook(network, path, side, units, lambda h, seen=seen: seen.append(h) or h)
            network(input_ids=IDS)
            handle.remove()
            activation = iit.capture(network, {"input_ids": IDS}, [site])[site]
            torch.testing.assert_close(activation, seen[0].reshape(activation.shape))

            handle = raw_hook(network, path, side, units, changed)
            expected = network(input_ids=IDS).logits
            handle.remove()
            edit = iit.LambdaIntervention(changed)
            edited = iit.IntervenedModel(network, {site: edit})({"input_ids": IDS}).logits
            torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)
            assert float((edited - plain).abs().max()) > 1e-4, site


def test_literal_paths_are_many():
    assert len(LITERAL) >= 40


@pytest.mark.parametrize("family", families(LITERAL))
def test_heads_of_values_are_the_heads_of_the_attention(family):
    network = zoo.make(family)
    known = survey(network)
    place = known.places[LAYER]["attention_value_output"]
    assert place.module == f"{LITERAL[family]['block'].format(i=LAYER)}.{LITERAL[family]['out']}"
    assert (place.side, place.n_heads) == ("input", 4)
    assert known.places[LAYER]["key_output"].n_heads == LITERAL[family]["keys"]


# Wrong finders: the checks refuse what they say.


@pytest.fixture(scope="module")
def smollm3():
    network = zoo.make("smollm3")
    return network, structure_of(network)


def wrong_survey(smollm3, **changes):
    """A survey whose finder says something else of every block."""
    network, structure = smollm3
    parts = tuple(replace(part, **changes) for part in structure.parts)
    return surveyed(network, replace(structure, parts=parts)).places[LAYER]


def test_right_finder_passes_all_checks(smollm3):
    places = wrong_survey(smollm3)
    lacking = {name for name, place in places.items() if isinstance(place, str)}
    assert lacking == {"router_output"}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"qkv": ("self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj")}, "query_output"),
        ({"qkv": ("self_attn.q_proj", "self_attn.v_proj", "self_attn.k_proj")}, "key_output"),
        ({"qkv": ("self_attn.q_proj", "self_attn.v_proj", "self_attn.k_proj")}, "value_output"),
        ({"qkv": ("input_layernorm",) * 3}, "query_output"),
        ({"qkv": ("self_attn.q_proj", "input_layernorm", "self_attn.v_proj")}, "key_output"),
        ({"attention_out": "post_attention_layernorm"}, "attention_value_output"),
        ({"attention_out": "mlp.down_proj"}, "value_output"),
        ({"attention": "mlp"}, "attention_input"),
        ({"mlp_input": "self_attn"}, "mlp_input"),
        ({"mlp_out": "self_attn.o_proj"}, "mlp_activation"),
        ({"mlp_out": "post_attention_layernorm"}, "mlp_activation"),
        ({"writes": {"attention_write": ("self_attn.q_proj",)}}, "attention_write"),
        ({"writes": {"mlp_write": ("mlp.down_proj",)}}, "mlp_write"),
    ],
)
def test_wrong_finder_is_caught(smollm3, changes, refused):
    assert isinstance(wrong_survey(smollm3, **changes)[refused], str)


def test_wrong_list_of_blocks_is_caught(smollm3):
    network, structure = smollm3
    calls = structure.calls
    for wrong in (calls[::-1], (calls[0], calls[2], calls[3])):
        with pytest.raises(ValueError, match="does not receive what the block before it gives"):
            surveyed(network, replace(structure, calls=wrong))


def test_a_projection_in_another_order_is_no_place():
    # Its queries, values and keys come in this order, in groups: no order that is tried.
    places = survey(zoo.make("codegen")).places[LAYER]
    assert isinstance(places["key_output"], str)
    assert isinstance(places["value_output"], str)
    assert isinstance(places["attention_output"], ComponentLocation)


def test_survey_leaves_network_and_random_numbers_alone():
    network = zoo.make("smollm3").train()
    network.model.layers[0].eval()
    modes = [module.training for module in network.modules()]
    state = torch.random.get_rng_state()
    survey(network)
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2", "gpt_neox", "phi3", "mixtral"])
def test_structure_finds_what_the_table_lists(family):
    network = zoo.make(family)
    listed = survey(network).places
    found = surveyed(network, structure_of(network)).places
    for layer, places in found.items():
        for component, place in places.items():
            expected = listed[layer][component]
            if isinstance(place, str):
                # Of a mixture the table knows the same.
                assert isinstance(expected, str), (component, place)
            else:
                assert (place.module, place.side) == (expected.module, expected.side)
                assert (place.width, place.units) == (expected.width, expected.units)


def test_mixer_is_refused_in_words():
    network = zoo.make("mamba")
    iit.IntervenedModel(network, {Site("block_output", layer=1): iit.ZeroIntervention()})
    with pytest.raises(ValueError, match=r"no 'attention_output': block 1 has no attention.*block"):
        iit.capture(network, {"input_ids": IDS}, [Site("attention_output", layer=1)])
    with pytest.raises(ValueError, match=r"Site\(module=\"backbone.layers.1"):
        iit.capture(network, {"input_ids": IDS}, [Site("mlp_input", layer=1)])


def test_components_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    iit.components(zoo.make("qwen3_next"))
    printed = capsys.readouterr().out
    assert "found by structure, checked by small runs" in printed
    assert "model.layers.{layer}.self_attn.k_proj:output" in printed
    assert "has no attention" in printed
    assert "0-2" in printed


@pytest.mark.parametrize("family", families(["smollm3", "olmo3", "cohere2", "gpt_oss", "xglm"]))
def test_resumed_run_equals_the_whole_run(family, monkeypatch):
    network = zoo.make(family)
    site = Site("block_output", layer=1, position=3)
    edited = iit.IntervenedModel(network, {site: iit.LambdaIntervention(lambda h: h * 0.5)})
    assert edited.first_block == 2
    batch = {"input_ids": IDS, "answer": torch.tensor([[20], [21]])}
    edited.store = ActivationStore(network)
    messages = []
    monkeypatch.setattr(edited.store, "tell", messages.append)
    # The first batch is compared with a whole run, and the second one is not.
    edited.answer_logits(batch)
    resumed = edited.answer_logits(batch)
    assert edited.store.is_trusted(2, {"edit": None})
    assert all(message.startswith("Runs resume") for message in messages)
    edited.store = None
    whole = edited.answer_logits(batch)
    torch.testing.assert_close(resumed, whole, atol=1e-4, rtol=1e-4)


def test_network_without_a_cache_of_keys_runs_whole():
    network = zoo.make("qwen3_next")
    site = Site("block_output", layer=1, position=3)
    assert iit.IntervenedModel(network, {site: iit.ZeroIntervention()}).first_block is None


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "least_with_ten", "least_with_stream"),
    [("causal", 120, 150), ("masked", 30, 35), ("encoder_decoder", 20, 20)],
)
def test_most_language_models_have_components(kind, least_with_ten, least_with_stream, capsys):
    """Prints how many families are built, have ten components or more, and have the stream."""
    n_built, with_ten, with_stream, lines = 0, [], [], []
    for family in sorted(zoo.KINDS[kind]):
        if kind == "causal" and family in zoo.NOT_BUILT:
            lines.append(f"{family}: not built: {zoo.NOT_BUILT[family]}")
            continue
        try:
            network = zoo.make(family, kind)
        except Exception as error:
            assert kind != "causal", family
            lines.append(f"{family}: not built: {str(error).strip().partition(chr(10))[0]}")
            continue
        n_built += 1
        try:
            places = survey(network).places
        except ValueError as error:
            lines.append(f"{family}: {error}")
            continue
        names = set()
        for layer_places in places.values():
            for name, place in layer_places.items():
                if not isinstance(place, str):
                    names.add(name)
        if len(names) >= 10:
            with_ten.append(family)
        else:
            lines.append(f"{family}: {len(names)} components")
        if {"block_input", "block_output"} <= names:
            with_stream.append(family)
    with capsys.disabled():
        print(f"\n{kind}: of {len(zoo.KINDS[kind])} families {n_built} are built; of these")
        print(f"{len(with_ten)} have ten components or more,")
        print(f"{len(with_stream)} have block_input and block_output")
        print("\n".join(lines))
    assert len(with_ten) >= least_with_ten
    assert len(with_stream) >= least_with_stream
