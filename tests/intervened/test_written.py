"""Activations of what is written: `generate` collects and edits new tokens as a plain loop with raw
hooks does, whatever the cache, the padding and the ends of the texts.
"""

from functools import partial
from itertools import combinations

import pytest
import torch
import transformers as t

import iit
from iit import Edit, IntervenedModel, LanguageModel, Site
from tests.families import make, prompts
from tests.intervened.test_generate import left, single
from tests.made_tokenizers import byte_level, metaspace, prepend
from tests.oracles import raw_hook
from tests.seeds import shifted

LENGTHS, ROLE, NEW = (7, 4, 6), [5, 1, 2], 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
# The literal paths of two families' blocks.
BLOCKS = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}"}
BOTH = pytest.mark.parametrize("family", list(BLOCKS))


def batch_of(seed=1, lengths=LENGTHS, role=ROLE):
    return prompts(lengths, seed) | {"positions": {"x": torch.tensor(role)}}


def write(network, family, prompt, ends=(), edit=None, read=1, edited=0):
    """Greedy search of one prompt without a cache, hooked by hand: the new tokens, and the output
    of block `read` at every token that was read, Tensor[position, width].

    `edit(activation, n_prompt)` changes the output of block `edited`, Tensor[1, position, width].
    """
    ids, n_prompt, kept = prompt, prompt.shape[1], []

    def first(output):
        return output[0] if isinstance(output, tuple) else output

    def change(_module, _args, output):
        new = edit(first(output).clone(), n_prompt)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def keep(_module, _args, output):
        kept[:] = [first(output)[0].clone()]

    handles = []
    if edit is not None:
        path = BLOCKS[family].format(edited)
        handles.append(network.get_submodule(path).register_forward_hook(change))
    path = BLOCKS[family].format(read)
    handles.append(network.get_submodule(path).register_forward_hook(keep))
    for _ in range(NEW):
        with torch.no_grad():
            token = network(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], 1)
        if int(token) in ends:
            break
    for handle in handles:
        handle.remove()
    return ids[0, n_prompt:].tolist(), kept[0]


def written(network, family, base, ends=(), edits=(None, None, None), **where):
    """`write` of each prompt."""
    return [
        write(network, family, single(base, row)["input_ids"], ends, edits[row], **where)
        for row in range(3)
    ]


def ends_of(network, family, *batches):
    """End tokens with which the first batch's rows end at different steps; all end late."""
    plain = [tokens for batch in batches for tokens, _ in written(network, family, batch)]

    def order(ends):
        n = [next((k for k, i in enumerate(row, 1) if i in ends), NEW) for row in plain]
        return len(set(n[:3])), sum(n)

    pairs = combinations(sorted({token for tokens in plain for token in tokens}), 2)
    return list(max(pairs, key=order))


def differ(first, second):
    """Whether an edit shows: in the tokens, or in the activations behind it."""
    return any(
        one != other or not torch.allclose(a, b, atol=1e-4)
        for (one, a), (other, b) in zip(first, second, strict=True)
    )


def check(result, expected, base):
    """What was written, and the activations of every site, against the loop's."""
    n_columns = base["input_ids"].shape[1]
    for row, (tokens, activation) in enumerate(expected):
        n_prompt, n = int(base["attention_mask"][row].sum()), len(tokens)
        new = result.sequences[row, n_columns:].tolist()
        assert new[:n] == tokens
        assert int(result.n_new[row]) == n
        for site, values in result.activations.items():
            places = list(range(n_prompt + n - 1))
            if site.position == "new":
                places = places[n_prompt:]
            elif site.position == "new[1]":
                places = places[n_prompt + 1 : n_prompt + 2]
            elif site.position is not None:
                last = isinstance(site.position, int)
                places = [n_prompt - 1 if last else int(base["positions"]["x"][row])]
            at = result.positions[site][row]
            assert at.tolist() == places + [-100] * (len(at) - len(places)), site
            torch.testing.assert_close(
                values[row, : len(places)], activation[places], atol=1e-5, rtol=0
            )
            assert not values[row, len(places) :].any()
            assert int(result.activations.counts[site][row]) == len(places)


