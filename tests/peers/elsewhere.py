"""Networks on nnsight's engine, against the same networks under torch's hooks.

tests/network/test_remote.py runs this file in an environment with nnsight.
"""

import io
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from nnsight import CONFIG
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from omegaconf import open_dict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import iit
from iit.intervened import ActivationStore
from iit.network import remote
from iit.network.components import COMPONENTS, HEADED, UNLAYERED
from iit.patching import Contrast, attribute, patch
from iit.run import run
from iit.tasks import ioi
from tests.families import V, make, prompts
from tests.oracles import ORACLES

FAMILIES = [
    "llama",
    "gpt2",
    "gpt_neox",
    "gptj",
    "qwen3",
    "gemma2",
    "phi3",
    "falcon",
    "bloom",
    "opt",
]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
WIDTH = 16


def tokenizer_of(words):
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="[END]", unk_token="[UNK]", pad_token="[END]"
    )


@cache
def folder_of(family):
    folder = mkdtemp()
    make(family).save_pretrained(folder)
    words = ["[UNK]", "[END]", *(f"w{number}" for number in range(2, V))]
    tokenizer_of(words).save_pretrained(folder)
    return folder


@cache
def pair_of(family, place=False):
    """The network under hooks, and on the engine."""
    folder = folder_of(family)
    return iit.load_network(folder), remote.load_network(folder, remote=place)


def batch(seed=1):
    return prompts(seed=seed) | {"answer": torch.tensor([[5], [7]])}


def both(function, family, place=False):
    """What a function gives on either network."""
    there = []
    for network in pair_of(family, place):
        torch.manual_seed(0)
        there.append(function(network))
    return there


def assert_same(function, family, place=False):
    hooks, engine = both(function, family, place)
    assert len(hooks) == len(engine) > 0
    for expected, got in zip(hooks, engine, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)
    return hooks


def sites_of(family, position=None):
    sites = []
    for component in ORACLES[family]:
        if component in COMPONENTS and component not in ("attention_weight", "router_output"):
            layer = None if component in UNLAYERED else 1
            head = 0 if component in HEADED else None
            sites.append(iit.Site(component, layer=layer, head=head, position=position))
    return sites


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_and_edits_of_whole_vectors_are_those_of_hooks(family):
    sites = sites_of(family)
    assert len(sites) > 10

    def activations(network):
        return list(iit.capture(network, batch(), sites).values())

    def outputs(network):
        logits = [network.model(**prompts()).logits]
        for site in sites_of(family, position=3):
            edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
            logits.append(edited.answer_logits(batch(), batch(seed=3)))
        return [*logits, edited(batch(), batch(seed=3)).logits]

    assert_same(activations, family)
    hooks = assert_same(outputs, family)
    # Of the edits at least nine tenths show.
    shown = [not torch.allclose(edit, hooks[1], atol=1e-4) for edit in hooks[2:-1]]
    assert sum(shown) > 0.8 * len(shown)


