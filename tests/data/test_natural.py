"""Natural counterparts have by themselves what the interchange asks for."""

from dataclasses import replace

import pytest
import torch

import iit
from iit.alignment import DAS, CounterfactualLatent, CrossEntropy
from iit.data import EncodedPairs, Pairs, PairsDataModule
from iit.network import mlp
from iit.tasks import equality, ioi
from tests.seeds import shifted


def test_counterparts_have_the_wanted_values_and_answer(toy):
    _network, _ = toy
    task = ioi()
    task = replace(task, pools={**task.pools, "name": task.pools["name"][:12]})
    pairs = Pairs.sample(task, n_train=300, n_val=20, n_test=20, splits=[], natural=True)
    rows = [row for row in pairs.split("train") if row["has_natural"]]
    assert len(rows) > 200
    for row in rows:
        # The answer is the name that is not repeated; which of the two is repeated is the source's.
        place = {
            side: row[f"{side}_roles"]["s1"][0] < row[f"{side}_roles"]["io"][0]
            for side in ("source", "natural")
        }
        assert place["source"] == place["natural"]
        start, stop = row["natural_roles"]["io"]
        assert row["natural"][start:stop].strip() == row["label"].strip()


def test_where_there_is_none_the_base_stands_in(tmp_path):
    network = mlp(n_inputs=16, n_classes=2, width=8, depth=1)
    pairs = Pairs.sample(
        equality(), network, n_train=40, n_val=20, n_test=20, right_only=False, natural=True
    )
    pairs.save(tmp_path / "pairs.parquet")
    again = Pairs.load(tmp_path / "pairs.parquet", variable="left_equal")
    batch = EncodedPairs(again.split("train"), again.variables, network).batch(range(40))
    assert batch["has_natural"].all()
    assert batch["natural"]["x"].shape == (40, 16)
    task = ioi()
    prompts = Pairs.sample(task, n_train=30, n_val=10, n_test=10, natural=True).split("train")
    lacking = [row for row in prompts if not row["has_natural"]]
    assert lacking
    assert all(row["natural"] == row["base"] for row in lacking)


def test_the_distance_is_that_of_the_edited_activation_from_the_counterparts(toy):
    network, _ = toy
    task = ioi()
    task = replace(task, pools={**task.pools, "name": task.pools["name"][:12]})
    pairs = Pairs.sample(task, n_train=100, n_val=20, n_test=20, splits=[], natural=True)
    site = iit.Site("block_output", layer=0, position="s2")
    torch.manual_seed(shifted(0))
    alignment = iit.Alignment(
        network, {"subject_position": iit.Edit(site, iit.LowRankRotatedSpaceIntervention(16, 3))}
    )
    batch = next(iter(PairsDataModule(pairs, network, batch_size=16).train_dataloader()))
    modules = [DAS(alignment), DAS(alignment, objective=CounterfactualLatent(CrossEntropy(), 2.0))]
    losses = []
    for module in modules:
        module.log = lambda *args, **kwargs: None
        losses.append(module.training_step(batch, 0))
    base, source, natural = (
        iit.capture(network, given, [site])[site]
        for given in (batch["base"], batch["sources"]["subject_position"], batch["natural"])
    )
    edited = alignment.edits["subject_position"].intervention(base, source)
    apart = (
        (edited - natural).square().sum(-1) / natural.square().sum(-1)
        + 1
        - torch.cosine_similarity(edited, natural, dim=-1)
    )
    expected = torch.where(batch["has_natural"], (0.5 * apart).mean(1), 0.0).mean()
    torch.testing.assert_close(losses[1] - losses[0], 2.0 * expected, rtol=1e-4, atol=1e-5)
    assert batch["has_natural"].float().mean() > 0


def test_of_several_variables_the_counterpart_has_the_label_as_its_answer():
    """The name that is not repeated depends on the position of the subject, which is swapped."""
    task = ioi()
    task = replace(task, pools={**task.pools, "name": task.pools["name"][:12]})
    both = ["subject_position", "io_name"]
    pairs = Pairs.sample(
        task, variable=both, n_train=300, n_val=20, n_test=20, splits=[], natural=True
    )
    rows = [row for row in pairs.split("train") if row["has_natural"]]
    assert {tuple(row["interchanged"]) for row in rows} == {(name,) for name in both}
    for row in rows:
        start, stop = row["natural_roles"]["io"]
        assert row["natural"][start:stop].strip() == row["label"].strip()


def test_no_counterpart_at_all_is_an_error():
    task = ioi()
    with pytest.raises(ValueError, match=r"data\.natural"):
        Pairs.sample(task, n_train=2, n_val=2, n_test=2, natural=True, changing_share=1.0)