@BOTH
@pytest.mark.parametrize("use_cache", [True, False])
def test_collecting_equals_a_loop_with_raw_hooks(family, use_cache):
    network, base = make(family), batch_of()
    ends = ends_of(network, family, base)
    options = {**GREEDY, "eos_token_id": ends, "use_cache": use_cache}
    positions = (None, "new", "new[1]", "x", -1)
    sites = [Site("block_output", layer=1, position=position) for position in positions]

    expected = written(network, family, base, ends)
    assert len({len(tokens) for tokens, _ in expected}) > 1
    shift = torch.linspace(-3, 3, 16)
    steered = IntervenedModel(
        network, {Site("block_output", layer=0): iit.AdditionIntervention(shift)}
    )

    def add(activation, n_prompt):
        activation[:, n_prompt:] += shift
        return activation

    expected_steered = written(network, family, base, ends, [add] * 3)
    assert differ(expected_steered, expected)
    for laid in (base, left(base)):
        result = IntervenedModel(network, {}).generate(laid, collect=sites, **options)
        check(result, expected, base)
        assert torch.equal(result.sequences[:, :7], laid["input_ids"])
        assert torch.equal(result.output, result.sequences)
        assert result.texts is None
        result = steered.generate(laid, collect=sites, scope="generated", **options)
        check(result, expected_steered, base)
    # Alone, a prompt gives the same: nothing depends on the batch.
    alone = IntervenedModel(network, {}).generate(single(base, 1), collect=sites[0], **options)
    n = alone.activations[sites[0]].shape[1]
    whole = IntervenedModel(network, {}).generate(base, collect=sites, **options)
    torch.testing.assert_close(
        alone.activations[sites[0]][0], whole.activations[sites[0]][1, :n], atol=1e-5, rtol=0
    )
    assert torch.equal(alone.positions[sites[0]][0], whole.positions[sites[0]][1, :n])


@BOTH
@pytest.mark.parametrize("use_cache", [True, False])
def test_edits_at_new_tokens_equal_a_loop_with_raw_hooks(family, use_cache):
    network, base, source = make(family), batch_of(), batch_of(2, (5, 7, 6), [3, 0, 4])
    swapped = [
        write(network, family, single(source, row)["input_ids"], read=0)[1][
            int(source["positions"]["x"][row])
        ]
        for row in range(3)
    ]
    source_site = Site("block_output", layer=0, position="x")
    plain = written(network, family, base)
    for position, which in (("new[0]", [0]), ("new[2]", [2]), ("new", range(NEW))):
        site = Site("block_output", layer=0, position=position)
        edited = IntervenedModel(network, {"v": Edit(site, iit.VanillaIntervention(), source_site)})

        def swap(activation, n_prompt, row=0, which=which):
            for k in which:
                activation[:, n_prompt + k : n_prompt + k + 1] = swapped[row]
            return activation

        edits = [partial(swap, row=row) for row in range(3)]
        expected = written(network, family, base, edits=edits)
        assert differ(expected, plain)
        # Such an edit says itself where it acts.
        for scope in ("prompt", "generated", "all"):
            for laid in (base, left(base)):
                result = edited.generate(
                    laid,
                    source,
                    scope=scope,
                    collect=Site("block_output", layer=1),
                    use_cache=use_cache,
                    **GREEDY,
                )
                check(result, expected, base)