def gradients(network):
    first = iit.Site("block_output", layer=0, position=3)
    beside = iit.Site("mlp_input", layer=1, position=[2, 3])
    behind = iit.Site("attention_output", layer=1, position=[2, 3])
    edited = iit.IntervenedModel(
        network,
        {
            first: iit.LowRankRotatedSpaceIntervention(width=WIDTH, rank=4),
            behind: iit.RotatedSpaceIntervention(WIDTH),
            beside: iit.BoundlessRotatedSpaceIntervention(WIDTH),
        },
    )
    logits = edited.answer_logits(batch(), batch(seed=3))
    logits.log_softmax(-1)[..., 5].sum().backward()
    serial = iit.capture(edited, batch(), [first, behind], sources=batch(seed=3))
    trained = [parameter.grad for parameter in edited.parameters() if parameter.grad is not None]
    assert len(trained) >= 3
    return [logits.detach(), *trained, *serial.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_trained_frames_are_those_of_hooks(family):
    assert_same(gradients, family)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_sent_can_be_packed_and_needs_no_code_of_ours(family):
    assert_same(gradients, family, "local")


def test_a_network_without_weights_here_runs_where_they_are(monkeypatch):
    """A server in this process: it gets bytes, has the weights, and sends bytes back."""
    hub, _ = pair_of("llama")
    weights = iit.load_network(folder_of("llama"))
    server = TransformersModel(weights.model, tokenizer=weights.tokenizer)
    requests = []

    def answer(backend, tracer):
        blob = RequestModel.serialize(tracer, compress=True)
        requests.append(backend.model_key)
        simulation = LocalSimulationBackend(server)
        hidden = simulation._hide_local_modules()
        try:
            request = RequestModel.deserialize(
                blob, server._remoteable_persistent_objects(), compress=True
            )
        finally:
            simulation._restore(hidden)
        request.execute(request.info.code)
        sent = io.BytesIO()
        torch.save({"results": request.info.frame.f_locals["results"]}, sent)
        sent.seek(0)
        backend._push(torch.load(sent), tracer)

    monkeypatch.setattr(RemoteBackend, "__call__", answer)
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    monkeypatch.setattr(remote.Path, "is_dir", lambda path: False)
    monkeypatch.setattr(
        "nnsight.modeling.huggingface._ID_CACHE", {folder_of("llama"): "someone/llama"}
    )
    # The folder stands for a hub id, which would need the hub.
    monkeypatch.setattr(
        remote.load, "load_network", lambda name, **options: skeleton(name, options)
    )
    network = remote.load_network(folder_of("llama"), remote=True)
    assert all(parameter.is_meta for parameter in network.model.parameters())
    torch.manual_seed(0)
    expected = gradients(hub)
    torch.manual_seed(0)
    for got, wanted in zip(gradients(network), expected, strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)
    assert len(requests) > 5
    assert all("someone/llama" in request for request in requests)
    assert network.fingerprint() == f"{folder_of('llama')}@main on a server"


def skeleton(name, options):
    assert options == {"weights": False}
    hub, _ = pair_of("llama")
    model = make("llama").to("meta")
    model.name_or_path = name
    return iit.LanguageModel(model, hub.tokenizer, name)


def test_a_folder_a_key_and_other_options_are_checked_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    monkeypatch.setattr(remote.load, "load_network", None)
    with pytest.raises(ValueError, match="NDIF_API_KEY"):
        remote.load_network("org/name", remote=True)
    with pytest.raises(ValueError, match=r"takes no .*adapter"):
        remote.load_network("org/name", adapter="some/adapter")
    monkeypatch.undo()
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    with pytest.raises(ValueError, match="is a folder; a server runs networks of the hub"):
        remote.load_network(folder_of("llama"), remote=True)


def test_what_cannot_run_elsewhere_says_so():
    _, network = pair_of("llama")
    edited = iit.IntervenedModel(network, {})
    with pytest.raises(ValueError, match="gives logits, and is not trained: no IIT, no generate"):
        edited.generate(prompts(), max_new_tokens=2)
    with pytest.raises(ValueError, match="gives logits"):
        edited(prompts() | {"output_hidden_states": True})
    with pytest.raises(ValueError, match="has no weights: take network=hub"):
        network.model.lm_head(torch.zeros(1, 16))
    network.model.requires_grad_(True)
    with pytest.raises(ValueError, match="no IIT"):
        edited(prompts())
    network.model.requires_grad_(False)
    eager = remote.load_network(folder_of("llama"), attention="eager")
    with pytest.raises(ValueError, match="attention_weight and router_output need network=hub"):
        iit.capture(eager, prompts(), iit.Site("attention_weight", layer=0))


def test_nothing_is_stored():
    _, network = pair_of("llama")
    edited = iit.IntervenedModel(
        network, {iit.Site("block_output", layer=0): iit.VanillaIntervention()}
    )
    plain = edited.answer_logits(batch(), batch(seed=3))
    edited.store = ActivationStore(network.model)
    for _ in range(2):
        assert torch.equal(edited.answer_logits(batch(), batch(seed=3)), plain)
    assert len(edited.store) == 0


def test_gradients_of_gradients_are_refused():
    _, network = pair_of("llama")
    site = iit.Site("block_output", layer=0, position=3)
    edited = iit.IntervenedModel(
        network, {site: iit.LowRankRotatedSpaceIntervention(WIDTH, rank=4)}
    )
    loss = edited.answer_logits(batch(), batch(seed=3)).pow(2).sum()
    with pytest.raises(NotImplementedError, match="no gradients of its gradients"):
        torch.autograd.grad(loss, list(edited.parameters()), create_graph=True)


def test_a_fingerprint_is_that_of_the_weights_and_the_tokenizer_stays():
    hub, engine = pair_of("llama")
    assert engine.fingerprint() == hub.fingerprint()
    assert engine.tokenizer.padding_side == hub.tokenizer.padding_side == "right"
    weightless = remote.load_network(folder_of("llama"), weights=False)
    assert weightless.model.device.type == "meta"


def test_maps_are_those_of_hooks():
    def maps(network):
        base, source = batch(), batch(seed=3) | {"answer": torch.tensor([[9], [11]])}
        for one in (base, source):
            one["positions"] = {"a": torch.tensor([[1], [1]])}
        contrast = Contrast.of_batches(network.model, base, source)
        options = {"components": "block_output", "positions": ["a"], "metric": "logit_difference"}
        exact = patch(network.model, contrast, **options)
        estimate = attribute(network.model, contrast, **options)
        return [torch.from_numpy(effects.of("logit_difference")) for effects in (exact, estimate)]

    assert_same(maps, "gpt2")


@cache
def words_folder():
    """A random network over the words of IOI prompts."""
    task = ioi()
    words = {"[UNK]": 0, "[END]": 1}
    columns = task.draw(np.random.default_rng(0), task.pools, 2000)
    for row in zip(*columns.values(), strict=True):
        text = task.write(dict(zip(columns, row, strict=True))).text
        for word, _ in Whitespace().pre_tokenize_str(text):
            words.setdefault(word, len(words))
    for name in task.pools["name"]:
        words.setdefault(name, len(words))
    model = make("llama")
    model.resize_token_embeddings(len(words))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    folder = mkdtemp()
    model.save_pretrained(folder)
    tokenizer_of(words).save_pretrained(folder)
    return folder


def job(kind, *overrides):
    """metrics.json of one experiment file with a kind of network."""
    folder = Path(mkdtemp())
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="iit.conf", version_base="1.3"):
        always = [f"network={kind}", f"network.name={words_folder()}", "data.right_only=false"]
        cfg = compose("config", overrides=[*overrides, *always], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
            cfg.paths.run = str(folder)
    run(cfg)
    return json.loads((folder / "metrics.json").read_text())


SMALL = ["logger=csv", "data.n_train=48", "data.n_val=16", "data.n_test=16"]
JOBS = [
    ["+experiment=das_ioi", "site.layer=1", "rank=4", "trainer.max_epochs=2", "callbacks=none"],
    ["+experiment=das_ioi", "site.layer=1", "intervention=pca", "rank=4", "callbacks=none"],
]


@pytest.mark.parametrize("overrides", JOBS, ids=["low_rank", "pca"])
def test_an_experiment_file_gives_equal_rows_with_either_network(overrides):
    hub, engine = (job(kind, *overrides, *SMALL) for kind in ("hub", "remote"))
    assert len(hub["rows"]) == len(engine["rows"]) > 10
    for expected, got in zip(hub["rows"], engine["rows"], strict=True):
        assert got["value"] == pytest.approx(expected["value"], abs=1e-4), expected
        assert got | {"value": 0, "low": 0, "high": 0} == expected | {
            "value": 0,
            "low": 0,
            "high": 0,
        }
    print(f"nnsight {version('nnsight')}: {len(hub['rows'])} rows equal")
