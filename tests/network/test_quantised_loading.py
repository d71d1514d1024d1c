"""Networks that are quantised while they load, by the packages themselves."""

from importlib.util import find_spec

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import iit
from iit.alignment import one
from iit.data import Pairs
from iit.intervened import ActivationStore
from iit.network import content, fingerprint
from tests.families import SIZES, prompts
from tests.made_tokenizers import byte_level

PACKAGES = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=PACKAGES)
def quantization(request):
    package = PACKAGES[request.param]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return request.param


@pytest.fixture
def folder(tmp_path):
    """Four bits come in blocks of 64."""
    tokenizer = byte_level()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES | sizes)).save_pretrained(tmp_path / "net")
    tokenizer.save_pretrained(tmp_path / "net")
    return str(tmp_path / "net")


def test_weights_are_packed_and_told_apart(folder, quantization):
    plain = iit.load_network(folder)
    lm = iit.load_network(folder, quantization=quantization)
    again = iit.load_network(folder, quantization=quantization)
    assert lm.name == f"{folder}, {quantization}"
    assert lm.dtype == torch.float32
    for mark in (fingerprint, content):
        assert mark(lm.model) == mark(again.model) != mark(plain.model)
    logits, expected = lm.model(**prompts()).logits, plain.model(**prompts()).logits
    assert not torch.equal(logits, expected)
    # Eight bits are a grid of 1/127 of each row's largest weight, four bits one of about 1/8.
    close = 0.5 if quantization == "4bit" else 0.05
    assert (logits - expected).norm() < close * expected.norm()


def test_a_changed_weight_is_seen(folder, quantization):
    lm = iit.load_network(folder, quantization=quantization)
    before = content(lm.model)
    lm.model(**prompts())
    assert content(lm.model) == before, "a run changes nothing"
    lm.model.model.layers[1].input_layernorm.weight.data[0] += 1
    assert content(lm.model) != before


@pytest.mark.parametrize("component", ["block_output", "query_output"])
def test_edits_and_resumed_runs_are_those_of_a_raw_hook(folder, quantization, component):
    lm = iit.load_network(folder, quantization=quantization)
    path = "model.layers.0" + (".self_attn.q_proj" if component == "query_output" else "")
    base, source = prompts((7, 5)), prompts((7, 5), seed=3)
    module, rows, last = lm.model.get_submodule(path), torch.arange(2), torch.tensor([6, 4])
    seen = []
    handle = module.register_forward_hook(
        lambda _module, _args, output: seen.append(output[rows, last])
    )
    lm.model(**source)
    handle.remove()

    def edit(_module, _args, output):
        output = output.clone()
        output[rows, last] = seen[0]
        return output

    handle = module.register_forward_hook(edit)
    expected = lm.model(**base).logits[rows, last]
    handle.remove()
    site = iit.Site(component, layer=0, position="last")
    edited = iit.IntervenedModel(lm, {site: iit.VanillaIntervention()})
    for store in (None, ActivationStore(lm.model)):
        edited.store = store
        logits = edited.answer_logits(base, source)[:, 0]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_an_alignment_is_trained_through_quantised_weights(folder, quantization):
    lm = iit.load_network(folder, quantization=quantization)
    words, rows = ("John", "Mary", "milk", "York"), []
    for number, split in enumerate(["train"] * 8 + ["validation"] * 4):
        base, source = words[number % 4], words[(number + 1) % 4]
        rows.append({"split": split, "base": base + " left", "source": source + " left"})
        rows[-1] |= {"label": " to", "base_roles": {"x": [0, 4]}, "source_roles": {"x": [0, 4]}}
    site = iit.Site("block_output", layer=0, position="x_last")
    alignment = one(lm, "x", site, lambda width: iit.LowRankRotatedSpaceIntervention(width, 2))
    edited = next(iter(alignment.edits.values())).intervention
    before = [parameter.detach().clone() for parameter in edited.parameters()]
    mark = content(lm.model)
    iit.fit(alignment, Pairs.of(rows, "x"), max_epochs=1)
    edited = next(iter(alignment.edits.values())).intervention
    changed = [not torch.equal(*both) for both in zip(before, edited.parameters(), strict=True)]
    assert any(changed)
    assert content(lm.model) == mark


def test_what_is_quantised_is_not_quantised_again(folder, quantization, tmp_path):
    lm = iit.load_network(folder, quantization=quantization)
    if quantization == "int8":
        pytest.skip("torchao writes another kind of file")
    iit.network.save_network(lm, tmp_path / "packed")
    again = iit.load_network(str(tmp_path / "packed"))
    assert content(again.model) == content(lm.model)
    with pytest.raises(ValueError, match="are quantised already"):
        iit.load_network(str(tmp_path / "packed"), quantization=quantization)
