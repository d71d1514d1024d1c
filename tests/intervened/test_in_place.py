"""What is handed out never changes later, and what is handed in never changes, on networks that
write in place.
"""

from collections import OrderedDict
from copy import deepcopy
from functools import partial
from typing import NamedTuple

import lightning as L
import pytest
import torch
from torch import nn

import iit
from iit.intervened import ActivationStore
from tests.families import make, prompts


class Writes(nn.Module):
    """Writes to its input, to what a module returned, and to a residual that a module saw."""

    def __init__(self):
        super().__init__()
        self.first, self.same, self.second, self.head = (
            nn.Linear(4, 4),
            nn.Identity(),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )
        self.active = nn.ReLU(inplace=True)

    def forward(self, x):
        x += 1
        hidden = self.active(self.first(x))
        kept = self.same(hidden)
        hidden -= 0.25
        hidden += self.second(kept)
        return self.head(self.active(hidden))


class Decoder(nn.Module):
    """Its states are written to in place, block by block."""

    def __init__(self):
        super().__init__()
        self.embedding, self.block, self.head = (
            nn.Embedding(20, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 20),
        )

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embedding(input_ids)
        hidden += self.block(hidden)
        hidden.relu_()
        logits = self.head(hidden)
        hidden.zero_()
        return logits


def by_hand(network, base, module, source):
    """The output with the whole output of a module replaced, by a raw hook."""
    handle = network.get_submodule(module).register_forward_hook(lambda *_: source.clone())
    with torch.no_grad():
        out = network(base.clone())
    handle.remove()
    return out


def read_by_hand(network, base, module):
    seen = []
    handle = network.get_submodule(module).register_forward_hook(
        lambda _m, _a, out: seen.append(out.clone())
    )
    with torch.no_grad():
        network(base.clone())
    handle.remove()
    return seen[0]


def zero_inputs(network):
    """Let every block zero the residual stream that it has read."""
    for block in next(m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) == 2):

        def forward(hidden_states, *args, inner=block.forward, **kwargs):
            out = inner(hidden_states.clone(), *args, **kwargs)
            hidden_states.zero_()
            return out

        block.forward = forward


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Writes().eval().requires_grad_(False)


@pytest.fixture
def base():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def source():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("module", ["first", "same", "second"])
def test_calls_captures_and_runs_repeat_themselves(network, base, source, module):
    site = iit.Site(module=module)
    edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
    held = base.clone(), source.clone()
    there = read_by_hand(network, source, module)
    want = by_hand(network, base, module, there)
    plain = network(base.clone())
    read = iit.capture(network, source, site)
    torch.testing.assert_close(read[site].squeeze(1), there)
    for _ in range(3):
        torch.testing.assert_close(edited(base, source), want)
        torch.testing.assert_close(edited(base, read), want)
        torch.testing.assert_close(edited.answer_logits(base, source).squeeze(1), want)
        run = edited.run(base, source)
        torch.testing.assert_close(run.output, want)
        torch.testing.assert_close(run.base_output, plain)
        torch.testing.assert_close(
            run.activations[site].squeeze(1), read_by_hand(network, base, module)
        )
        torch.testing.assert_close(edited.edited_activations(base, read)[site].squeeze(1), there)
        torch.testing.assert_close(
            iit.capture(edited, base, site, sources=read)[site].squeeze(1), there
        )
    torch.testing.assert_close(read[site].squeeze(1), there)
    assert torch.equal(base, held[0])
    assert torch.equal(source, held[1])


def test_a_vector_is_not_written_to(network, base):
    vector = torch.randn(4)
    held = vector.clone()
    site = iit.Site(module="first")
    edited = iit.IntervenedModel(network, {site: iit.MeanIntervention(vector=vector)})
    want = by_hand(network, base, "first", held.expand(5, 4))
    for _ in range(2):
        torch.testing.assert_close(edited(base), want)
    vector.zero_()
    torch.testing.assert_close(edited(base), want)


def test_a_function_may_write_to_what_it_is_given(network, base, source):
    site = iit.Site(module="first")
    there = read_by_hand(network, source, "first")
    read = iit.capture(network, source, site)
    edited = iit.IntervenedModel(
        network, {site: iit.LambdaIntervention(lambda b, s: b.add_(s.mul_(2)), needs_source=True)}
    )
    want = by_hand(network, base, "first", read_by_hand(network, base, "first") + 2 * there)
    for _ in range(2):
        run = edited.run(base, read)
        torch.testing.assert_close(run.output, want)
        torch.testing.assert_close(
            run.activations[site].squeeze(1), read_by_hand(network, base, "first")
        )


