"""Generation under edits equals a plain loop with raw hooks, whatever the cache, the padding, the
batch and the beams.
"""

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from tests.families import DECODERS, make, prompts
from tests.oracles import raw_hook
from tests.seeds import shifted

LENGTHS = (7, 4, 6)
ROLE = [5, 1, 2]
NEW = 5


def batch_of(seed=1, lengths=LENGTHS, role=ROLE):
    return prompts(lengths, seed) | {"positions": {"x": torch.tensor(role)}}


def left(batch):
    """The same prompts, padded on the left."""
    lengths, seq = batch["attention_mask"].sum(1), batch["attention_mask"].shape[1]
    rows = [(torch.arange(seq) - (seq - n)) % seq for n in lengths.tolist()]
    index = torch.stack(rows)
    return batch | {key: batch[key].gather(1, index) for key in ("input_ids", "attention_mask")}


def single(batch, row):
    n = int(batch["attention_mask"][row].sum())
    return {
        "input_ids": batch["input_ids"][row : row + 1, :n],
        "attention_mask": torch.ones(1, n, dtype=torch.long),
        "positions": {role: value[row : row + 1] for role, value in batch["positions"].items()},
    }


def oracle(network, family, ids, n_new, edit, component="block_output", layer=0):
    """Greedy search, one prompt, no cache: `edit(activation, n_prompt)` on the whole sequence at
    every step.
    """
    n_prompt = ids.shape[1]
    for _ in range(n_new):
        with (
            torch.no_grad(),
            raw_hook(network, family, component, layer, None, lambda a: edit(a, n_prompt)),
        ):
            logits = network(input_ids=ids, use_cache=False).logits
        token = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], 1)
        if int(token) == network.generation_config.eos_token_id:
            break
    return ids[0, n_prompt:].tolist()


def told(ids, n_prompt, network):
    """New tokens of each row, up to the end of text."""
    rows, end = [], network.generation_config.eos_token_id
    for row in ids[:, n_prompt:].tolist():
        rows.append(row[: row.index(end) + 1] if end in row else row)
    return rows


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_equals_a_loop_with_raw_hooks(family):
    network = make(family)
    base, source = batch_of(1), batch_of(2, (5, 7, 6), [3, 0, 4])
    swapped = []
    for row in range(3):
        kept = []
        one = single(source, row)
        with (
            torch.no_grad(),
            raw_hook(
                network, family, "block_output", 0, None, lambda a, kept=kept: kept.append(a) or a
            ),
        ):
            network(input_ids=one["input_ids"], use_cache=False)
        swapped.append(kept[0][0, source["positions"]["x"][row]])
    edited = IntervenedModel(
        network, {Site("block_output", layer=0, position="x"): iit.VanillaIntervention()}
    )
    for scope in ("prompt", "generated", "all"):
        expected = []
        for row in range(3):

            def edit(activation, n_prompt, row=row, scope=scope):
                activation = activation.clone()
                if scope != "generated":
                    activation[:, base["positions"]["x"][row]] = swapped[row]
                if scope != "prompt":
                    activation[:, n_prompt:] = swapped[row]
                return activation

            expected.append(oracle(network, family, single(base, row)["input_ids"], NEW, edit))
        for use_cache in (True, False):
            for laid in (base, left(base)):
                ids = edited.generate(
                    laid,
                    source,
                    scope=scope,
                    max_new_tokens=NEW,
                    do_sample=False,
                    use_cache=use_cache,
                )
                assert told(ids, 7, network) == expected, (scope, use_cache)
                assert torch.equal(ids[:, :7], laid["input_ids"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bloom", "opt"])
@pytest.mark.parametrize("scope", ["prompt", "generated", "all"])
def test_zero_steering_is_generate(family, scope):
    network = make(family)
    base = left(batch_of())
    edited = IntervenedModel(
        network, {Site("block_output", layer=1): iit.AdditionIntervention(torch.zeros(16))}
    )
    inactive = IntervenedModel(
        network, {Site("block_output", layer=1): iit.AdditionIntervention(torch.ones(16))}
    )
    inputs = {key: base[key] for key in ("input_ids", "attention_mask")}
    for options in (
        {"do_sample": False},
        {"num_beams": 3, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 2},
    ):
        torch.manual_seed(shifted(0))
        expected = network.generate(**inputs, max_new_tokens=NEW, **options)
        for model, active in ((edited, None), (inactive, {next(iter(inactive.edits)): False})):
            torch.manual_seed(shifted(0))
            assert torch.equal(
                model.generate(base, active=active, scope=scope, max_new_tokens=NEW, **options),
                expected,
            )


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "falcon_old"])
@pytest.mark.parametrize("scope", ["prompt", "all"])
def test_beams_do_not_depend_on_the_batch(family, scope):
    network = make(family)
    base, source = batch_of(1), batch_of(2)
    site = Site("attention_value_output", layer=0, head=[0, 2], position="x")
    edited = IntervenedModel(network, {"v": Edit(site, iit.VanillaIntervention())})
    active = torch.tensor([True, False, True])
    options = {
        "num_beams": 4,
        "num_return_sequences": 2,
        "max_new_tokens": NEW,
        "do_sample": False,
        "scope": scope,
    }
    ids = edited.generate(base, source, {"v": active}, **options)
    assert ids.shape[0] == 6
    for row in range(3):
        alone = edited.generate(
            single(base, row), single(source, row), {"v": active[row : row + 1]}, **options
        )
        n = alone.shape[1] - int(base["attention_mask"][row].sum())
        assert told(ids[2 * row : 2 * row + 2], 7, network) == told(
            alone, alone.shape[1] - n, network
        )
    unedited = edited.generate(base, active={"v": False}, **options)
    assert torch.equal(ids[2:4], unedited[2:4])
    # The edit does something; whether it changes the most likely beams is chance in a random
    # network.
    logits = [edited.answer_logits(base, source), edited.answer_logits(base, active={"v": False})]
    assert not torch.allclose(*logits, atol=1e-4)


