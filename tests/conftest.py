import copy
import importlib
import os
import random
import zlib

import tests.shapes  # noqa: F401 — before the package is imported

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings
from omegaconf import open_dict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import iit
from iit.data import Pairs
from iit.network import LanguageModel
from iit.tasks import ioi
from tests import seeds
from tests.families import make


def pytest_addoption(parser):
    parser.addoption(
        "--seed", type=int, default=0, help="of every generator that a test draws from"
    )


def pytest_configure(config):
    seeds.SEED = config.getoption("seed")
    # A slow machine is no failure, and seed 0 draws the same examples everywhere.
    settings.register_profile("tests", deadline=None, derandomize=seeds.SEED == 0, database=None)
    settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seeded(request):
    """Each test starts from generators that depend on the seed and on its name, not on what ran
    before.
    """
    seed = zlib.crc32(request.node.nodeid.encode()) + seeds.SEED
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def smollm2():
    return iit.load_network("smollm2")


@pytest.fixture(scope="session")
def tiny_llama():
    return make("llama")


@pytest.fixture(scope="session")
def tiny_gpt2():
    return make("gpt2")


@pytest.fixture(scope="session")
def toy():
    """A random network over the words of IOI prompts, which 'answers' everything rightly."""
    task = ioi()
    words = {"[UNK]": 0, "[END]": 1}
    rng = np.random.default_rng(0)
    columns = task.draw(rng, task.pools, 2000)
    for row in zip(*columns.values(), strict=True):
        for word, _ in Whitespace().pre_tokenize_str(
            task.write(dict(zip(columns, row, strict=True))).text
        ):
            words.setdefault(word, len(words))
    for name in task.pools["name"]:
        words.setdefault(name, len(words))
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[END]", unk_token="[UNK]")
    model = make("llama")
    model.resize_token_embeddings(len(words))
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    network = LanguageModel(model, tokenizer, "toy")
    right = Everything(network)
    return network, Pairs.sample(task, right, n_train=48, n_val=16, n_test=16, seed=0)


class Everything:
    def __init__(self, network):
        self.tokenizer = network.tokenizer
        self.answer_tokens = network.answer_tokens

    def answers_right(self, texts, answers):
        return np.ones(len(texts), dtype=bool)


@pytest.fixture
def terminal(monkeypatch):
    """What rich takes for a terminal of 80 columns, whatever stdout is."""
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


SMALL = ("+debug=default", "callbacks=none", "logger=csv")
"""Overrides for a few steps."""


def composing(network, tmp_path, monkeypatch, *always):
    """Composes as the command line does, on a language model that is there; small networks are
    hardly trained.

    always: overrides of every job.
    """
    monkeypatch.setattr("iit.network.load_network", lambda *args, **kwargs: network)
    monkeypatch.setattr(importlib.import_module("iit.job.train_network"), "OVERRIDES", SMALL)
    monkeypatch.setenv("IIT_CACHE", str(tmp_path / "cache"))

    def make(*overrides, folder=None):
        GlobalHydra.instance().clear()
        with initialize_config_module(config_module="iit.conf", version_base="1.3"):
            cfg = compose("config", overrides=[*always, *overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            with open_dict(cfg):
                del cfg["hydra"]
                cfg.paths.run = str(folder or tmp_path / "run")
            return cfg

    return make


@pytest.fixture
def configured(smollm2, tmp_path, monkeypatch):
    """Compose a job that runs on SmolLM2, or on no language model."""
    return composing(smollm2, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def narrow(smollm2):
    """SmolLM2's tokenizer, and a random network with as many layers and heads, which runs thirty
    times as fast.
    """
    torch.manual_seed(seeds.shifted(0))
    config = copy.deepcopy(smollm2.model.config)
    config.hidden_size, config.head_dim, config.intermediate_size = 72, 8, 96
    return LanguageModel(LlamaForCausalLM(config), smollm2.tokenizer, "narrow")


@pytest.fixture(params=["narrow", pytest.param("smollm2", marks=pytest.mark.long)])
def studied(request):
    """The language model of a test that asks how a job is put together, not what it finds: SmolLM2
    where there is time.
    """
    return request.getfixturevalue(request.param)


@pytest.fixture
def configured_on_either(studied, tmp_path, monkeypatch):
    """As `configured`, on the network `studied`; a random network answers no prompt rightly, so
    that none is left out.
    """
    always = ["data.right_only=false"] if studied.name == "narrow" else []
    return composing(studied, tmp_path, monkeypatch, *always)
