"""What runs left is used again, by whoever asks; and never where it would be wrong."""

import json
import logging
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import iit
from iit import Site
from iit.data import EncodedPairs
from iit.intervened import ActivationStore
from iit.intervened.store import StoreContents
from tests.alignment.test_fit import alignment_of, quiet
from tests.families import make, prompts
from tests.patching.contrasts import patched
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
    assert sum(rows) == 1, "once for the source and the base"
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
    assert not list(tmp_path.rglob(".writing"))


def test_another_network_has_another_shelf(tmp_path):
    network, other = make("llama"), make("llama")
    with torch.no_grad():  # one weight that the fingerprint does not read
        other.model.layers[0].mlp.up_proj.weight[5, 3] += 0.5
    assert iit.network.fingerprint(network) == iit.network.fingerprint(other)
    answers(network, SITES[0], ActivationStore(network, shelf=tmp_path))
    assert not len(ActivationStore(other, shelf=tmp_path))
    assert not len(ActivationStore(make("llama").double(), shelf=tmp_path))
    assert len(ActivationStore(make("llama"), shelf=tmp_path))


@pytest.mark.parametrize("how", ["cut", "empty"])
def test_damaged_files_are_found_and_made_again(how, tmp_path, caplog):
    network = make("llama")
    answers(network, SITES[0], ActivationStore(network, shelf=tmp_path))
    for path in list(tmp_path.rglob("*.safetensors")):
        path.write_bytes({"cut": path.read_bytes()[:-7], "empty": b""}[how])
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


def test_a_shelf_is_not_written_with_a_changed_network(tmp_path):
    """A change through `.data` is counted by nobody, but other processes read the shelf."""
    network, fresh = make("llama"), make("llama")
    store = ActivationStore(network, shelf=tmp_path)
    answers(network, SITES[0], store)
    n_kept = len(store)
    network.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    more = prompts((9, 6), 3), prompts((9, 6), 4)
    torch.testing.assert_close(
        answers(network, SITES[0], store, *more),
        answers(network, SITES[0], None, *more),
        atol=1e-5,
        rtol=1e-5,
    )
    assert len(ActivationStore(fresh, shelf=tmp_path)) == n_kept


def test_a_shelf_holds_runs_without_edits(tmp_path):
    with pytest.raises(ValueError, match="leave `shelf` or `under` out"):
        ActivationStore(make("llama"), shelf=tmp_path, under=lambda batch: None)


def test_the_oldest_shards_go_beyond_the_limit(tmp_path):
    first, second = make("llama"), make("gpt2")
    bystander = tmp_path / "weights" / "model.safetensors"
    bystander.parent.mkdir()
    bystander.write_bytes(bytes(10_000))
    answers(first, SITES[0], ActivationStore(first, shelf=tmp_path))
    old = set(tmp_path.rglob("activations-*"))
    limit = sum(path.stat().st_size for path in old)
    assert len(old) == 2, "sources, and bases"
    time.sleep(0.02)
    store = ActivationStore(second, shelf=tmp_path, limit=limit, budget=0)
    logits = answers(second, SITES[0], store)
    new = set(tmp_path.rglob("activations-*"))
    assert old - new, "those of another network count, too"
    assert new - old
    assert sum(path.stat().st_size for path in new) <= limit
    assert bystander.exists()

    more = prompts((9, 6), 3), prompts((9, 6), 4)
    answers(second, SITES[0], ActivationStore(second, shelf=tmp_path, limit=0), *more)
    assert not list(tmp_path.rglob("activations-*"))
    again = answers(second, SITES[0], store)
    torch.testing.assert_close(again, logits, atol=0, rtol=0, msg="what is mapped stays")
    torch.testing.assert_close(again, answers(second, SITES[0], None), atol=1e-5, rtol=1e-5)


