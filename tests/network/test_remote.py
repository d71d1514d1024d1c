"""Networks that run elsewhere: here what needs no engine, and in a long test the engine itself."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import nn

from iit.batch import Batch
from iit.intervened import ActivationStore
from iit.network import LanguageModel, fingerprint, remote, untrained
from tests.families import make, prompts
from tests.made_tokenizers import prepend
from tests.peers.environments import OURS, environment, run_checks


@pytest.fixture
def without_nnsight(monkeypatch):
    monkeypatch.setattr(remote, "find_spec", lambda name: None)


@pytest.fixture
def with_nnsight(monkeypatch):
    """A package of that name, which has no engine. Returns its settings."""
    api = SimpleNamespace(APIKEY=None)
    package, module = ModuleType("nnsight"), ModuleType("nnsight.modeling.transformers")
    package.CONFIG = SimpleNamespace(API=api)
    module.TransformersModel = None
    monkeypatch.setattr(remote, "find_spec", lambda name: package)
    monkeypatch.setitem(sys.modules, "nnsight", package)
    monkeypatch.setitem(sys.modules, "nnsight.modeling", ModuleType("nnsight.modeling"))
    monkeypatch.setitem(sys.modules, "nnsight.modeling.transformers", module)
    return api


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(remote.load, "load_network", None)


def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="iit.conf", version_base="1.3"):
        return compose("config", overrides=["network=remote", *overrides]).network


def test_without_the_package_an_error_has_the_command(without_nnsight, nothing_is_loaded):
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'iit\[remote\]'"):
        remote.load_network("org/name")
    with pytest.raises(Exception, match=r"pip install 'iit\[remote\]'"):
        instantiate(composed("network.name=org/name"))


def test_ndif_wants_a_key_before_anything_is_loaded(with_nnsight, nothing_is_loaded):
    with pytest.raises(Exception, match=r"NDIF_API_KEY .*network\.remote=false"):
        instantiate(composed("network.name=org/name", "network.remote=true"))


@pytest.mark.parametrize("place", [None, "", "ndif", 3])
def test_places_that_are_none_are_refused(place, with_nnsight, nothing_is_loaded):
    with pytest.raises(ValueError, match="none of true, false, local and https"):
        remote.load_network("org/name", remote=place)


@pytest.mark.parametrize("option", ["adapter", "quantization", "subfolder", "trust_remote_code"])
def test_options_that_do_not_reach_a_server_are_refused(option, with_nnsight, nothing_is_loaded):
    with pytest.raises(ValueError, match=f"takes no .'{option}'"):
        remote.load_network("org/name", **{option: "x"})


def test_a_server_runs_networks_of_the_hub(with_nnsight, smollm2, monkeypatch):
    with_nnsight.APIKEY = "a key"
    with pytest.raises(ValueError, match="'smollm2' is a folder; a server runs networks of the"):
        remote.load_network("smollm2", remote=True)


def test_a_dry_run_gets_the_network_without_weights(with_nnsight):
    network = instantiate(composed("network.name=smollm2"), weights=False)
    assert network.name == "smollm2"
    assert network.model.device.type == "meta"


def test_an_experiment_keeps_its_keys():
    """What a config says of a network of the hub it may say of this one."""
    entry = composed("network.name=org/name")
    assert set(entry) - {"_target_", "name", "remote"} == remote.OPTIONS
    assert entry.remote is False


def test_a_network_without_weights_has_the_fingerprint_that_its_forward_gives():
    module = nn.Linear(2, 2)
    own = fingerprint(module)
    module.forward = SimpleNamespace(fingerprint=lambda: "org/name@main on a server")
    assert fingerprint(module) == "org/name@main on a server" != own


def test_without_weights_here_nothing_is_stored_and_no_end_is_kept():
    """What is kept of a run would never be compared with the weights on a server."""
    skeleton = make("llama").to("meta")
    store = ActivationStore(skeleton)
    assert store.refuses(skeleton, Batch((), prompts())) == "the network has no weights"
    network = LanguageModel(skeleton, prepend(), "org/name")
    with pytest.raises(ValueError, match="run elsewhere: only a transformers model without keep_e"):
        untrained(network, keep_ends=True)
    twin = untrained(network).model
    assert {parameter.device for parameter in twin.parameters()} == {torch.device("cpu")}


@pytest.mark.long
def test_networks_on_the_engine():
    """Everything in tests/peers/elsewhere.py, in an environment with nnsight."""
    python = environment(*OURS, "nnsight>=0.8.1,<0.9", "pytest", constrained=["transformers"])
    run_checks(python, "elsewhere.py")