def test_sampling_repeats_for_a_seed(tiny_llama):
    edited = IntervenedModel(
        tiny_llama, {Site("block_output", layer=0): iit.AdditionIntervention(torch.ones(16))}
    )
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(shifted(seed))
        found.append(edited.generate(prompts(), scope="all", do_sample=True, max_new_tokens=12))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("scope", ["prompt", "generated", "all"])
def test_blocks_and_skips_follow_the_tokens(tiny_llama, scope):
    base, source = batch_of(1), batch_of(2)
    rotation = iit.RotatedSpaceIntervention(16, blocks={"a": 6, "b": 10})
    blocked = IntervenedModel(tiny_llama, {Site("block_output", layer=0, position="x"): rotation})
    whole = IntervenedModel(
        tiny_llama, {Site("block_output", layer=0, position="x"): iit.VanillaIntervention()}
    )
    options = {"scope": scope, "max_new_tokens": NEW, "do_sample": False}
    assert torch.equal(
        blocked.generate(base, {"a": source, "b": source}, **options),
        whole.generate(base, source, **options),
    )
    skip = IntervenedModel(tiny_llama, {Site("block_output", layer=1): iit.SkipIntervention()})
    ids = skip.generate(base, **options)
    for row in range(3):
        one = single(base, row)
        kept = []

        def before(activation, _, kept=kept):
            kept[:] = [activation]
            return activation

        def after(activation, n_prompt, kept=kept):
            activation = activation.clone()
            columns = {
                "prompt": slice(None, n_prompt),
                "generated": slice(n_prompt, None),
                "all": slice(None),
            }[scope]
            activation[:, columns] = kept[0][:, columns]
            return activation

        n_prompt = one["input_ids"].shape[1]
        with raw_hook(tiny_llama, "llama", "block_input", 1, None, lambda a: before(a, None)):
            expected = oracle(tiny_llama, "llama", one["input_ids"], NEW, after, layer=1)
        assert told(ids[row : row + 1], 7, tiny_llama) == [expected], n_prompt


def test_the_network_is_as_before_also_after_an_exception(tiny_llama):
    edited = IntervenedModel(
        tiny_llama, {Site("block_output", layer=0): iit.AdditionIntervention(torch.ones(16))}
    )

    def bad(ids, scores):
        raise RuntimeError("a processor of the user's")

    with pytest.raises(RuntimeError, match="of the user's"):
        edited.generate(prompts(), max_new_tokens=2, logits_processor=[bad])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_llama.modules())
    fired = []
    handle = tiny_llama.model.layers[0].register_forward_hook(lambda *_: fired.append(1))
    edited.generate(prompts(), max_new_tokens=2)
    assert len(fired) == 2
    handle.remove()
    out = edited.generate(
        prompts(), max_new_tokens=2, return_dict_in_generate=True, do_sample=False
    )
    assert torch.equal(out.sequences, edited.generate(prompts(), max_new_tokens=2, do_sample=False))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scope": "everything"}, "none of prompt, generated, all"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
    ],
)
def test_what_generate_cannot_do_is_refused(tiny_llama, options, said):
    edited = IntervenedModel(
        tiny_llama, {Site("block_output", layer=0): iit.AdditionIntervention(torch.ones(16))}
    )
    with pytest.raises(ValueError, match=said):
        edited.generate(prompts(), max_new_tokens=2, **options)


def test_edits_that_make_no_sense_token_by_token_are_refused(tiny_llama):
    def edited(site, intervention, **kwargs):
        return IntervenedModel(tiny_llama, {"v": Edit(site, intervention, **kwargs)})

    span = Site("block_output", layer=0, position=[0, 1])
    with pytest.raises(ValueError, match="2 positions of the source"):
        edited(span, iit.VanillaIntervention()).generate(
            prompts(), prompts(), scope="all", max_new_tokens=2
        )
    edited(span, iit.VanillaIntervention()).generate(
        prompts(), prompts(), scope="prompt", max_new_tokens=2
    )
    with pytest.raises(ValueError, match="joint edit"):
        edited(span, iit.VanillaIntervention(), joint=True).generate(
            prompts(), prompts(), scope="all", max_new_tokens=2
        )
    eager = make("llama", attention="eager")
    weights = IntervenedModel(eager, {Site("attention_weight", layer=0): iit.ZeroIntervention()})
    with pytest.raises(ValueError, match="grows with every token"):
        weights.generate(prompts(), max_new_tokens=2)
    with pytest.raises(ValueError, match="no transformers decoder"):
        IntervenedModel(
            torch.nn.Sequential(torch.nn.Linear(2, 2)), {Site(module="0"): iit.ZeroIntervention()}
        ).generate({"input": torch.ones(1, 2)})
    with pytest.raises(ValueError, match="token_type_ids"):
        edited(span, iit.ZeroIntervention()).generate(
            prompts() | {"token_type_ids": torch.zeros(2, 7).long()}
        )
