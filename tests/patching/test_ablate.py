"""Ablation equals a loop over cells with raw hooks."""

import numpy as np
import pytest
import torch

import iit
from iit.network import fingerprint
from iit.patching import Contrast, ablate
from tests.families import V
from tests.oracles import ORACLES, head_columns
from tests.patching.contrasts import contrast, difference, last_logits, raw_activation, swapped

COMPONENTS = ["attention_output", "mlp_output", "block_output"]
HEAD = "attention_value_output"
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
AT = {"a": [1, 1], "b": [3, 3], "last": [6, 4]}


def places(position, lengths=(7, 5)):
    """The columns of each row."""
    return [range(n) for n in lengths] if position is None else [[p] for p in AT[position]]


def oracle(found, family, site, vectors):
    """vectors: of each row, Tensor[place, width]."""
    columns = (
        ORACLES[family][site.component][2]
        if site.head is None
        else head_columns(family, site.component, site.head)
    )

    def function(activation):
        new = activation.clone()
        for row, (where, vector) in enumerate(zip(places(site.position), vectors, strict=True)):
            new[row, list(where)] = vector[: len(where)]
        return new

    return difference(
        last_logits(
            found.network, found.base, [(family, site.component, site.layer, columns, function)]
        ),
        found,
    )


def read(found, family, site, batch):
    columns = (
        ORACLES[family][site.component][2]
        if site.head is None
        else head_columns(family, site.component, site.head)
    )
    return raw_activation(found.network, family, site.component, site.layer, batch, columns)


