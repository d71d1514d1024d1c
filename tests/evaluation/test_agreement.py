"""Sites at the answer's own tokens: how often label and source's answer are equal before them."""

import numpy as np
import torch

import iit
from iit.data import Pairs
from iit.network import small_transformer
from iit.tasks import addition
from tests.conftest import Everything
from tests.seeds import shifted


def test_agreement_is_the_share_of_equal_first_digits():
    torch.manual_seed(shifted(0))
    task = addition()
    network = small_transformer(task.vocabulary, n_layers=1, n_heads=2, width=16)
    pairs = iit.Pairs.sample(
        task,
        Everything(network),
        variable="ones_carry",
        n_train=16,
        n_val=8,
        n_test=60,
        seed=shifted(0),
    )
    site = iit.Site("block_output", layer=0, position="answer[0]")
    alignment = iit.Alignment(
        network, {"ones_carry": iit.Edit([site], iit.LowRankRotatedSpaceIntervention(16, 2))}
    )
    rows = iit.evaluate(alignment, pairs)
    agreement = {row.subset: row for row in rows if row.metric == "answer_agreement"}
    test = pairs.split("test")
    # " 1 3 2": the hundreds come first.
    equal = [
        label.split()[0] == answer.split()[0]
        for label, answer in zip(test["label"], test["source_answer"], strict=True)
    ]
    assert agreement["all"].value == np.mean(equal)
    assert 0.1 < np.mean(equal) < 0.95
    assert agreement["all"].n == len(equal)
    assert agreement["changing"].n == sum(test["changing"])
    unknown = Pairs(pairs.dataset.remove_columns("source_answer"), pairs.variables)
    from_prompt = iit.Edit(
        [site],
        iit.LowRankRotatedSpaceIntervention(16, 2),
        [iit.Site("block_output", layer=0, position="last")],
    )
    rows_of_files = iit.evaluate(iit.Alignment(network, {"ones_carry": from_prompt}), unknown)
    assert "answer_agreement" not in {row.metric for row in rows_of_files}
    assert {row.subset for row in rows if row.metric == "iia" and row.control == "vanilla"} >= {
        "all",
        "changing",
    }
