import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

import iit
from tests.families import make


@pytest.fixture(scope="session")
def smollm2():
    return iit.load_network("smollm2")


@pytest.fixture(scope="session")
def tiny_llama():
    return make("llama")


@pytest.fixture(scope="session")
def tiny_gpt2():
    return make("gpt2")
