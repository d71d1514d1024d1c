"""Activation patching equals a loop over cells with raw hooks."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch

import iit
from iit.patching import METRICS, Contrast, patch
from iit.patching.activations import ActivationReader
from iit.patching.metric import Answers
from tests.oracles import ORACLES, head_columns
from tests.patching.contrasts import contrast, difference, last_logits, raw_activation, swapped

COMPONENTS = [
    "block_input",
    "block_output",
    "attention_output",
    "mlp_output",
    "attention_write",
    "mlp_write",
    "attention_value_output",
]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def oracle(found, family, component, layer, position, columns=None):
    theirs = raw_activation(found.network, family, component, layer, found.source, columns)
    hook = (family, component, layer, columns, swapped(theirs, position))
    return difference(last_logits(found.network, found.base, [hook]), found)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_every_component_layer_and_position(family, direction):
    pairs = contrast(family)
    components = [c for c in COMPONENTS if c in ORACLES[family]]
    effects = patch(
        pairs.network,
        pairs,
        components=components,
        positions=["a", "b", "last", None],
        direction=direction,
    )
    found = pairs if direction == "noising" else pairs.swapped()
    assert len(effects) == len(components) * 2 * 4
    for cell, values in zip(effects.cells, effects.of("logit_difference"), strict=True):
        at = {"a": 1, "b": 3, None: None}.get(cell.site.position, "last")
        columns = ORACLES[family][cell.site.component][2]
        if at == "last":
            each = [
                oracle(found, family, cell.site.component, cell.site.layer, int(p), columns)
                for p in (6, 4)
            ]
            expected = np.array([each[0][0], each[1][1]])
        else:
            expected = oracle(found, family, cell.site.component, cell.site.layer, at, columns)
        np.testing.assert_allclose(values, expected, **CLOSE, err_msg=str(cell))
    np.testing.assert_allclose(
        effects.unedited["logit_difference"],
        difference(last_logits(found.network, found.base), found),
        **CLOSE,
    )
    np.testing.assert_allclose(
        effects.source["logit_difference"],
        difference(last_logits(found.network, found.source), found),
        **CLOSE,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_heads_and_units(family):
    pairs = contrast(family)
    heads = patch(
        pairs.network, pairs, components="attention_value_output", heads="all", positions=["a", "b"]
    )
    assert [(c.site.layer, c.site.head, c.site.position) for c in heads.cells] == [
        (layer, head, role) for layer in range(2) for head in range(4) for role in ("a", "b")
    ]
    for cell, values in zip(heads.cells, heads.of("logit_difference"), strict=True):
        columns = head_columns(family, "attention_value_output", cell.site.head)
        at = {"a": 1, "b": 3}[cell.site.position]
        np.testing.assert_allclose(
            values,
            oracle(pairs, family, "attention_value_output", cell.site.layer, at, columns),
            **CLOSE,
            err_msg=str(cell),
        )
    units = patch(
        pairs.network,
        pairs,
        components="mlp_activation",
        units=[0, 5, 23],
        positions=["a", "last"],
        layers=[1],
    )
    for cell, values in zip(units.cells, units.of("logit_difference"), strict=True):
        each = [
            oracle(pairs, family, "mlp_activation", 1, p, [cell.unit])
            for p in ((1, 1) if cell.site.position == "a" else (6, 4))
        ]
        np.testing.assert_allclose(
            values, np.array([each[0][0], each[1][1]]), **CLOSE, err_msg=str(cell)
        )


def test_every_position_of_the_last_block_gives_the_source():
    pairs = contrast("llama")
    effects = patch(
        pairs.network,
        pairs,
        positions=[None],
        metric=["normalised_logit_difference", "kl", "probability"],
    )
    last = len(effects) - 1
    np.testing.assert_allclose(effects.mean("normalised_logit_difference")[last], 1, atol=1e-5)
    np.testing.assert_allclose(
        effects.of("probability")[last], effects.source["probability"], atol=1e-6
    )
    same = Contrast.of_batches(
        pairs.network, {**pairs.base, "answer": pairs.own}, {**pairs.base, "answer": pairs.label}
    )
    nothing = patch(pairs.network, same, positions=["a", None], metric=["kl", "logit_difference"])
    np.testing.assert_allclose(nothing.of("kl"), 0, atol=1e-6)
    np.testing.assert_allclose(
        nothing.of("logit_difference"), [nothing.unedited["logit_difference"]] * 4, atol=1e-5
    )


def test_metrics_by_hand():
    logits = torch.log(
        torch.tensor([[[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]], [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
    )
    before = torch.log(
        torch.tensor([[[0.1, 0.6, 0.3], [0.2, 0.2, 0.6]], [[0.25, 0.25, 0.5], [0.1, 0.1, 0.8]]])
    )
    answers = Answers(torch.tensor([[1, 2], [1, -100]]), torch.tensor([[0], [2]]), before)
    assert METRICS["iia"](logits, answers).tolist() == [1, 0]
    assert METRICS["probability"](logits, answers).tolist() == pytest.approx([0.36, 0.25])
    assert METRICS["logit_difference"](logits, answers).tolist() == pytest.approx([np.log(6), 0])
    assert METRICS["kl"](logits, answers).tolist() == pytest.approx(
        [0, 0.25 * np.log(0.5) + 0.5 * np.log(2)], abs=1e-6
    )


def test_a_function_of_the_logits_is_a_metric():
    pairs = contrast("gpt2")
    effects = patch(
        pairs.network, pairs, positions=["a"], metric=lambda logits, answers: logits[:, 0, 7]
    )
    (name,) = effects.values
    theirs = raw_activation(pairs.network, "gpt2", "block_output", 0, pairs.source)
    expected = last_logits(
        pairs.network, pairs.base, [("gpt2", "block_output", 0, None, swapped(theirs, 1))]
    )[:, 7]
    np.testing.assert_allclose(effects.of(name)[0], expected, **CLOSE)
    with pytest.raises(ValueError, match="one value for each"):
        patch(pairs.network, pairs, positions=["a"], metric={"all": lambda logits, answers: logits})


def test_tables_and_rows(toy):
    network, pairs = toy
    effects = patch(
        network, pairs, positions=["s1", "last"], metric=["iia", "normalised_logit_difference"]
    )
    table = effects.table()
    assert len(table) == 2 * 4
    assert list(table[0]) == [
        "component",
        "layer",
        "head",
        "position",
        "unit",
        "method",
        "metric",
        "value",
        "low",
        "high",
        "n",
    ]
    assert all(line["low"] <= line["value"] <= line["high"] for line in table)
    rows = effects.rows(
        experiment="e", network="toy", task="ioi", split="validation", variable="subject_position"
    )
    assert {(row.control, row.metric) for row in rows} == {
        (None, "iia"),
        (None, "normalised_logit_difference"),
        ("no_intervention", "iia"),
    }
    swept = iit.sweep(network, pairs, positions=["s1", "last"])
    iias = [row.value for row in swept if row.metric == "iia" and row.subset == "changing"]
    assert [line["value"] for line in table if line["metric"] == "iia"] == pytest.approx(iias)


def test_what_cannot_be_patched(toy):
    network, pairs = toy
    for options, match in (
        ({"direction": "sideways"}, "noising, denoising"),
        ({"metric": "luck"}, "no metric 'luck'"),
        ({"positions": []}, "no cell"),
        ({"positions": ["nobody"]}, "no role 'nobody'"),
        ({"positions": ["last"], "units": [99]}, "units 0 to 15"),
        ({"positions": ["last"], "direction": "denoising"}, "s2_io_flip"),
    ):
        with pytest.raises(ValueError, match=match):
            patch(network, pairs, **options)
    with pytest.raises(ValueError, match="another network"):
        patch(network.model.model, Contrast.of(network, pairs), positions=["last"])
    batch = network.encode(["John"])
    with pytest.raises(ValueError, match="no `answer`"):
        Contrast.of_batches(network, batch, batch)


def test_sources_are_read_ahead_within_a_budget(monkeypatch):
    """However little is held at a time, the figures are the same; with room for all sites the
    sources are run once.
    """
    found, seen = contrast("llama"), []
    real = importlib.import_module("iit.patching.activations").activations
    monkeypatch.setattr(
        "iit.patching.activations.activations",
        lambda *args: seen.append(len(args[2])) or real(*args),
    )
    options = {
        "components": ["block_output", "mlp_output", "attention_value_output"],
        "heads": "all",
        "positions": ["a", "last", None],
    }
    once = patch(found.network, found, **options)
    assert seen == [len(once.cells)]
    monkeypatch.setattr(
        "iit.patching.replacement.ActivationReader", partial(ActivationReader, budget=1000)
    )
    little = patch(found.network, found, **options)
    assert len(seen) > 4
    np.testing.assert_allclose(little.of("logit_difference"), once.of("logit_difference"), **CLOSE)


def test_units_at_positions_of_different_widths():
    found = contrast("llama")
    found.base["positions"]["span"] = found.source["positions"]["span"] = torch.tensor(
        [[1, 2], [1, 2]]
    )
    options = {"components": "mlp_activation", "layers": [1], "units": [3, 5]}
    together = patch(found.network, found, positions=["a", "span"], **options)
    for position in ("a", "span"):
        alone = patch(found.network, found, positions=[position], **options)
        here = [i for i, cell in enumerate(together.cells) if cell.site.position == position]
        np.testing.assert_allclose(
            together.of("logit_difference")[here], alone.of("logit_difference"), **CLOSE
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"heads": "every", "components": "attention_value_output"}, "heads='every'"),
        ({"positions": "last"}, r"as \['last'\]"),
        ({"metric": []}, "No metric"),
    ],
)
def test_what_is_asked_for_in_a_wrong_way(options, match):
    found = contrast("llama")
    with pytest.raises(ValueError, match=match):
        patch(found.network, found, **options)


def test_cells_in_place_of_their_product():
    """Whole sites and single units, in any order, are the cells of a map."""
    found = contrast("llama")
    options = {"components": "mlp_activation", "layers": [1], "positions": ["a", "last"]}
    units = patch(found.network, found, units=[3, 5], **options)
    whole = patch(found.network, found, **options)
    cells = [units.cells[3], whole.cells[0].site, units.cells[0], whole.cells[1]]
    mixed = patch(found.network, found, cells=cells, layers=[0])
    assert mixed.cells == (units.cells[3], whole.cells[0], units.cells[0], whole.cells[1])
    each = [units.of("logit_difference")[i] for i in (3, 0)] + list(whole.of("logit_difference"))
    np.testing.assert_allclose(mixed.of("logit_difference")[[0, 2, 1, 3]], each, **CLOSE)


def test_a_device_without_double_precision_gives_the_same_map(monkeypatch):
    pairs = contrast("llama")
    names = ["iia", "logit_difference", "probability", "kl"]
    exactly = patch(pairs.network, pairs, positions=["a", "last"], metric=names)

    def refuse(tensor):
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
            "support float64."
        )

    monkeypatch.setattr(torch.Tensor, "double", refuse)
    single = patch(pairs.network, pairs, positions=["a", "last"], metric=names)
    for name in names:
        np.testing.assert_allclose(single.of(name), exactly.of(name), atol=2e-6, rtol=1e-5)
