import json
import os
import signal
import subprocess
import sys
import weakref

import pytest
import torch
from datasets import Dataset
from torch import nn

import iit
from iit import Captured, Site
from iit.intervened.observe import observe
from tests.families import make, prompts

EVERY, LAST, SPAN = (
    Site("block_output", layer=0),
    Site("mlp_output", layer=1, position="last"),
    Site("attention_value_output", layer=1, head=2, position="x"),
)
SITES = [EVERY, LAST, SPAN]


def data():
    """Three batches of ragged prompts, each with a role of one or two tokens."""
    batches = []
    for number, lengths in enumerate([(7, 5), (6, 6), (3,)]):
        batch = prompts(lengths, seed=number + 1)
        batch["positions"] = {"x": torch.tensor([[2, 1]] * len(lengths))}
        batch["positions"]["x"][0, 1] = -100
        batches.append(batch)
    return batches


def expected(network, batches):
    """By example, from `capture` on each example alone."""
    rows = {site: [] for site in SITES}
    for batch in batches:
        for i, n in enumerate(batch["attention_mask"].sum(1)):
            x = [c for c in batch["positions"]["x"][i].tolist() if c >= 0]
            alone = {
                "input_ids": batch["input_ids"][i : i + 1, :n],
                "positions": {"x": torch.tensor([x])},
            }
            for site, activation in iit.capture(network, alone, SITES).items():
                rows[site].append(activation[0])
    return rows


@pytest.fixture(params=["memory", "folder"])
def folder(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "new" / "captured"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_rows_are_each_examples_positions_one_after_the_other(family, folder):
    network = make(family)
    site_rows = expected(network, data())
    captured = iit.capture_dataset(network, iter(data()), SITES, folder=folder)
    assert list(captured) == SITES
    assert captured.n_examples == 5
    for site, rows in site_rows.items():
        assert captured[site].shape == (sum(map(len, rows)), rows[0].shape[1])
        assert captured.offsets[site].diff().tolist() == [len(r) for r in rows]
        for number, one in enumerate(rows):
            torch.testing.assert_close(captured.example(site, number), one, atol=2e-5, rtol=2e-5)
    assert [len(captured[site]) for site in SITES] == [27, 5, 7]


def test_a_folder_holds_the_same_bits_as_memory_and_is_read_back(tmp_path):
    network = make("llama")
    memory = iit.capture_dataset(network, data(), SITES)
    written = iit.capture_dataset(network, data(), SITES, folder=tmp_path / "c")
    loaded = Captured.load(tmp_path / "c", network)
    for one in (written, loaded):
        assert list(one) == SITES
        assert all(torch.equal(one[site], memory[site]) for site in SITES)
        assert all(torch.equal(one.offsets[site], memory.offsets[site]) for site in SITES)
        assert (one.network, one.inputs_sha256) == (memory.network, memory.inputs_sha256)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        *(f"{n}.safetensors" for n in range(3)),
        "index.json",
        "offsets.safetensors",
    ]
    loaded[LAST].zero_()
    assert torch.equal(Captured.load(tmp_path / "c")[LAST], memory[LAST]), (
        "what is written to a loaded tensor stays in memory"
    )


def test_the_inputs_digest_tells_examples_not_batches():
    network = make("llama")

    def digest(batches, site=SPAN):
        return iit.capture_dataset(network, batches, site).inputs_sha256

    parts = [
        {k: v[i : i + 1] for k, v in batch.items() if k != "positions"}
        | {"positions": {"x": batch["positions"]["x"][i : i + 1]}}
        for batch in data()
        for i in range(len(batch["input_ids"]))
    ]
    left = {key: value.flip(1) for key, value in parts[1].items() if key != "positions"} | {
        "positions": parts[1]["positions"]
    }
    left["input_ids"][0, 2:] = parts[1]["input_ids"][0, :5]
    assert digest(parts) == digest(data()) == digest([parts[0], left, *parts[2:]])
    other_token, other_role = data(), data()
    other_token[1]["input_ids"][0, 3] += 1
    other_role[1]["positions"]["x"][1, 1] = 3
    assert len({digest(data()), digest(other_token), digest(other_role), digest(data()[::-1])}) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_are_kept_in_the_dtype_asked_for(dtype, folder):
    network = make("llama")
    captured = iit.capture_dataset(network, data(), LAST, dtype=dtype, folder=folder)
    assert captured[LAST].dtype == dtype
    whole = iit.capture_dataset(network, data(), LAST)
    assert torch.equal(captured[LAST], whole[LAST].to(dtype))