@BOTH
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_source_is_read_at_what_it_writes(family, use_cache):
    network, base, source = make(family), batch_of(), batch_of(2, (5, 7, 6), [3, 0, 4])
    ends = ends_of(network, family, source, base)
    options = {**GREEDY, "eos_token_id": ends, "use_cache": use_cache}
    site = Site("block_output", layer=0, position="new")
    texts = written(network, family, source, ends, read=0)

    def swap(activation, n_prompt, row):
        values = texts[row][1][int(source["attention_mask"][row].sum()) :]
        # Tokens beyond those of the source stay as they are.
        n = min(len(values), activation.shape[1] - n_prompt)
        activation[:, n_prompt : n_prompt + n] = values[:n]
        return activation

    edits = [partial(swap, row=row) for row in range(3)]
    expected = written(network, family, base, ends, edits)
    plain = written(network, family, base, ends)
    assert differ(expected, plain)
    collected = IntervenedModel(network, {}).generate(source, collect=site, **options).activations
    assert len(set(collected.counts[site].tolist())) > 1
    edited = IntervenedModel(network, {site: iit.VanillaIntervention()})
    blocks = iit.RotatedSpaceIntervention(16, blocks={"a": 6, "b": 10})
    blocked = IntervenedModel(network, {"v": Edit(site, blocks)})
    later = Site("block_output", layer=1)
    for laid in (base, left(base)):
        check(edited.generate(laid, collected, collect=later, **options), expected, base)
        both = {"a": collected, "b": collected}
        check(blocked.generate(laid, both, collect=later, **options), expected, base)
    # An inactive example is not edited.
    active = {site: torch.tensor([True, False, True])}
    mixed = edited.generate(base, collected, active, collect=later, **options)
    check(mixed, [expected[0], plain[1], expected[2]], base)


def test_a_written_token_is_a_source_for_the_prompt(tiny_llama):
    base, source = batch_of(), batch_of(2)
    new = Site("block_output", layer=0, position="new[1]")
    site = Site("block_output", layer=0, position="x")
    edited = IntervenedModel(tiny_llama, {"v": Edit(site, iit.VanillaIntervention(), new)})
    collected = IntervenedModel(tiny_llama, {}).generate(source, collect=new, **GREEDY)
    logits = edited.answer_logits(base, collected.activations)
    for row in range(3):
        prompt = single(source, row)["input_ids"]
        activation = write(tiny_llama, "llama", prompt, read=0)[1]
        value = activation[prompt.shape[1] + 1]

        def swap(whole, row=row, value=value):
            whole = whole.clone()
            whole[:, int(base["positions"]["x"][row])] = value
            return whole

        with raw_hook(tiny_llama, "llama", "block_output", 0, None, swap), torch.no_grad():
            out = tiny_llama(input_ids=single(base, row)["input_ids"]).logits[0, -1]
        torch.testing.assert_close(logits[row, 0], out, atol=1e-5, rtol=0)