def another_process(before, folder):
    """Another process fills a shelf with the answers of one site.

    before: what it does first.
    """
    code = f"""
import os, pathlib, signal, time
import iit.intervened.store as module
from tests.families import make
from tests.intervened.test_store import SITES, answers
folder = pathlib.Path({str(folder)!r})
{before}
network = make("llama")
answers(network, SITES[0], module.ActivationStore(network, shelf=folder / "shelf"))
"""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen([sys.executable, "-c", code], cwd=root)


def test_one_process_fills_a_shelf_while_others_wait_and_read(tmp_path, monkeypatch):
    other = another_process(
        """
real = module.observe
def observe(*args, **kwargs):
    (folder / "running").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return real(*args, **kwargs)
module.observe = observe
""",
        tmp_path,
    )
    network = make("llama")
    expected = answers(network, SITES[0], None)
    rows = counted(network, monkeypatch)
    store = ActivationStore(network, shelf=tmp_path / "shelf")
    store.is_trusted = lambda *args: True
    while not (tmp_path / "running").exists():
        assert other.poll() is None
        time.sleep(0.01)
    found = []
    waiting = threading.Thread(target=lambda: found.append(answers(network, SITES[0], store)))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive(), "the other process runs these prompts"
    (tmp_path / "go").touch()
    waiting.join(60)
    assert other.wait(60) == 0
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    n_files = len(list(tmp_path.rglob("activations-*")))
    assert (sum(rows), n_files) in {(0, 2), (2, 2)}, "sources come from the other; so may the bases"
    assert len(ActivationStore(network, shelf=tmp_path / "shelf")) == len(store)


def test_a_writer_that_is_killed_leaves_nothing_half(tmp_path):
    killed = another_process(
        """
def write(path, content):
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_bytes = write
""",
        tmp_path,
    )
    assert killed.wait(120) == -signal.SIGKILL
    assert list(tmp_path.rglob(".writing")), "it was killed while it wrote"
    network = make("llama")
    store = ActivationStore(network, shelf=tmp_path / "shelf")
    assert not len(store)
    torch.testing.assert_close(
        answers(network, SITES[0], store), answers(network, SITES[0], None), atol=1e-5, rtol=1e-5
    )
    assert not list(tmp_path.rglob(".writing"))
    assert len(ActivationStore(network, shelf=tmp_path / "shelf")) == len(store)


