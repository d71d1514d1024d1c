"""PEFT adapters: loaded beside a network, refused for another, and wrapped by the user."""

import logging

import pytest
import torch

import iit
from iit.intervened import ActivationStore
from iit.network import content, fingerprint
from tests.families import make, prompts
from tests.made_tokenizers import byte_level

peft = pytest.importorskip("peft")

# Of a library about itself, and of PEFT about GPT-2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning",
    "ignore:fan_in_fan_out",
    "ignore:Could not find a config",
)


def adapter_of(network, folder, seed=0, **options):
    """A LoRA of random weights in a folder; PEFT's own network with it."""
    config = peft.LoraConfig(
        **{"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | options
    )
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(network, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.5)
    wrapped.save_pretrained(folder)
    return wrapped.eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    make("llama").save_pretrained(tmp_path / "net")
    byte_level().save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.fixture
def adapter(folder, tmp_path):
    network = iit.load_network(str(folder)).model
    return str(tmp_path / "lora"), adapter_of(network, tmp_path / "lora")


def test_an_adapter_is_loaded_beside_the_weights(folder, adapter):
    path, wrapped = adapter
    torch.manual_seed(0)
    before = torch.get_rng_state()
    lm = iit.load_network(str(folder), adapter=path)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(lm.model(**prompts()).logits, wrapped(**prompts()).logits)
    assert lm.name == f"{folder}, adapter lora"
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_a_network_with_an_adapter_is_not_saved(folder, adapter, tmp_path):
    for model in (iit.load_network(str(folder), adapter=adapter[0]).model, adapter[1]):
        lm = iit.LanguageModel(model, byte_level())
        with pytest.raises(ValueError, match=r"has an adapter|this is PeftModel"):
            iit.network.save_network(lm, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_another_adapter_is_another_network(folder, adapter, tmp_path):
    adapter_of(iit.load_network(str(folder)).model, tmp_path / "other", seed=1)
    networks = [iit.load_network(str(folder))]
    for path in (adapter[0], adapter[0], tmp_path / "other"):
        networks.append(iit.load_network(str(folder), adapter=str(path)))
    for mark in (fingerprint, content):
        plain, first, again, other = (mark(network.model) for network in networks)
        assert first == again
        assert len({plain, first, other}) == 3


@pytest.mark.parametrize("component", ["block_output", "query_output", "mlp_output"])
@pytest.mark.parametrize("wrap", [False, True])
def test_components_are_those_of_the_adapted_network(folder, adapter, component, wrap):
    """Also in PEFT's own wrapper, which a user has made."""
    path, wrapped = adapter
    lm = iit.load_network(str(folder), adapter=path)
    if wrap:
        lm = iit.LanguageModel(wrapped, byte_level())
    module = {
        "block_output": "model.layers.0",
        "query_output": "model.layers.0.self_attn.q_proj",
        "mlp_output": "model.layers.0.mlp.down_proj",
    }[component]
    base, source = prompts((7, 5)), prompts((6, 7), seed=3)
    network = iit.load_network(str(folder), adapter=path).model
    rows, last = torch.arange(2), torch.tensor([6, 4])
    seen = []
    handle = network.get_submodule(module).register_forward_hook(
        lambda _module, _args, output: seen.append(output[rows, torch.tensor([5, 6])])
    )
    network(**source)
    handle.remove()

    def edit(_module, _args, output):
        output = output.clone()
        output[rows, last] = seen[0]
        return output

    network.get_submodule(module).register_forward_hook(edit)
    expected = network(**base).logits[rows, last]
    site = iit.Site(component, layer=0, position="last")
    edited = iit.IntervenedModel(lm, {site: iit.VanillaIntervention()})
    for store in (None, ActivationStore(lm.model)):
        edited.store = store
        logits = edited.answer_logits(base, source)[:, 0]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert len(store), "it resumes"


def test_an_untrained_twin_has_no_adapter(folder, adapter):
    lm = iit.network.untrained(iit.load_network(str(folder), adapter=adapter[0]))
    assert not [name for name in lm.model.state_dict() if "lora" in name]


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("gpt2", {"target_modules": ["c_attn"]}, "c_attn"),
        ("gemma", {}, "mismatch|shape|size"),
    ],
)
def test_an_adapter_of_another_network_is_refused(folder, tmp_path, family, options, said):
    adapter_of(make(family), tmp_path / "lora", **options)
    with pytest.raises(
        ValueError, match=rf"lora is none for .*net' \(it was trained on .*({said})"
    ):
        iit.load_network(str(folder), adapter=str(tmp_path / "lora"))


@pytest.mark.parametrize("n_layers", [1, 3])
def test_an_adapter_of_a_network_with_other_layers_is_refused(folder, tmp_path, n_layers):
    other = make("llama")
    config = other.config.__class__(**other.config.to_dict() | {"num_hidden_layers": n_layers})
    adapter_of(type(other)(config), tmp_path / "lora")
    with pytest.raises(ValueError, match=r"is none for .* tensors do not fit"):
        iit.load_network(str(folder), adapter=str(tmp_path / "lora"))


def test_what_is_no_adapter_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="is none for"):
        iit.load_network(str(folder), adapter=str(tmp_path / "nowhere"))
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(make("llama"), prompt).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match=r"is none for .*prompt"):
        iit.load_network(str(folder), adapter=str(tmp_path / "prompt"))


def test_an_adapter_that_fits_and_names_another_network_is_told(folder, tmp_path, caplog):
    network = iit.load_network(str(folder)).model
    network.name_or_path = "someone/another"
    adapter_of(network, tmp_path / "lora")
    with caplog.at_level(logging.WARNING):
        iit.load_network(str(folder), adapter=str(tmp_path / "lora"))
    assert "was trained on someone/another" in caplog.text
