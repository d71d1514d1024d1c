"""The networks of `train_*` experiments: trained once, then from the cache."""

import sys

import pytest
import torch

from iit.job import trained_network
from iit.network import fingerprint
from tests.seeds import shifted

MODULE = sys.modules["iit.job.train_network"]
SMALL = ("callbacks=none", "+debug=default")


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("IIT_CACHE", str(tmp_path))
    monkeypatch.setattr(MODULE, "OVERRIDES", SMALL)


@pytest.mark.filterwarnings("ignore")
def test_a_network_is_trained_once(capsys, monkeypatch):
    torch.manual_seed(shifted(5))
    first = trained_network("train_equality")
    drawn = torch.rand(1)
    assert "Keeping the network of train_equality in" in capsys.readouterr().err
    torch.manual_seed(shifted(5))
    second = trained_network("train_equality")
    assert torch.equal(torch.rand(1), drawn), (
        "what comes after does not depend on whether the cache was there"
    )
    assert capsys.readouterr().err == ""
    assert fingerprint(first.model) == fingerprint(second.model)
    assert (first.name, first.revision) == ("train_equality", second.revision)
    monkeypatch.setattr(MODULE, "OVERRIDES", (*SMALL, "seed=1"))
    other = trained_network("train_equality")
    assert other.revision != first.revision
    assert fingerprint(other.model) != fingerprint(first.model)


def test_an_experiment_that_trains_no_network_is_refused():
    with pytest.raises(ValueError, match="'das_ioi' trains no network"):
        trained_network("das_ioi")
