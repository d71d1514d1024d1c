"""Sites at the answer's own tokens, against raw hooks on prompts that hold the answer."""

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from iit.intervened import ActivationStore
from tests.families import make, prompts
from tests.seeds import shifted

BASE_LENGTHS, SOURCE_LENGTHS = (7, 5, 6), (4, 6, 5)
LABELS = torch.tensor([[3, 14, 15], [9, 2, -100], [6, 5, 35]])
ANSWERS = torch.tensor([[8, 9, 7], [9, 3, 23], [8, 46, 26]])


def batches():
    base = prompts(BASE_LENGTHS, shifted(1)) | {"answer": LABELS}
    source = prompts(SOURCE_LENGTHS, shifted(2)) | {"answer": ANSWERS}
    return base, source


def with_answer(batch, row):
    """One example's real tokens, and behind them all but the last token of its answer."""
    length = int(batch["attention_mask"][row].sum())
    answer = [token for token in batch["answer"][row].tolist() if token != -100]
    return (
        torch.tensor([batch["input_ids"][row, :length].tolist() + answer[:-1]]),
        length,
        len(answer),
    )


def hidden_states(network, block, ids):
    """What a block gives, by a raw hook."""
    outputs = []

    def hook(_module, _args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(hook)
    network(input_ids=ids)
    handle.remove()
    return outputs[0]


def hooked_logits(network, path, base, source, k, row):
    """The logits of one example, at each of its answer's tokens, with the source's vector at
    answer[k].
    """
    source_ids, source_length, _ = with_answer(source, row)
    base_ids, base_length, n_answer = with_answer(base, row)
    vectors = []
    module = network.get_submodule(path)
    handle = module.register_forward_hook(lambda _m, _a, out: vectors.append(out.clone()))
    network(input_ids=source_ids)
    handle.remove()

    def swap(_module, _args, out):
        out = out.clone()
        out[:, base_length + k] = vectors[0][:, source_length + k]
        return out

    handle = module.register_forward_hook(swap)
    logits = network(input_ids=base_ids).logits[0, base_length - 1 : base_length - 1 + n_answer]
    handle.remove()
    return logits


@pytest.mark.parametrize("with_store", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_vector_at_an_answer_token_is_the_sources_own(family, with_store):
    network = make(family)
    path = {"llama": "model.layers.0.mlp", "gpt2": "transformer.h.0.mlp"}[family]
    base, source = batches()
    site = Site("mlp_output", layer=0, position="answer[0]")
    edited = IntervenedModel(network, {site: iit.VanillaIntervention()})
    edited.store = ActivationStore(network) if with_store else None
    for _ in range(2):  # the second time from what the first has left
        logits = edited.answer_logits(base, source)
        for row in range(3):
            expected = hooked_logits(network, path, base, source, 0, row)
            torch.testing.assert_close(logits[row, : len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_only_examples_whose_answers_are_long_enough_can_be_edited_there():
    network = make("llama")
    base, source = batches()
    site = Site("block_output", layer=0, position="answer[1]")
    edited = IntervenedModel(network, {"x": Edit(site, iit.VanillaIntervention())})
    with pytest.raises(ValueError, match=r"role 'answer\[1\]' is absent in example 1"):
        edited.answer_logits(base, source)
    long_enough = torch.tensor([True, False, True])
    logits = edited.answer_logits(base, source, active={"x": long_enough})
    plain = edited.answer_logits(base, active={"x": False})
    torch.testing.assert_close(logits[1, :2], plain[1, :2], atol=1e-5, rtol=1e-5)
    # What comes before the edited token is as it was.
    torch.testing.assert_close(logits[:, :2], plain[:, :2], atol=1e-5, rtol=1e-5)
    assert (logits[long_enough, 2] - plain[long_enough, 2]).abs().max() > 1e-3


def test_capture_reads_behind_the_prompt():
    network = make("llama")
    base, _ = batches()
    site = Site("block_output", layer=1, position="answer[0]")
    activations = iit.capture(network, base, site)[site]
    for row in range(3):
        ids, length, _ = with_answer(base, row)
        hidden = hidden_states(network, network.model.layers[1], ids)
        torch.testing.assert_close(activations[row, 0], hidden[0, length], atol=1e-5, rtol=1e-5)


def test_activations_can_be_the_source():
    network = make("llama")
    base, source = batches()
    site = Site("block_output", layer=0, position="answer[0]")
    edited = IntervenedModel(network, {site: iit.VanillaIntervention()})
    from_batch = edited.answer_logits(base, source)
    from_activations = edited.answer_logits(base, iit.capture(network, source, site))
    torch.testing.assert_close(from_batch, from_activations)


@pytest.mark.parametrize("position", ["answer[2]", "answer[7]"])
def test_the_last_token_is_only_read(position):
    network = make("llama")
    base, source = batches()
    edited = IntervenedModel(
        network, {Site("block_output", layer=0, position=position): iit.VanillaIntervention()}
    )
    with pytest.raises(ValueError, match="up to 3 tokens, of which the last is only read"):
        edited.answer_logits(base, source)


def test_where_nothing_is_teacher_forced_it_is_refused():
    network = make("llama")
    base, source = batches()
    edited = IntervenedModel(
        network, {Site("block_output", layer=0, position="answer[0]"): iit.VanillaIntervention()}
    )
    for call in (edited, edited.run, edited.generate):
        with pytest.raises(ValueError, match=r"`answer_logits` or `capture`"):
            call(base, source)
    without = {key: value for key, value in source.items() if key != "answer"}
    with pytest.raises(ValueError, match="Give base and source their `answer`"):
        edited.answer_logits(base, without)


def test_the_names_are_taken(toy):
    network, _ = toy
    with pytest.raises(ValueError, match=r"The role 'answer\[0\]' has its own token"):
        network.encode(["a b"], positions={"answer[0]": ["a"]})