def test_files_of_a_writer_that_is_gone_are_not_believed(tmp_path):
    """Half a shard, and the file of a lock that nobody holds."""
    network = make("llama")
    answers(network, SITES[0], ActivationStore(network, shelf=tmp_path / "whole"))
    shard = next((tmp_path / "whole").rglob("activations-*"))
    left = tmp_path / "shelf" / shard.parent.name
    left.mkdir(parents=True)
    content = shard.read_bytes()
    (left / ".writing").write_bytes(content[: len(content) // 2])
    (left / ".lock").touch()
    store = ActivationStore(network, shelf=tmp_path / "shelf")
    assert not len(store)
    torch.testing.assert_close(
        answers(network, SITES[0], store), answers(network, SITES[0], None), atol=1e-5, rtol=1e-5
    )
    assert not (left / ".writing").exists()


@pytest.mark.long
@pytest.mark.parametrize("n_shards", [0, 3])
def test_a_job_that_is_killed_while_it_fills_leaves_nothing_that_is_believed(n_shards, tmp_path):
    """n_shards: how many whole ones it has written before it is killed."""
    reference = train(tmp_path / "reference", "store.shelf=null")
    assert reference.wait(900) == 0
    shelf = tmp_path / "shelf"
    killed = train(tmp_path / "killed", f"store.shelf={shelf}")
    while len(list(shelf.rglob("activations-*"))) < n_shards or not list(shelf.rglob(".lock")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()
    left = set(shelf.rglob("activations-*"))
    assert train(tmp_path / "next", f"store.shelf={shelf}").wait(900) == 0
    assert left < set(shelf.rglob("activations-*")), "what was whole is used, and the rest is added"
    rows = {}
    for name in ("reference", "next"):
        rows[name] = json.loads((tmp_path / name / "metrics.json").read_text())["rows"]
    for row, expected in zip(rows["next"], rows["reference"], strict=True):
        for name in ("value", "low", "high"):
            assert row.pop(name) == pytest.approx(expected.pop(name), abs=1e-3), row
        assert row == expected


def train(folder, *overrides):
    """A process with a small job on SmolLM2."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "train.py", "+experiment=das_ioi", "+debug=default"]
    options = ["callbacks=none", "logger=csv", f"hydra.run.dir={folder}", *overrides]
    return subprocess.Popen([*command, *options], cwd=root, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("asked", ["fit", "evaluate", "map"])
def test_any_change_of_the_weights_is_noticed_where_work_begins(asked, toy, tmp_path, caplog):
    network, pairs = toy
    alignment = alignment_of(network)
    store = alignment.store = ActivationStore(network.model)
    encoded = EncodedPairs(pairs.split("validation"), pairs.variables, network)
    batch = encoded.batch(range(len(encoded)))
    site = iit.Site("block_output", layer=0, position="place")
    weight = network.model.model.layers[0].mlp.up_proj.weight
    before = weight.clone()

    def logits(store):
        alignment.store = store
        with torch.no_grad():
            return alignment.answer_logits(batch["base"], batch["sources"])

    old = logits(store)
    try:
        weight.data[5] *= 30
        with caplog.at_level("INFO", logger="iit"):
            if asked == "fit":
                options = {"trainer": quiet, "batch_size": 16, "max_epochs": 1, "folder": tmp_path}
                iit.fit(alignment, pairs, **options)
            elif asked == "evaluate":
                iit.evaluate(alignment, pairs, split="validation", controls=False)
            else:
                patched(network, encoded, [site], store=store)
        assert "(its weights): what was kept of its runs is forgotten" in caplog.text
        torch.testing.assert_close(logits(store), logits(None), atol=1e-5, rtol=1e-5)
        assert (logits(store) - old).abs().max() > 1e-3
    finally:
        weight.data.copy_(before)


KEY = (Site("block_output", layer=0), (3, 4))


def is_mapped(tensor):
    """Whether a tensor's values lie in a file of `StoreContents`."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= tensor.data_ptr() < int(last, 16):
            return "iit-" in line
    return False


def test_beyond_the_budget_tensors_are_mapped(tmp_path):
    contents = StoreContents(100, tmp_path)
    first, second = torch.randn(5, 4), torch.randn(7, 4).to(torch.bfloat16).T
    cache = torch.randn(2, 2, 1, 0, 4)
    contents.add({KEY: first})
    contents.add({(KEY[0], (5,)): second, (None, (5,)): cache})
    kept = [contents[KEY], contents[KEY[0], (5,)], contents[None, (5,)]]
    for one, other in zip(kept, (first, second, cache), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert [is_mapped(tensor) for tensor in kept[:2]] == [False, True]
    assert not list(tmp_path.iterdir()), "the file has no name, so nothing is left behind"
    first[0, 0] = 7.0
    assert kept[0][0, 0] != 7.0, "they are copies"


def test_what_was_replaced_leaves_the_budget():
    contents = StoreContents(100, Path("not there"))
    for n_blocks in (1, 2, 3, 4, 5):
        contents.add({(None, (3, 4)): torch.ones(n_blocks, 2, 1, 1, 1)})
    (kept,) = contents.values()
    assert kept.shape == (5, 2, 1, 1, 1)
    assert not is_mapped(kept)
    contents.add({(None, (3, 4)): torch.zeros(2, 2, 1, 1, 1)})
    assert contents[None, (3, 4)] is kept, "what is kept only grows"


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="cannot be negative"):
        ActivationStore(make("llama"), budget=-1)


def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, before[1]))
    try:
        with pytest.raises(
            OSError,
            match=(
                rf"budget of 0 bytes .* wanted \d+ more of {tmp_path} .*"
                r"store\.folder=.*store\.budget="
            ),
        ):
            StoreContents(0, tmp_path).add({KEY: torch.ones(2**10)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