def test_samples_have_activations_of_their_own(tiny_llama):
    base, site = batch_of(), Site("block_output", layer=1)
    torch.manual_seed(shifted(0))
    result = IntervenedModel(tiny_llama, {}).generate(
        left(base), collect=site, do_sample=True, num_return_sequences=2, max_new_tokens=NEW
    )
    assert len(result.sequences) == 6
    for row in range(6):
        prompt = single(base, row // 2)["input_ids"]
        new = result.sequences[row : row + 1, 7 : 7 + int(result.n_new[row]) - 1]
        text = {"input_ids": torch.cat([prompt, new], 1)}
        expected = iit.capture(tiny_llama, text, site)[site][0]
        torch.testing.assert_close(
            result.activations[site][row, : len(expected)], expected, atol=1e-5, rtol=0
        )


def test_a_collecting_intervention_reads_where_it_stands(tiny_llama):
    base, site = batch_of(), Site("block_output", layer=0, position="new")
    ones = iit.AdditionIntervention(torch.ones(16))
    edited = IntervenedModel(
        tiny_llama, {"before": Edit(site, iit.CollectIntervention()), "edit": Edit(site, ones)}
    )
    result = edited.generate(base, **GREEDY)
    expected = written(tiny_llama, "llama", base, edits=[lambda a, n: _plus(a, n)] * 3, read=0)
    for row, (tokens, activation) in enumerate(expected):
        assert result.sequences[row, 7 : 7 + len(tokens)].tolist() == tokens
        values = activation[int(base["attention_mask"][row].sum()) :] - 1
        torch.testing.assert_close(
            result.activations[site][row, : len(values)], values, atol=1e-5, rtol=0
        )
    output = edited.generate(base, return_dict_in_generate=True, output_scores=True, **GREEDY)
    assert torch.equal(output.output.sequences, result.sequences)
    assert len(output.output.scores) == result.sequences.shape[1] - 7


def _plus(activation, n_prompt):
    activation[:, n_prompt:] += 1
    return activation


@pytest.mark.parametrize(
    "kind", [lambda: prepend("<s> $A"), lambda: metaspace("<s> $A"), byte_level]
)
def test_texts_are_those_of_the_tokenizer(kind):
    tokenizer = kind()
    torch.manual_seed(shifted(0))
    config = t.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = t.LlamaForCausalLM(config).eval()
    lm = LanguageModel(model, tokenizer, "toy")
    site = Site("block_output", layer=1, position="new")
    texts = ["When John left", "Mary gave John milk to"]
    result = IntervenedModel(lm, {}).generate(
        lm.encode(texts), collect=site, **GREEDY | {"eos_token_id": 2}
    )
    for row, text in enumerate(texts):
        ids = lm.encode([text])["input_ids"]
        for _ in range(NEW):
            token = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, token], 1)
            if int(token) == 2:
                break
        n_prompt = lm.encode([text])["input_ids"].shape[1]
        new = ids[0, n_prompt:].tolist()
        assert result.texts[row] == tokenizer.decode(new, skip_special_tokens=True)
        assert int(result.n_new[row]) == len(new)


def test_what_cannot_be_read_is_refused(tiny_llama):
    base, source = batch_of(), batch_of(2)
    new = Site("block_output", layer=0, position="new")
    at = partial(Site, "block_output", layer=0)
    plain = IntervenedModel(tiny_llama, {})
    swap = IntervenedModel(tiny_llama, {new: iit.VanillaIntervention()})
    for given in (
        lambda: iit.capture(tiny_llama, base, new),
        lambda: swap.answer_logits(base, source),
        lambda: swap(base, source),
        lambda: swap.generate(base, source, **GREEDY),
        lambda: plain.generate(base, collect=at(position=["x", "new[0]"]), **GREEDY),
    ):
        with pytest.raises(ValueError, match=r"has no role .new.*a collecting `generate`"):
            given()
    config = t.GenerationConfig(max_new_tokens=NEW)
    for options in (
        {"num_beams": 2},
        {"stop_strings": ["a"]},
        {"stopping_criteria": [lambda: 1]},
        {"generation_config": config},
    ):
        with pytest.raises(ValueError, match="that collects does not go together with"):
            plain.generate(base, collect=new, **GREEDY, **options)
    with pytest.raises(ValueError, match="give the role of the prompts another"):
        plain.generate(base | {"positions": {"new": torch.tensor(ROLE)}}, collect=new, **GREEDY)
    # Two positions of a source, and one new token after another.
    span = Edit(new, iit.VanillaIntervention(), at(position=[0, 1]))
    with pytest.raises(ValueError, match="2 positions of the source"):
        IntervenedModel(tiny_llama, {"v": span}).generate(base, source, **GREEDY)
    # One source ends before its token 3.
    ends = ends_of(tiny_llama, "llama", source)
    third = at(position="new[3]")
    collected = plain.generate(source, collect=third, **{**GREEDY, "eos_token_id": ends})
    assert 0 in collected.activations.counts[third]
    swap = IntervenedModel(tiny_llama, {third: iit.VanillaIntervention()})
    with pytest.raises(ValueError, match="0 in the source"):
        swap.generate(base, collected.activations, **GREEDY)
    # A role of this name stays a role where nothing is written.
    role = base | {"positions": {"new": torch.tensor(ROLE)}}
    captured = iit.capture(tiny_llama, role, new)[new]
    assert torch.equal(captured, iit.capture(tiny_llama, base, at(position="x"))[at(position="x")])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_llama.modules())