def runs(found, **options):
    positions = ["a", "last", None]
    whole = ablate(found.network, found, components=COMPONENTS, positions=positions, **options)
    heads = ablate(
        found.network, found, components=HEAD, heads="all", positions=positions, **options
    )
    assert (len(whole), len(heads)) == (2 * 3 * 3, 2 * 4 * 3)
    return [
        (cell, v)
        for map_ in (whole, heads)
        for cell, v in zip(map_.cells, map_.of("logit_difference"), strict=True)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_zero_and_mean(family):
    found = contrast(family)
    before = fingerprint(found.network)
    for cell, values in runs(found, kind="zero"):
        here = read(found, family, cell.site, found.base)
        expected = oracle(found, family, cell.site, [torch.zeros_like(row) for row in here])
        np.testing.assert_allclose(values, expected, **CLOSE, err_msg=str(cell))
    for cell, values in runs(found, kind="mean"):
        theirs = read(found, family, cell.site, found.source)
        if cell.site.position is None:  # tokens 5 and 6 are of the longer prompt alone
            mean = torch.cat([theirs[:, :5].mean(0), theirs[0, 5:]])
        else:
            mean = torch.stack(
                [theirs[row, where[0]] for row, where in enumerate(places(cell.site.position))]
            ).mean(0, keepdim=True)
        np.testing.assert_allclose(
            values, oracle(found, family, cell.site, [mean, mean]), **CLOSE, err_msg=str(cell)
        )
    assert fingerprint(found.network) == before
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in found.network.modules()
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_resampling_is_the_mean_over_other_prompts(family):
    found = contrast(family, lengths=(7, 7))
    # Of a reference with two prompts, one of them the first base, that base can only be given the
    # other.
    pool = {"input_ids": torch.cat([found.base["input_ids"][:1], found.source["input_ids"][:1]])}
    pool |= {
        "attention_mask": torch.ones(2, 7, dtype=torch.long),
        "positions": found.source["positions"],
    }
    options = {
        "kind": "resample",
        "reference": pool,
        "draws": 12,
        "components": HEAD,
        "heads": "all",
        "positions": ["a"],
    }
    effects = ablate(found.network, found, layers=[0], **options)
    shares = set()
    for cell, values in zip(effects.cells, effects.of("logit_difference"), strict=True):
        columns = head_columns(family, HEAD, cell.site.head)
        theirs = raw_activation(found.network, family, HEAD, cell.site.layer, pool, columns)
        given = [
            difference(
                last_logits(
                    found.network,
                    found.base,
                    [(family, HEAD, cell.site.layer, columns, swapped(theirs[[i, i]], 1))],
                ),
                found,
            )
            for i in (0, 1)
        ]
        assert values[0] == pytest.approx(given[1][0], abs=1e-5)
        shares.add(round(float((values[1] - given[0][1]) / (given[1][1] - given[0][1])), 3))
    (share,) = shares  # the same prompts are drawn for every cell
    assert 0 < share < 1
    assert share * 12 == pytest.approx(round(share * 12), abs=0.02)
    again = ablate(found.network, found, layers=[0], **options)
    np.testing.assert_array_equal(effects.of("logit_difference"), again.of("logit_difference"))


def test_units():
    found = contrast("llama")
    options = {"components": "mlp_activation", "units": [0, 5], "positions": ["a"], "layers": [1]}
    theirs = raw_activation(found.network, "llama", "mlp_activation", 1, found.source)[:, 1]
    for kind, vector in (("zero", torch.zeros(24)), ("mean", theirs.mean(0))):
        effects = ablate(found.network, found, kind=kind, **options)
        for cell, values in zip(effects.cells, effects.of("logit_difference"), strict=True):
            set_ = lambda h, u=cell.unit, v=vector: h.index_put(
                (torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([0])), v[u]
            )
            hook = ("llama", "mlp_activation", 1, [cell.unit], set_)
            np.testing.assert_allclose(
                values, difference(last_logits(found.network, found.base, [hook]), found), **CLOSE
            )


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_positions_of_different_widths(kind):
    """Rows of one token and rows of two are of one group, and often of one batch, but not
    always.
    """
    found = contrast("llama", lengths=(7, 5, 6))
    found.base["positions"]["span"] = found.source["positions"]["span"] = torch.tensor(
        [[1, 2], [1, -100], [1, 2]]
    )
    options = {"kind": kind, "components": "mlp_output", "layers": [1], "batch_size": 1}
    together = ablate(found.network, found, positions=["a", "span", "last"], **options)
    each = [
        ablate(found.network, found, positions=[place], **options)
        for place in ("a", "span", "last")
    ]
    alone = np.concatenate([effects.of("logit_difference") for effects in each])
    np.testing.assert_allclose(together.of("logit_difference"), alone, **CLOSE)


def test_a_mean_over_one_prompt_is_that_prompt(toy):
    network, pairs = toy
    effects = ablate(
        network, pairs, positions=["last"], metric=("iia", "normalised_logit_difference")
    )
    assert effects.method == "Ablation, mean"
    assert len(effects.table()) == 2 * 2 * 2
    found = Contrast.of(network, pairs)
    reference = {key: value[:1] for key, value in found.base.items() if key != "positions"}
    reference["positions"] = {role: index[:1] for role, index in found.base["positions"].items()}
    one = ablate(network, pairs, reference=reference, positions=["last"])
    np.testing.assert_allclose(
        one.of("logit_difference")[:, 0], one.unedited["logit_difference"][0], atol=1e-5
    )


def test_what_cannot_be_ablated():
    found = contrast("llama")
    short = {
        "input_ids": torch.full((1, 2), V - 1),
        "attention_mask": torch.ones(1, 2, dtype=torch.long),
    }
    for options, match in (
        ({"kind": "half"}, "zero, mean, resample"),
        ({"kind": "zero", "reference": short}, "reads no reference"),
        ({"draws": 0}, "at least one"),
        ({"reference": short, "positions": [None]}, "has 7 tokens there, the reference at most 2"),
        (
            {"kind": "resample", "reference": short, "positions": [None]},
            "Base 0 has no other prompt",
        ),
        ({"positions": ["nobody"]}, "no role 'nobody'"),
        ({"cells": [iit.Site("mlp_output", layer=9)]}, "layer=9"),
    ):
        with pytest.raises(ValueError, match=match):
            ablate(found.network, found, **options)
