"""The logit lens is the network's own norm and head on each layer's residual stream."""

import numpy as np
import pytest
import torch

from iit.network import fingerprint
from iit.patching import lens_map, logit_lens, top_tokens
from tests.families import DECODERS, make, prompts
from tests.oracles import ORACLES
from tests.patching.contrasts import contrast, difference, inputs, last_logits, raw_activation

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def by_hand(network, family, layer, batch):
    """The norm and head, called on what a raw hook reads; Gemma 2 caps its logits."""
    hidden = raw_activation(network, family, "block_output", layer, batch)
    with torch.no_grad():
        normed = network.get_submodule(ORACLES[family]["final_norm_output"][0])(hidden)
        logits = network.get_output_embeddings()(normed)
    cap = getattr(network.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("family", DECODERS)
def test_the_last_layer_gives_the_networks_own_logits(family):
    network, batch = make(family), prompts()
    before = fingerprint(network)
    with torch.no_grad():
        own = network(**batch).logits
    real = batch["attention_mask"].bool()
    every = logit_lens(network, batch, position=None)
    assert every.shape == (2, *own.shape)
    torch.testing.assert_close(every[1][real], own[real], **CLOSE)
    assert bool((every[:, ~real] == 0).all())
    last = logit_lens(network, batch, layers=[0, 1])
    torch.testing.assert_close(last[:, :, 0], every[:, torch.arange(2), real.sum(1) - 1])
    first = logit_lens(network, batch, layers=[0], position=(0, 2, -1))
    torch.testing.assert_close(first[0, :, 1], every[0, :, 2])
    assert first.shape == (1, 2, 3, own.shape[-1])
    assert fingerprint(network) == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "olmo2"])
def test_an_earlier_layer_passes_through_norm_and_head(family):
    network, batch = make(family), prompts((7, 7))
    torch.testing.assert_close(
        logit_lens(network, batch, layers=[0], position=None)[0],
        by_hand(network, family, 0, batch),
        **CLOSE,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_map_of_the_lens(family):
    found = contrast(family)
    effects = lens_map(found.network, found, positions=["a", "last", -2], metric="logit_difference")
    assert [(cell.site.layer, cell.site.position) for cell in effects.cells] == [
        (layer, p) for layer in (0, 1) for p in ("a", "last", -2)
    ]
    for cell, values in zip(effects.cells, effects.of("logit_difference"), strict=True):
        at = {"a": [1, 1], "last": [6, 4], -2: [5, 3]}[cell.site.position]
        logits = by_hand(found.network, family, cell.site.layer, found.base)[torch.arange(2), at]
        np.testing.assert_allclose(values, difference(logits, found), **CLOSE, err_msg=str(cell))
    own = difference(last_logits(found.network, found.base), found)
    np.testing.assert_allclose(effects.of("logit_difference")[4], own, **CLOSE)


def test_top_tokens_are_told_in_words(toy):
    network, _ = toy
    batch = network.encode(["Mary gave a book", "John went"])
    lines = top_tokens(network, batch, n=2)
    assert len(lines) == 2 * (4 + 2) * 2
    assert {line["token"] for line in lines if line["row"] == 1} == {"John", "went"}
    with torch.no_grad():
        own = network.model(**inputs(batch)).logits[0, 3].softmax(-1)
    (best,) = [x for x in lines if (x["layer"], x["row"], x["position"], x["rank"]) == (1, 0, 3, 1)]
    assert best["probability"] == pytest.approx(float(own.max()), abs=1e-6)
    assert best["top"] == network.tokenizer.decode([int(own.argmax())])


def test_what_the_lens_cannot_read():
    found = contrast("llama")
    with pytest.raises(ValueError, match="layer=7"):
        logit_lens(found.network, inputs(found.base), layers=[7])
    with pytest.raises(ValueError, match="no output head"):
        logit_lens(found.network.model, inputs(found.base))
    with pytest.raises(ValueError, match="one token at a time"):
        lens_map(found.network, found, positions=[None])
    several = contrast("llama", width=2)
    with pytest.raises(ValueError, match="have several"):
        lens_map(several.network, several)
    with pytest.raises(ValueError, match="unit 3: this map takes components whole"):
        lens_map(found.network, found, units=[3])
    with pytest.raises(ValueError, match="components are known"):
        logit_lens(torch.nn.Linear(2, 2), torch.zeros(1, 2))
