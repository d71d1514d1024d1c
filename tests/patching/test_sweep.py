"""A sweep gives what patching each site by itself gives."""

import pytest
import torch

import iit
from iit.data import EncodedPairs
from iit.intervened import ActivationStore
from iit.result import correct, logit_difference
from tests.patching.contrasts import patched

SITES = [
    iit.Site(component, layer=layer, head=head, position=position)
    for component, layer, head in (
        ("block_output", 0, None),
        ("mlp_output", 1, None),
        ("attention_value_output", 1, 2),
    )
    for position in ("place", "last", 0, -2, ("s1", "io"), (1, 3))
] + [iit.Site("block_output", layer=1), iit.Site("embedding_output", position="last")]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_sweep_equals_one_site_at_a_time(toy, batch_size):
    network, pairs = toy
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    same = encoded.batch(range(len(encoded)))
    sites = [site for site in SITES if site.position is not None]
    found = patched(network, encoded, sites, batch_size=batch_size)
    assert list(found) == sites
    seen = set()
    for site, (right, difference) in found.items():
        edited = iit.IntervenedModel(network, {site: iit.VanillaIntervention()})
        with torch.no_grad():
            logits = edited.answer_logits(same["base"], same["sources"][pairs.variable])
        assert (right == correct(logits, same["base"]["answer"]).numpy()).all()
        expected = logit_difference(logits, same["base"]["answer"], same["base_answer"])
        torch.testing.assert_close(
            torch.from_numpy(difference).float(),
            expected.float(),
            atol=1e-4,
            rtol=1e-4,
            equal_nan=True,
        )
        seen.add(round(float(expected.nansum()), 3))
    assert len(seen) > 5, "sites differ in what they do"


def test_each_prompt_is_run_once_for_all_sites(toy, monkeypatch):
    network, pairs = toy
    encoded = EncodedPairs(pairs.split("train"), pairs.variables, network)
    rows = []
    projection = network.model.model.layers[0].self_attn.q_proj
    monkeypatch.setattr(
        projection, "forward", lambda x, real=projection.forward: rows.append(len(x)) or real(x)
    )
    monkeypatch.setattr(ActivationStore, "is_trusted", lambda *args: True)
    sites = [
        iit.Site("block_output", layer=layer, position=p)
        for layer in (0, 1)
        for p in ("last", "place", 2)
    ]
    patched(network, encoded, sites)
    batch = encoded.batch(range(len(encoded)))
    bases = {
        tuple(row[: int(mask.sum())].tolist())
        for row, mask in zip(
            batch["base"]["input_ids"], batch["base"]["attention_mask"], strict=True
        )
    }
    told = (
        "each base once, all sources once, and both once more without an edit, to hold the "
        "figures against"
    )
    assert sum(rows) == len(bases) + 3 * len(encoded), told


def test_rows_of_a_sweep(toy):
    network, pairs = toy
    components = ["block_output", "attention_value_output"]
    rows = iit.sweep(
        network,
        pairs,
        components=components,
        heads=[0, 1],
        positions=["last", 1],
        experiment="e",
        seed=3,
    )
    cells = {(row.component, row.layer, row.head, row.position) for row in rows}
    assert cells == {
        (component, layer, head, position)
        for component, head in (
            ("block_output", None),
            ("attention_value_output", 0),
            ("attention_value_output", 1),
        )
        for layer in (0, 1)
        for position in ("last", 1)
    }
    assert {
        (row.split, row.control, row.method, row.rank, row.n) for row in rows if row.subset == "all"
    } == {("validation", None, "VanillaIntervention", None, 16)}
    last = next(
        row
        for row in rows
        if row.layer == 1 and row.position == "last" and row.component == "block_output"
    )
    site = iit.Site("block_output", layer=1, position="last")
    alone = iit.Alignment(network, {"subject_position": iit.Edit(site, iit.VanillaIntervention())})
    scored = iit.evaluate(alone, pairs, split="validation", controls=False, seed=3, experiment="e")
    assert last == next(row for row in scored if row.metric == "iia" and row.subset == last.subset)
    every = iit.sweep(network, pairs, layers=[1])
    shortest = min(row.position for row in every), max(row.position for row in every)
    assert shortest[0] == 0
    assert shortest[1] >= 8


def test_what_cannot_be_swept(toy):
    network, pairs = toy
    with pytest.raises(ValueError, match="has no role 'nobody'"):
        iit.sweep(network, pairs, positions=["nobody"])
    with pytest.raises(ValueError, match="not 'other'"):
        iit.sweep(network, pairs, variable="other", positions=["last"])
    with pytest.raises(ValueError, match="layer"):
        iit.sweep(network, pairs, layers=[7], positions=["last"])
