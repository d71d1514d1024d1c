"""Autoencoders that SAELens's own package makes: each gives its figures, or is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iit.intervention import load_autoencoder
from tests.peers.environments import environment, run

SWAPPED = [0, 2, 3, 5, 7, 11, 13, 17, 19, 23]
LOADED = {"standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"}
"""The architectures that load: as they are, or as what SAELens turns them into after training."""

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NORMS = ("constant_norm_rescale", "layer_norm", "expected_average_only_in")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with autoencoders of every architecture that the installed SAELens knows."""
    root = tmp_path_factory.mktemp("saelens")
    python = environment("sae-lens>=6.18")
    run(python, Path(__file__).parents[1] / "peers" / "autoencoders.py", root)
    return root


@pytest.mark.long
def test_autoencoders_of_the_package_give_its_figures_or_are_refused(made):
    record = json.loads((made / "made.json").read_text())
    exact, refused = [], []
    for name in record["folders"]:
        architecture, _, option = name.split("-")
        expected = load_file(made / name / "expected.safetensors")
        base, source = expected["base"], expected["source"]
        if architecture not in LOADED or option in NORMS:
            said = f"normalize_activations='{option}' is not supported"
            if architecture not in LOADED:
                said = f"architecture='{architecture}' is none of"
            with pytest.raises(ValueError, match=said):
                load_autoencoder(made / name, features=SWAPPED)
            refused.append(name)
            continue
        edit = load_autoencoder(made / name, features=SWAPPED)
        coordinates = edit.basis.coordinates()
        features = coordinates.encode(base)
        torch.testing.assert_close(features, expected["features"], **CLOSE, msg=name)
        assert bool((features != 0).any(0).any(0).sum() > 5), name
        torch.testing.assert_close(edit(base, source), expected["edited"], **CLOSE, msg=name)
        assert not torch.allclose(expected["edited"], base, atol=1e-3), name
        exact.append(name)
    print(f"SAELens {record['version']}: {len(exact)} exact, {len(refused)} refused")
    # What SAELens itself refuses to make, or to run.
    assert LOADED.isdisjoint(name.split("-")[0] for name in record["failed"]), record["failed"]
    assert {name.split("-")[0] for name in exact} == LOADED
