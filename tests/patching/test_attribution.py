"""Attribution patching equals gradients taken with raw hooks; integrated gradients add up."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import iit
from iit.patching import Contrast, agreement, attribute, patch
from tests.oracles import ORACLES, head_columns, raw_hook
from tests.patching.contrasts import contrast, inputs, raw_activation

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def gradient(found, family, component, layer, columns):
    """Float[batch, position, width] of the logit difference, and the activation itself."""
    network, seen = found.network, []

    def add(activation):
        seen.extend([activation.detach(), torch.zeros_like(activation, requires_grad=True)])
        return activation + seen[1]

    handle = raw_hook(network, family, component, layer, columns, add)
    logits = network(**inputs(found.base)).logits
    handle.remove()
    last = logits[torch.arange(len(logits)), found.base["attention_mask"].sum(1) - 1]
    (last.gather(1, found.label[:, :1]) - last.gather(1, found.own[:, :1])).sum().backward()
    return seen[0], seen[1].grad


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_estimates_are_differences_times_gradients(family):
    found = contrast(family)
    for component, head in (
        ("block_output", None),
        ("mlp_activation", None),
        ("attention_value_output", "all"),
    ):
        effects = attribute(
            found.network,
            found,
            components=component,
            heads=head,
            positions=["a", ("a", "b"), None],
        )
        for cell, values in zip(effects.cells, effects.of("logit_difference"), strict=True):
            columns = (
                ORACLES[family][component][2]
                if head is None
                else head_columns(family, component, cell.site.head)
            )
            own, slope = gradient(found, family, component, cell.site.layer, columns)
            theirs = raw_activation(
                found.network, family, component, cell.site.layer, found.source, columns
            )
            each = ((theirs - own) * slope).double().sum(-1)
            at = {"a": [1], ("a", "b"): [1, 3]}.get(cell.site.position)
            lengths = found.base["attention_mask"].sum(1).tolist()
            expected = [
                row[at].sum() if at else row[:n].sum() for row, n in zip(each, lengths, strict=True)
            ]
            change = values - effects.unedited["logit_difference"]
            np.testing.assert_allclose(change, torch.stack(expected), **CLOSE, err_msg=str(cell))
        assert (
            np.abs(effects.of("logit_difference") - effects.unedited["logit_difference"]).max()
            > 1e-3
        )
    assert all(not p.requires_grad or p.grad is None for p in found.network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in found.network.modules())


def test_integrated_gradients_of_the_embeddings_add_up():
    found = contrast("llama")
    options = {"cells": [iit.Site("embedding_output")], "metric": ["logit_difference", "kl"]}
    errors = []
    for steps in (8, 256):
        effects = attribute(found.network, found, steps=steps, **options)
        errors.append(
            np.abs(effects.of("logit_difference")[0] - effects.source["logit_difference"]).max()
        )
    assert errors[1] < 1e-3 < errors[0]
    assert errors[1] < errors[0] / 10
    assert np.isfinite(effects.of("kl")).all()


@pytest.mark.parametrize("steps", [None, 3])
def test_gradients_are_taken_where_the_caller_takes_none(steps):
    found = contrast("llama")
    options = {"positions": ["a"], "metric": ["logit_difference", "probability"], "steps": steps}
    expected = attribute(found.network, found, **options)
    with torch.no_grad():
        effects = attribute(found.network, found, **options)
    for metric in options["metric"]:
        np.testing.assert_array_equal(effects.of(metric), expected.of(metric))
        assert np.abs(effects.of(metric) - effects.unedited[metric]).max() > 1e-6


def test_small_differences_are_estimated_exactly():
    """Where base and source are close, the first order is all there is; of units, too."""
    found = contrast("gpt2")
    network = copy.deepcopy(found.network)
    embedding = network.get_input_embeddings().weight
    ids, twins = found.base["input_ids"], found.base["input_ids"].clone()
    twins[0, 1], twins[1, 1] = 50, 51
    with torch.no_grad():
        for row, new in ((0, 50), (1, 51)):
            embedding[new] = embedding[ids[row, 1]] * (1 + 1e-3)
    near = Contrast.of_batches(
        network,
        {**found.base, "answer": found.own},
        {**found.base, "input_ids": twins, "answer": found.label},
    )
    for options in (
        {"positions": ["a", None]},
        {"components": "mlp_activation", "positions": ["a"], "units": [0, 5, 23]},
    ):
        estimate, exact = (f(network, near, **options) for f in (attribute, patch))
        change = exact.of("logit_difference") - exact.unedited["logit_difference"]
        # fp32 logits know differences to about 1e-6
        np.testing.assert_allclose(
            estimate.of("logit_difference") - exact.unedited["logit_difference"],
            change,
            atol=8e-6,
            rtol=2e-2,
        )


def test_agreement_with_the_exact_map():
    found = contrast("llama")
    options = {
        "components": ["attention_value_output", "mlp_output"],
        "heads": "all",
        "positions": ["a", "b", "last"],
    }
    exact, estimate = (
        patch(found.network, found, **options),
        attribute(found.network, found, **options),
    )
    told = agreement(estimate, exact, "logit_difference", top=5)
    assert told.n == len(exact) == 2 * 3 * (4 + 1)
    by_hand = spearmanr(
        *(effects.mean("logit_difference") for effects in (estimate, exact))
    ).statistic
    assert told.rank_correlation == pytest.approx(by_hand)
    assert told.rank_correlation < 1
    assert agreement(exact, exact, "logit_difference", top=5)[:3] == (pytest.approx(1), 1, 5)
    strongest = [estimate.cells[i] for i in estimate.top(4, "logit_difference")]
    some = agreement(
        estimate, patch(found.network, found, cells=strongest), "logit_difference", top=2
    )
    assert (some.n, some.top) == (4, 2)
    with pytest.raises(ValueError, match="2 cells of 2 that were not estimated, block_output"):
        agreement(estimate, patch(found.network, found, positions=["a"]), "logit_difference")
    with pytest.raises(ValueError, match="top=0"):
        agreement(estimate, exact, "logit_difference", top=0)


@pytest.mark.parametrize(
    ("metric", "n"), [("logit_difference", 2), (["logit_difference", "probability", "iia"], 2)]
)
def test_two_forwards_whatever_is_measured(metric, n):
    """Without steps; a metric without a gradient has no estimate, and does not spoil the table."""
    found, calls = contrast("llama"), []
    handle = found.network.register_forward_pre_hook(lambda *_: calls.append(1))
    effects = attribute(found.network, found, metric=metric, positions=["a"])
    handle.remove()
    assert len(calls) == n
    assert (
        {line["metric"] for line in effects.table()} == {metric}
        if isinstance(metric, str)
        else {"logit_difference", "probability"}
    )
    alone = attribute(found.network, found, metric="logit_difference", positions=["a"])
    np.testing.assert_array_equal(effects.of("logit_difference"), alone.of("logit_difference"))
    with pytest.raises(ValueError, match="'iia' was not measured"):
        effects.baseline("iia")


def test_answers_of_several_tokens_are_no_part_of_the_prompt():
    found = contrast("llama", width=2)
    options = {"positions": [None, "a"], "metric": "probability"}
    together = attribute(found.network, found, **options)
    for row in range(2):
        alone = Contrast.of_batches(
            found.network,
            *(
                {**_row(side, row), "answer": answer[[row]]}
                for side, answer in ((found.base, found.own), (found.source, found.label))
            ),
        )
        np.testing.assert_allclose(
            together.of("probability")[:, [row]],
            attribute(found.network, alone, **options).of("probability"),
            **CLOSE,
        )


def _row(batch, row):
    n = int(batch["attention_mask"][row].sum())
    cut = {key: batch[key][[row], :n] for key in ("input_ids", "attention_mask")}
    return cut | {"positions": {role: index[[row]] for role, index in batch["positions"].items()}}


def test_batches_do_not_matter_and_texts_are_pairs_too(toy):
    network, pairs = toy
    options = {"components": ["block_output", "mlp_output"], "positions": ["s1", "last"]}
    effects = [
        attribute(network, pairs, batch_size=size, **options).of("logit_difference")
        for size in (3, 32)
    ]
    np.testing.assert_allclose(*effects, atol=1e-5)


def test_what_cannot_be_estimated():
    found = contrast("llama")
    for options, match in (
        ({"metric": "iia"}, "gradient"),
        ({"metric": "kl"}, "gradient"),
        ({"steps": 0}, "1 step or more"),
        ({"positions": []}, "no cell"),
        ({"components": "attention_weight", "positions": ["a"]}, "not estimated"),
        ({"positions": ["a"], "units": [99]}, "units 0 to 15"),
    ):
        with pytest.raises(ValueError, match=match):
            attribute(found.network, found, **options)