def test_a_decoder_of_ones_own_that_returns_a_tensor():
    torch.manual_seed(0)
    network = Decoder().eval().requires_grad_(False)
    base, source = prompts((6, 4)), prompts((6, 4), 2)
    for batch in (base, source):
        batch["input_ids"] %= 20
    for position in (None, "last", 2):
        site = iit.Site(module="embedding", position=position)
        edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
        columns = (
            [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3]]
            if position is None
            else [[5], [3]]
            if position == "last"
            else [[2], [2]]
        )
        states = network.embedding(base["input_ids"])
        for row, there in enumerate(columns):
            states[row, there] = network.embedding(source["input_ids"])[row, there]
        states += network.block(states)
        want = torch.stack(
            [network.head(states.relu())[row, last] for row, last in enumerate((5, 3))]
        )
        for _ in range(2):
            got = edited.answer_logits({**base, "answer": torch.tensor([[3], [4]])}, source)
            torch.testing.assert_close(got.squeeze(1), want)
            run = edited.run(base, source)
            torch.testing.assert_close(run.output[[0, 1], [5, 3]], want)
            assert run.activations[site].any()


@pytest.mark.parametrize("family", ["bloom"])
def test_transformers_whose_blocks_write_in_place(family):
    """Blocks that zero their input once it is used: capture, the store, a skipped block,
    generation.
    """
    network = make(family)
    clean = make(family)
    zero_inputs(network)
    base, source = prompts((7, 5)), prompts((7, 5), 2)
    ids = base["input_ids"].clone()
    sites = [
        iit.Site("block_input", layer=1),
        iit.Site("block_output", layer=0),
        iit.Site("block_output", layer=0, position="last"),
    ]
    for site in sites:
        read = iit.capture(network, source, site)
        torch.testing.assert_close(read[site], iit.capture(clean, source, site)[site])
        held = read[site].clone()
        edited, right = (
            iit.IntervenedModel(n, {site: iit.VanillaIntervention()}) for n in (network, clean)
        )
        for store in (None, ActivationStore(network)):
            edited.store = store
            for given in (source, read, source):
                want = right.answer_logits(base, source)
                torch.testing.assert_close(
                    edited.answer_logits(base, given), want, atol=1e-5, rtol=1e-5
                )
        options = {"max_new_tokens": 3, "do_sample": False}
        assert torch.equal(
            edited.generate(base, read, **options), right.generate(base, read, **options)
        )
        assert torch.equal(read[site], held)
    skips = [
        iit.IntervenedModel(n, {iit.Site("block_output", layer=1): iit.SkipIntervention()})
        for n in (network, clean)
    ]
    torch.testing.assert_close(*(skip.answer_logits(base) for skip in skips))
    assert torch.equal(base["input_ids"], ids)


def test_a_cache_is_no_input():
    network = make("llama")
    cache = network(**prompts(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="every run would add to them"):
        iit.capture(
            network, {**prompts(), "past_key_values": cache}, iit.Site("block_output", layer=0)
        )


def test_a_fit_and_a_sweep_on_blocks_that_write_in_place(toy):
    clean, pairs = toy
    network = iit.LanguageModel(deepcopy(clean.model), clean.tokenizer)
    zero_inputs(network.model)
    site = iit.Site("block_input", layer=1, position="place")
    rows, frames = [], []
    quiet = partial(L.Trainer, enable_progress_bar=False, enable_model_summary=False)
    for one in (network, clean):
        torch.manual_seed(0)
        alignment = iit.Alignment(
            one, {pairs.variable: iit.Edit(site, iit.LowRankRotatedSpaceIntervention(16, 2))}
        )
        iit.fit(alignment, pairs, trainer=quiet, batch_size=64, max_epochs=1, seed=0)
        frames.append(alignment.interventions[0].basis.weight.detach())
        cells = iit.sweep(
            one,
            pairs,
            components=["block_input"],
            layers=[1],
            positions=["place", "last"],
            resamples=2,
        )
        rows.append(torch.tensor([row.value for row in cells]))
    torch.testing.assert_close(*frames, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*rows, equal_nan=True)


class Pair(NamedTuple):
    one: torch.Tensor
    two: torch.Tensor


class Nested(nn.Module):
    """Writes to a tensor inside of its input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        first = x[0] if isinstance(x, Pair) else x["one"]
        first += 1
        return self.layer(first)


@pytest.mark.parametrize(
    "nest",
    [
        Pair,
        lambda one, two: OrderedDict(one=one, two=two),
        lambda one, two: {"one": one, "two": two},
    ],
)
def test_what_is_nested_in_an_input_stays_as_it_was(nest):
    torch.manual_seed(0)
    network, one = Nested(), torch.zeros(2, 4)
    site = iit.Site(module="layer")
    with torch.no_grad():
        expected = network.layer(torch.ones(2, 4))
    for _ in range(3):
        torch.testing.assert_close(
            iit.capture(network, {"x": nest(one, one.clone())}, site)[site].flatten(0, -2), expected
        )
    assert torch.equal(one, torch.zeros(2, 4))
