"""A source need not be laid out as its base."""

import pytest
import torch

import iit
from iit import Edit, IntervenedModel, Site
from iit.intervened import ActivationStore
from tests.families import make, prompts


def edit(network, position, intervention=None, component="block_output", **kwargs):
    site = Site(component, layer=0, position=position, **kwargs)
    return IntervenedModel(network, {"x": Edit(site, intervention or iit.VanillaIntervention())})


def row(batch, number):
    n = int(batch["attention_mask"][number].sum())
    return {"input_ids": batch["input_ids"][number : number + 1, :n]}


def test_a_role_may_be_padded_differently(tiny_llama):
    base = prompts((6, 6), 1) | {"positions": {"r": torch.tensor([[1, 2], [3, -100]])}}
    source = prompts((6, 6), 2) | {
        "positions": {"r": torch.tensor([[-100, 4, -100, 5], [-100, -100, 0, -100]])}
    }
    found = edit(tiny_llama, "r")(base, source).logits
    for number, (at, start) in enumerate((([1, 2], [4, 5]), ([3], [0]))):
        one, other = (
            row(b, number) | {"positions": {"r": torch.tensor([i])}}
            for b, i in ((base, at), (source, start))
        )
        torch.testing.assert_close(
            found[number], edit(tiny_llama, "r")(one, other).logits[0], atol=1e-5, rtol=1e-5
        )


def test_an_inactive_source_may_have_any_length(tiny_llama):
    """It is not read."""
    base, source, active = (
        prompts((6, 4), 1),
        prompts((6, 8), 2),
        {"x": torch.tensor([True, False])},
    )
    found = edit(tiny_llama, None)(base, source, active).logits
    torch.testing.assert_close(
        found[0],
        edit(tiny_llama, None)(row(base, 0), row(source, 0)).logits[0],
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(
        found[1, :4], tiny_llama(**row(base, 1)).logits[0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("given", [False, True])
def test_a_mean_is_taken_over_the_positions_that_are_there(tiny_llama, given):
    base, source = prompts((6, 3), 1), prompts((6, 3), 2)
    site = Site("block_output", layer=0)
    acts = iit.capture(tiny_llama, source, site)
    found = edit(tiny_llama, None, iit.MeanIntervention())(base, acts if given else source).logits
    for number, n in enumerate((6, 3)):
        mean = acts[site][number, :n].mean(0).expand(1, n, 16)
        expected = edit(tiny_llama, None)(row(base, number), iit.Activations({site: mean})).logits[
            0
        ]
        torch.testing.assert_close(found[number, :n], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("head", [None, 1, [3, 0]])
def test_attention_weights_of_prompts_of_other_lengths(head, store):
    """Also with a source in a narrower batch, and with a base that an answer makes longer."""
    network = make("llama", attention="eager")
    edited = edit(network, -1, component="attention_weight", head=head)
    base, source = prompts((7, 5), 1), prompts((6, 4), 2)
    base["answer"] = torch.tensor([[9, 11, 12], [8, -100, -100]])
    edited.store = ActivationStore(network) if store else None
    for _ in range(2):
        found = edited.answer_logits(base, source)
    for number, answer in enumerate(([[9, 11, 12]], [[8]])):
        alone = edit(network, -1, component="attention_weight", head=head)
        expected = alone.answer_logits(
            row(base, number) | {"answer": torch.tensor(answer)}, row(source, number)
        )
        torch.testing.assert_close(
            found[number, : len(answer[0])], expected[0], atol=1e-5, rtol=1e-5
        )


def test_attention_weights_by_hand():
    """The base's last query looks where the source's last query looked, by token number."""
    network, base, source = make("llama", attention="eager"), prompts((7,), 1), prompts((4,), 2)
    site, written = (
        Site("attention_weight", layer=0, head=1, position=-1),
        Site("attention_value_output", layer=0, head=1),
    )
    edited = edit(network, -1, component="attention_weight", head=1)
    weights = iit.capture(network, source, site)[site]
    values = Site("value_output", layer=0, head=0)  # the key-value head of query heads 0 and 1
    expected = weights @ iit.capture(network, base, values)[values][:, :4]
    found = iit.capture(edited, base, written, sources=source)[written][:, -1:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_attention_to_tokens_the_base_lacks_is_refused():
    network = make("llama", attention="eager")
    edited = edit(network, -1, component="attention_weight")
    base, source = prompts((6, 4), 1), prompts((6, 5), 2)
    with pytest.raises(ValueError, match="example 1 reach beyond the base's 4 tokens"):
        edited(base, source)
    edited(base, source, active={"x": torch.tensor([True, False])})
    edit(network, 3, component="attention_weight")(base, source)