def test_networks_without_tokens(folder):
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    inputs = torch.randn(10, 4)
    site = Site(module="1")
    captured = iit.capture_dataset(network, inputs.split(4), site, folder=folder)
    torch.testing.assert_close(captured[site], network[:2](inputs))
    assert captured.offsets[site].tolist() == list(range(11))


def test_one_batch_is_held_at_a_time(tmp_path, monkeypatch):
    """Counted are the tensors that live: each batch's input and its activation."""
    network, site = make("llama"), Site("block_output", layer=1)
    alive, most = weakref.WeakSet(), 0

    def watched(*args, **kwargs):
        nonlocal most
        found = observe(*args, **kwargs)
        alive.update(found.values())
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(sys.modules["iit.intervened.capture_dataset"], "observe", watched)

    def batches(n):
        for seed in range(n):
            batch = prompts((40,) * 16, seed)
            alive.add(batch["input_ids"])
            yield batch

    iit.capture_dataset(network, batches(10), site, folder=tmp_path / "c")
    assert most <= 4, "the batch that is run and the one before"
    assert (tmp_path / "c" / "0.safetensors").stat().st_size > 10 * 16 * 40 * 16 * 4


def resident():
    """MiB of this process in memory."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc")
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def test_memory_does_not_grow_with_the_dataset(tmp_path):
    network, site = nn.Linear(2, 4096), Site(module="")
    seen = []

    def batches():
        for _ in range(60):
            yield torch.randn(256, 2)  # 4 MiB of activations
            seen.append(resident())

    iit.capture_dataset(network, batches(), site, folder=tmp_path / "c")
    assert seen[-1] - seen[10] < 40, "of 200 MiB written meanwhile"


def test_a_loaded_file_is_read_only_where_it_is_looked_at(tmp_path):
    network, site = nn.Linear(2, 4096), Site(module="")
    # 128 MiB
    iit.capture_dataset(network, torch.randn(8192, 2).split(256), site, folder=tmp_path / "c")
    before = resident()
    loaded = Captured.load(tmp_path / "c")
    assert loaded[site][5000, 7].isfinite()
    assert resident() - before < 16
    assert loaded[site].sum().isfinite()
    assert resident() - before > 64, "or the measure measures nothing"


def test_texts_are_batched_lazily_with_their_roles(smollm2):
    texts = [
        "Mary gave it to John",
        "Then John and Mary left.",
        "Anna saw Peter and Mary there today",
    ]
    site = Site("block_output", layer=0, position="name")
    batches = smollm2.batches(texts, positions={"name": ["Mary", "Mary", "Mary"]}, size=2)
    assert len(batches) == 2
    captured = iit.capture_dataset(smollm2, batches, site)
    whole = iit.capture(smollm2, smollm2.encode(texts, positions={"name": ["Mary"] * 3}), site)[
        site
    ]
    torch.testing.assert_close(captured[site], whole[:, 0], atol=1e-4, rtol=1e-4)
    table = Dataset.from_dict({"text": texts})
    for again in (
        smollm2.batches(table["text"], size=2),
        (smollm2.encode(rows["text"]) for rows in table.iter(2)),
    ):
        other = iit.capture_dataset(smollm2, again, Site("block_output", layer=0, position=-1))
        assert other.n_examples == 3
    with pytest.raises(ValueError, match="one place for each of the 3 texts; got 2"):
        smollm2.batches(texts, positions={"name": ["Mary", "Mary"]})
    with pytest.raises(ValueError, match="size=0"):
        smollm2.batches(texts, size=0)


def test_what_is_wrong_is_said_before_anything_runs(tmp_path):
    network = make("llama")

    def untouched():
        raise AssertionError("a batch was asked for")
        yield

    def refused(error, match, network=network, sites=EVERY, **kwargs):
        with pytest.raises(error, match=match):
            iit.capture_dataset(network, untouched(), sites, **kwargs)

    refused(ValueError, "at least one", sites=[])
    refused(ValueError, "layer", sites=Site("block_output", layer=9))
    refused(ValueError, "as wide as its batch is long", sites=Site("attention_weight", layer=0))
    refused(ValueError, "kept as one of", dtype=torch.int8)
    edited = iit.IntervenedModel(network, {EVERY: iit.ZeroIntervention()})
    refused(ValueError, "call `capture`", network=edited)
    (tmp_path / "mine.txt").write_text("mine")
    refused(FileExistsError, "holds other files", folder=tmp_path)
    refused(FileExistsError, "is a file", folder=tmp_path / "mine.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_earlier_save_of_anything_is_not_replaced(tmp_path):
    network = make("llama")
    iit.IntervenedModel(network, {EVERY: iit.ZeroIntervention()}).save_pretrained(
        tmp_path / "edits"
    )
    iit.capture_dataset(network, data(), LAST, folder=tmp_path / "c")
    for folder in ("edits", "c"):
        with pytest.raises(FileExistsError, match=r"Captured\.load"):
            iit.capture_dataset(network, data(), LAST, folder=tmp_path / folder)
    assert Captured.load(tmp_path / "c").n_examples == 5


def test_no_batch_and_widths_that_differ(tmp_path):
    network = make("llama")
    with pytest.raises(ValueError, match="no batch"):
        iit.capture_dataset(network, [], LAST, folder=tmp_path / "c")
    with pytest.raises(ValueError, match="width 5 in one batch and 4"):
        iit.capture_dataset(nn.Identity(), [torch.ones(2, 4), torch.ones(2, 5)], Site(module=""))
    assert not list(tmp_path.iterdir())


def test_a_run_that_breaks_leaves_nothing(tmp_path):
    def breaking():
        yield data()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        iit.capture_dataset(make("llama"), breaking(), LAST, folder=tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_no_folder_of_that_name(tmp_path):
    code = (
        "import os, signal, iit\nfrom tests.families import make\nfrom "
        "tests.intervened.test_capture_dataset import *\n"
        "def batches():\n    yield from data()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"iit.capture_dataset(make('llama'), batches(), SITES, folder={str(tmp_path / 'c')!r})"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, "PYTHONPATH": "."}
    )
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "c").exists()
    (left,) = tmp_path.iterdir()
    with pytest.raises(FileNotFoundError, match=r"no finished capture: index\.json is missing"):
        Captured.load(left)


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    network = make("llama")
    captured = iit.capture_dataset(network, data(), SITES, folder=tmp_path / "c")
    with pytest.raises(ValueError, match="another network"):
        Captured.load(tmp_path / "c", make("llama", seed=1))
    with pytest.raises(KeyError, match="was not captured; the sites are"):
        captured[Site("block_output", layer=1)]
    with pytest.raises(IndexError, match="no example 5"):
        captured.example(LAST, 5)
    index = tmp_path / "c" / "index.json"
    right = index.read_text()
    for wrong in (
        "{",
        "[]",
        right.replace("captured/1", "captured/2"),
        right.replace('"n_examples": 5', '"n_examples": 4'),
    ):
        index.write_text(wrong)
        with pytest.raises(ValueError, match="damaged"):
            Captured.load(tmp_path / "c")
    entries = json.loads(right)
    entries["sites"][0]["file"], entries["sites"][1]["file"] = (
        entries["sites"][1]["file"],
        entries["sites"][0]["file"],
    )
    index.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="damaged or altered"):
        Captured.load(tmp_path / "c")
    index.write_text(right)
    rows = tmp_path / "c" / "0.safetensors"
    rows.write_bytes(rows.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged or altered"):
        Captured.load(tmp_path / "c")


def test_a_terminal_has_a_bar_and_a_script_has_none(capsys, monkeypatch, request):
    iit.capture_dataset(make("llama"), data(), LAST)
    assert capsys.readouterr() == ("", "")
    request.getfixturevalue("terminal")
    iit.capture_dataset(make("llama"), data(), LAST)
    assert "Capturing batches" in capsys.readouterr().out


def test_the_network_is_left_as_it_was():
    network = make("llama")
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
    iit.capture_dataset(network, data(), SITES)
    with pytest.raises(ValueError, match="no role"):
        iit.capture_dataset(network, [prompts()], Site("mlp_output", layer=0, position="y"))
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()] == before
