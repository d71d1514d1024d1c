"""Steering equals generation with raw hooks, and its figures are what they say."""

import numpy as np
import pytest
import torch

import iit
from iit.network import LanguageModel, fingerprint
from iit.patching import difference_of_means, frame_direction, random_directions, steer
from tests.families import make
from tests.oracles import raw_hook
from tests.patching.contrasts import inputs
from tests.seeds import shifted

PROMPTS = ["Mary gave a book", "John went"]
SITE = iit.Site("block_output", layer=0)
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(params=["llama", "gpt2"])
def network(request, toy):
    """The words of the toy on two families."""
    if request.param == "llama":
        return toy[0]
    model = make("gpt2")
    model.resize_token_embeddings(len(toy[0].tokenizer))
    torch.manual_seed(shifted(1))
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    return LanguageModel(model, toy[0].tokenizer, "toy gpt2")


def by_hand(network, prompt, vector):
    """New tokens and their −log p without the hook, one prompt at a time."""
    kind = "gpt2" if "gpt2" in network.name else "llama"
    batch = inputs(network.encode([prompt]))
    hook = raw_hook(network.model, kind, "block_output", 0, None, lambda h: h + vector)
    ids = network.model.generate(**batch, **GREEDY, pad_token_id=network.tokenizer.pad_token_id)
    hook.remove()
    n = batch["input_ids"].shape[1]
    new = ids[0, n:]
    stop = next(
        (i + 1 for i, t in enumerate(new.tolist()) if t == network.tokenizer.eos_token_id), len(new)
    )
    with torch.no_grad():
        log_p = network.model(ids).logits[0].log_softmax(-1)
    loss = -log_p[n - 1 : n - 1 + stop].gather(1, new[:stop].unsqueeze(1)).mean()
    return network.tokenizer.decode(new[:stop], skip_special_tokens=True), float(loss)


def test_each_strength_equals_raw_hooks(network):
    before = fingerprint(network.model)
    torch.manual_seed(shifted(0))
    vector = torch.randn(16)
    long = lambda texts: [float(len(text)) for text in texts]
    found = steer(
        network,
        PROMPTS,
        SITE,
        {"v": iit.AdditionIntervention(vector)},
        [0, 1, 4],
        {"long": long},
        max_new_tokens=6,
    )
    assert found.points == (("no_intervention", 0), ("v", 0), ("v", 1), ("v", 4))
    for point, (_, strength) in enumerate(found.points):
        for row, prompt in enumerate(PROMPTS):
            text, loss = by_hand(network, prompt, strength * vector)
            assert found.texts[point][row] == text
            assert found.values["long"][point, row] == len(text)
            assert found.values["negative_log_likelihood"][point, row] == pytest.approx(
                loss, abs=1e-5
            )
    assert len(set(found.texts)) > 1
    assert found.interval(1, "perplexity").value == pytest.approx(
        np.exp(found.values["negative_log_likelihood"][1].mean())
    )
    assert fingerprint(network.model) == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.model.modules()
    )
    rows = found.rows(SITE, experiment="e", network="toy", split="validation")
    assert len(rows) == 4 * 3
    assert {row.control for row in rows[:3]} == {"no_intervention"}
    assert (rows[-1].method, rows[-1].draw) == ("v", 4)
    assert len(found.generations()) == 8


def test_strength_scales_any_edit_and_several_are_averaged(network):
    torch.manual_seed(shifted(0))
    trained = iit.LoReFTIntervention(16, 2)
    ids = iit.IntervenedModel(network, {SITE: trained}).generate(
        network.encode(PROMPTS), scope="all", **GREEDY
    )[:, 4:]
    options = {
        "max_new_tokens": 6,
        "effects": {"long": lambda texts: [float(len(text)) for text in texts]},
    }
    found = steer(network, PROMPTS, SITE, {"loreft": trained}, [1], **options)
    until_end = [
        row.split(network.tokenizer.eos_token)[0] for row in network.tokenizer.batch_decode(ids)
    ]
    # Special tokens, of which the unknown one may be among these, are not told.
    told = [text.replace(network.tokenizer.unk_token, "").split() for text in until_end]
    assert [text.split() for text in found.texts[1]] == told
    pair = [iit.AdditionIntervention(v) for v in random_directions(torch.ones(16), 2)]
    both = steer(network, PROMPTS, SITE, {"random": pair}, [3], **options)
    alone = [
        steer(network, PROMPTS, SITE, {"r": each}, [3], **options).values["long"][1]
        for each in pair
    ]
    np.testing.assert_allclose(both.values["long"][1], np.mean(alone, 0))


@pytest.mark.parametrize("position", [None, "last"])
def test_directions(network, position):
    site = iit.Site("block_output", layer=0, position=position)
    one, two = (
        network.encode(["Mary gave a book", "John went"]),
        network.encode(["Mary went", "a book John gave"]),
    )
    acts = [iit.capture(network, batch, iit.Site("block_output", layer=0)) for batch in (one, two)]
    each = [a[iit.Site("block_output", layer=0)] for a in acts]
    lengths = [(4, 2), (2, 4)]
    picked = [
        [h[row, 1:n] if position is None else h[row, n - 1 : n] for row, n in enumerate(ns)]
        for h, ns in zip(each, lengths, strict=True)
    ]
    means = [torch.cat(rows).mean(0) for rows in picked]
    found = difference_of_means(network, one, two, site)
    torch.testing.assert_close(found, means[0] - means[1])
    frame = iit.LowRankRotatedSpaceIntervention(16, 1)
    direction, q = frame_direction(frame, found), frame.basis.vectors()[:, 0]
    assert float(direction @ found) > 0
    torch.testing.assert_close(direction, torch.sign(q @ found) * q * found.norm())
    drawn = random_directions(found, 3)
    torch.testing.assert_close(torch.stack(drawn).norm(dim=1), found.norm().expand(3))
    assert float(torch.stack(drawn) @ drawn[0] @ torch.ones(3)) != pytest.approx(
        3 * float(found.norm()) ** 2
    )


def test_words_and_choices(network):
    options = {
        "max_new_tokens": 3,
        "effects": {"long": lambda texts: [float(len(t)) for t in texts]},
    }
    found = steer(
        network,
        PROMPTS,
        SITE,
        {"v": iit.AdditionIntervention(torch.ones(16))},
        {"v": [1, 2]},
        **options,
    )
    perplexity, effect = (
        [found.interval(i, m).value for i in range(3)] for m in ("perplexity", "long")
    )
    assert found.chosen("long", 1e9) == {"v": 1.0 if effect[1] >= effect[2] else 2.0}
    assert found.chosen("long", 0.5 * min(perplexity) / perplexity[0]) == {}


def test_what_cannot_steer(toy):
    network, edit = toy[0], iit.AdditionIntervention(torch.ones(16))
    for arguments, match in (
        ((PROMPTS, SITE, {"v": iit.VanillaIntervention()}, [1], {}), "reads a source"),
        (([], SITE, {"v": edit}, [1], {}), "at least one prompt"),
        ((PROMPTS, SITE, {"no_intervention": edit}, [1], {}), "otherwise"),
        ((PROMPTS, SITE, {"v": edit}, {"w": [1]}, {}), "the methods are"),
    ):
        with pytest.raises(ValueError, match=match):
            steer(network, *arguments)
    with pytest.raises(ValueError, match="no trained frame"):
        frame_direction(edit, torch.ones(16))
    with pytest.raises(ValueError, match="beside their first"):
        difference_of_means(network, network.encode(["John"]), network.encode(["Mary"]), SITE)
