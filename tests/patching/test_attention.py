"""Attention patterns are those of an eager network, and the network given is as it was."""

import numpy as np
import pytest
import torch

from iit.patching import attention_map, attention_patterns
from iit.report import attention_figure
from tests.families import make, prompts
from tests.patching.contrasts import contrast, inputs


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma2", "gemma3", "gpt_neox", "opt", "bert", "t5"]
)
def test_patterns_equal_an_eager_networks(family):
    network, batch = make(family), prompts()
    before = network.config.to_dict(), network.config._attn_implementation
    found = attention_patterns(network, batch)
    assert (network.config.to_dict(), network.config._attn_implementation) == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )
    with torch.no_grad():
        own = make(family, attention="eager")(**batch, output_attentions=True).attentions
    assert list(found.weights) == [(layer, head) for layer in range(2) for head in range(4)]
    for (layer, head), weights in found.weights.items():
        for row, n in enumerate((7, 5)):
            torch.testing.assert_close(
                weights[row, :n], own[layer][row, head, :n], atol=1e-5, rtol=1e-5
            )
            assert bool((weights[row, n:] == 0).all())
            torch.testing.assert_close(weights[row, :n].sum(-1), torch.ones(n))


def test_heads_by_number_or_by_place():
    network, batch = make("llama"), prompts()
    assert list(attention_patterns(network, batch, layers=[1], heads=[3, 0]).weights) == [
        (1, 3),
        (1, 0),
    ]
    some = attention_patterns(network, batch, heads=[(1, 2), (0, 3)])
    assert list(some.weights) == [(1, 2), (0, 3)]
    every = attention_patterns(network, batch)
    torch.testing.assert_close(some.weights[0, 3], every.weights[0, 3])
    assert [len(told) for told in every.tokens] == [7, 5]


def test_real_tokens_and_a_figure(toy):
    network, _ = toy
    found = attention_patterns(
        network, network.encode(["Mary gave a book", "John went"]), layers=[1], heads=[0, 2]
    )
    assert found.tokens == (("Mary", "gave", "a", "book"), ("John", "went"))
    lines = found.table(1)
    assert len(lines) == 2 * 2 * 2
    assert lines[2] == {
        "layer": 1,
        "head": 0,
        "query": 1,
        "key": 0,
        "query_token": "went",
        "key_token": "John",
        "weight": pytest.approx(float(found.weights[1, 0][1, 1, 0])),
    }
    figure = attention_figure(found.of(0), found.tokens[0], title="two heads")
    shown = figure.axes[1].images[0].get_array()
    assert figure.axes[1].get_title() == "1.2"
    np.testing.assert_allclose(np.ma.filled(shown, 0), found.weights[1, 2][0, :4, :4], atol=1e-7)
    assert shown.mask[0, 1]
    assert not shown.mask[1, 0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "Mary",
        "gave",
        "a",
        "book",
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_map_is_the_weights_summed_over_what_is_looked_at(family):
    pairs = contrast(family)
    pairs.base["positions"]["s"] = torch.tensor([[2, 3], [3, -100]])
    found = attention_map(pairs.network, pairs, positions=["a", "s", 0], query="last", batch_size=2)
    assert [(c.site.layer, c.site.head, c.site.position) for c in found.cells][:4] == [
        (0, 0, "a"),
        (0, 0, "s"),
        (0, 0, 0),
        (0, 1, "a"),
    ]
    batch = inputs(pairs.base)
    with torch.no_grad():
        own = make(family, attention="eager")(**batch, output_attentions=True).attentions
    lengths = batch["attention_mask"].sum(1)
    for cell, values in zip(found.cells, found.of("attention"), strict=True):
        site = cell.site
        for row, n in enumerate(lengths.tolist()):
            index = (
                [0]
                if site.position == 0
                else [i for i in pairs.base["positions"][site.position][row].tolist() if i >= 0]
            )
            assert values[row] == pytest.approx(
                float(own[site.layer][row, site.head, n - 1, index].sum()), abs=1e-6
            )
    by_one = attention_map(pairs.network, pairs, positions=["a", "s", 0], batch_size=1)
    np.testing.assert_allclose(by_one.of("attention"), found.of("attention"), atol=1e-6)
    again = attention_map(pairs.network, pairs, cells=[found.cells[5]])
    np.testing.assert_allclose(again.of("attention")[0], found.of("attention")[5])
    assert [
        row.control for row in found.rows(experiment="e", network="n", task="t", split="validation")
    ] == [None] * len(found)
    for options, match in (
        ({"metric": "iia"}, "one figure, 'attention'"),
        ({"heads": None, "positions": ["a"]}, "head by head"),
        ({"query": None}, "read at one"),
    ):
        with pytest.raises(ValueError, match=match):
            attention_map(pairs.network, pairs, **options)


def test_what_has_no_patterns():
    network, batch = make("llama"), prompts()
    for options, match in (
        ({"heads": [4]}, "heads 0 to 3"),
        ({"layers": [2]}, "layer=2"),
        ({"layers": [0], "heads": [(1, 1)]}, "leave `layers` out"),
    ):
        with pytest.raises(ValueError, match=match):
            attention_patterns(network, batch, **options)
    with pytest.raises(ValueError, match="attention='eager'"):
        attention_patterns(make("falcon"), batch)
    assert network.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="prompt has 2 tokens"):
        attention_figure({"0.0": np.eye(3)}, ["a", "b"])
    with pytest.raises(ValueError, match="no head"):
        attention_figure({}, [])
