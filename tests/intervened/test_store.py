"""What runs left is used again, by whoever asks; and never where it would be wrong."""

import logging

import pytest
import torch

import iit
from iit import Site
from iit.intervened import ActivationStore
from tests.families import make, prompts
from tests.seeds import shifted


def answers(network, site, store, base=None, source=None):
    torch.manual_seed(shifted(0))
    edited = iit.IntervenedModel(network, {site: iit.LowRankRotatedSpaceIntervention(16, 2)})
    edited.store = store
    with torch.no_grad():
        return edited.answer_logits(base or prompts((9, 6), 1), source or prompts((9, 6), 2))


def counted(network, monkeypatch):
    """How many rows the first block has run. The class's method is replaced: a network with a
    method of its own is another one.
    """
    rows, first = [], network.model.layers[0].mlp
    real = type(first).forward
    monkeypatch.setattr(
        type(first),
        "forward",
        lambda self, x: (self is first and rows.append(len(x))) or real(self, x),
    )
    return rows


SITES = [
    Site("block_output", layer=layer, position=position) for layer in (1, 0) for position in (3, -1)
]


def test_a_sweep_over_layers_runs_each_prompt_once(monkeypatch):
    network = make("llama")
    expected = [answers(network, site, None) for site in SITES]
    rows = counted(network, monkeypatch)
    store = ActivationStore(network, layers=[1, 2])
    store.is_trusted = lambda *args: True  # the comparison with a whole run would be counted
    found = [answers(network, site, store) for site in SITES]
    assert sum(rows) == 4, "two bases and two sources, for four sites at two layers"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_filled_up_front_nothing_is_left_to_run(monkeypatch):
    network = make("llama")
    rows = counted(network, monkeypatch)
    store = ActivationStore(network, layers=[1, 2])
    store.is_trusted = lambda *args: True
    store.fill([prompts((9, 6), 1), prompts((9, 6), 2), prompts((9, 6), 1)])
    assert sum(rows) == 4
    for site in SITES:
        answers(network, site, store)
    assert sum(rows) == 4
    with pytest.raises(ValueError, match="make the store with `layers`"):
        ActivationStore(network).fill([prompts((6, 6), 1)])
    with pytest.raises(ValueError, match="cannot be run up front: the inputs are not tokens alone"):
        store.fill([{"inputs_embeds": torch.zeros(1, 3, 16)}])


def test_a_prompt_that_is_twice_in_a_batch_is_run_once(monkeypatch):
    network = make("llama")
    rows = counted(network, monkeypatch)
    twice = {"input_ids": torch.tensor([[3, 4, 5, 6, 7]] * 3)}
    store = ActivationStore(network)
    store.is_trusted = lambda *args: True
    found = answers(network, SITES[2], store, twice, twice)
    assert sum(rows) == 2, "once as a source, at one column, and once as a base"
    torch.testing.assert_close(
        found, answers(network, SITES[2], None, twice, twice), atol=1e-5, rtol=1e-5
    )


def test_edits_that_take_turns_do_not_run_prompts_again(monkeypatch):
    network = make("llama")
    rows = counted(network, monkeypatch)
    store = ActivationStore(network)
    store.is_trusted = lambda *args: True
    low, high = Site("block_output", layer=0, position=2), Site("mlp_output", layer=1, position=-1)
    for _ in range(3):
        answers(network, low, store)
        answers(network, high, store)
        before = sum(rows) if _ == 0 else before
    assert sum(rows) == before


def test_a_shelf_serves_another_store(tmp_path, monkeypatch):
    network = make("llama")
    expected = [answers(network, site, None) for site in SITES]
    for site in SITES:
        answers(network, site, ActivationStore(network, shelf=tmp_path))
    again = make("llama")
    rows = counted(again, monkeypatch)
    store = ActivationStore(again, shelf=tmp_path)
    store.is_trusted = lambda *args: True
    for site, logits in zip(SITES, expected, strict=True):
        torch.testing.assert_close(answers(again, site, store), logits, atol=1e-5, rtol=1e-5)
    assert not rows, "everything was on the shelf"
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".writing")]


def test_another_network_has_another_shelf(tmp_path):
    network, other = make("llama"), make("llama")
    with torch.no_grad():  # one weight that the fingerprint does not read
        other.model.layers[0].mlp.up_proj.weight[5, 3] += 0.5
    assert iit.network.fingerprint(network) == iit.network.fingerprint(other)
    answers(network, SITES[0], ActivationStore(network, shelf=tmp_path))
    assert not len(ActivationStore(other, shelf=tmp_path))
    assert not len(ActivationStore(make("llama").double(), shelf=tmp_path))
    assert len(ActivationStore(make("llama"), shelf=tmp_path))


@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_damaged_files_are_found_and_made_again(how, tmp_path, caplog):
    network = make("llama")
    answers(network, SITES[0], ActivationStore(network, shelf=tmp_path))
    files = list(tmp_path.rglob("*.safetensors"))
    for path in files:
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes({"cut": content[:-7], "changed": content, "empty": b""}[how])
    with caplog.at_level(logging.WARNING):
        store = ActivationStore(network, shelf=tmp_path)
    assert not len(store)
    assert "is damaged and removed" in caplog.text
    torch.testing.assert_close(
        answers(network, SITES[0], store), answers(network, SITES[0], None), atol=1e-5, rtol=1e-5
    )
    caplog.clear()
    assert len(ActivationStore(network, shelf=tmp_path)) == len(store)
    assert not caplog.records


def test_a_file_of_another_network_is_left_alone(tmp_path, caplog):
    network, other = make("llama"), make("gpt2")
    answers(network, SITES[0], ActivationStore(network, shelf=tmp_path))
    ActivationStore(other, shelf=tmp_path)
    theirs = next(folder for folder in tmp_path.iterdir() if not list(folder.iterdir()))
    for path in list(tmp_path.rglob("*.safetensors")):
        (theirs / path.name).write_bytes(path.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert not len(ActivationStore(other, shelf=tmp_path))
    assert "it was made with another network" in caplog.text
    assert list(theirs.iterdir())


def test_a_change_of_the_network_changes_the_shelf(tmp_path):
    network = make("llama")
    store = ActivationStore(network, shelf=tmp_path)
    answers(network, SITES[0], store)
    with torch.no_grad():
        network.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    torch.testing.assert_close(
        answers(network, SITES[0], store), answers(network, SITES[0], None), atol=1e-5, rtol=1e-5
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_replaced_leaves_the_budget():
    network = make("llama")
    store = ActivationStore(network)
    high, low = Site("mlp_output", layer=1, position=-1), Site("block_output", layer=0, position=2)
    for site in (low, high):  # the latter needs keys and values of more columns
        answers(network, site, store)
    contents = store._contents
    held = [cache.values for cache in contents.caches.values()] + [
        known.values for known in contents._values.values()
    ]
    assert contents._spill.in_memory == sum(tensor.nbytes for tensor in held)
