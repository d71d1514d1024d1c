"""Figures of maps show each figure where it belongs, and nothing where there is none."""

import csv

import numpy as np
import pytest

from iit.report import curves, heatmap, map_figure, save_figure


def line(
    layer, position, value, component="block_output", metric="normalised_logit_difference", **more
):
    place = {
        "component": component,
        "layer": layer,
        "head": None,
        "position": position,
        "unit": None,
        "method": "m",
    }
    return {
        **place,
        "metric": metric,
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "n": 9,
        **more,
    }


LINES = [
    line(0, "s2", 0.1),
    line(0, "last", -0.7),
    line(10, "s2", 0.4),
    line(2, "last", 0.3, "mlp_output"),
]


def shown(axes):
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def test_a_heatmap_puts_each_cell_in_its_place():
    figure = heatmap(
        LINES,
        metric="normalised_logit_difference",
        panel="component",
        labels={"s2": " Mary"},
        title="who",
    )
    first, second = figure.axes[:2]
    np.testing.assert_array_equal(shown(first), [[0.1, -0.7], [np.nan, np.nan], [0.4, np.nan]])
    np.testing.assert_array_equal(
        shown(second), [[np.nan, np.nan], [np.nan, 0.3], [np.nan, np.nan]]
    )
    assert [label.get_text() for label in first.get_xticklabels()] == ["s2\n' Mary'", "last"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["0", "2", "10"]
    assert first.images[0].get_clim() == second.images[0].get_clim() == (-1, 1)
    (outline,) = first.patches
    assert outline.get_xy() == (0.5, -0.5), "the cell farthest from 0"
    assert "n = 9" in figure.axes[-1].get_ylabel()
    assert first.patch.get_hatch() == "////"


def test_shares_have_the_scale_of_shares():
    figure = heatmap(
        [line(0, "s2", 0.25, metric="iia"), line(1, "s2", 0.5, metric="iia")], metric="iia"
    )
    assert figure.axes[0].images[0].get_clim() == (0, 1)
    heads = [
        line(layer, None, 0.1 * layer, head=head) | {"head": head}
        for layer in range(2)
        for head in range(3)
    ]
    assert shown(heatmap(heads, metric="normalised_logit_difference", x="head").axes[0]).shape == (
        2,
        3,
    )


def test_other_scales_are_even_and_what_lies_beyond_is_told():
    found = heatmap([line(0, "s2", -3.0, metric="logit_difference")], metric="logit_difference")
    assert found.axes[0].images[0].get_clim() == (-3, 3)
    for values, extend in (((0.5, 1.2), "max"), ((-1.5, 1.2), "both"), ((0.5, -0.5), "neither")):
        here = heatmap(
            [line(n, "s2", value) for n, value in enumerate(values)],
            metric="normalised_logit_difference",
        )
        assert here.axes[0].images[0].colorbar.extend == extend


def test_what_does_nothing_is_white():
    lines = [
        line(0, "s2", -5.0, metric="logit_difference"),
        line(0, "last", -6.0, metric="logit_difference"),
    ]
    axes = heatmap(lines, metric="logit_difference", centre=-6.0).axes[0]
    assert axes.images[0].get_clim() == (-7, -5)
    assert axes.images[0].get_cmap().name == "PuOr_r"
    assert axes.patches[0].get_xy() == (-0.5, -0.5), "the cell farthest from where nothing happens"


@pytest.mark.parametrize("positions", [["s2"], ["s2", "last"]])
def test_a_component_without_heads_is_a_column_beside_those_with(positions):
    places = [(layer, p) for layer in (0, 1) for p in positions]
    lines = [
        line(*place, 0.1 * head, "attention_value_output", head=head)
        for head in (0, 1)
        for place in places
    ]
    figure = map_figure(
        [*lines, *(line(*p, 0.5, "mlp_output") for p in places)],
        metric="normalised_logit_difference",
    )
    panels = figure.axes[: len(positions)]
    assert [axes.get_title() for axes in panels] == (positions if len(positions) > 1 else [""])
    for axes in panels:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "mlp\noutput"]
        np.testing.assert_allclose(shown(axes), [[0, 0.1, 0.5]] * 2)
    both = [*lines, *(line(*place, 0.5, "query_output", head=0) for place in places)]
    assert (
        len(map_figure(both, metric="normalised_logit_difference").axes) == 2 * len(positions) + 1
    )


def test_curves_carry_their_intervals():
    lines = [
        {**line(0, None, 0.1 * s), "method": m, "strength": s}
        for m in ("one", "two")
        for s in (3, 1, 2)
    ]
    figure = curves(lines, x="strength", metrics=["normalised_logit_difference"])
    (axes,) = figure.axes
    assert [drawn.get_xdata().tolist() for drawn in axes.lines] == [[1, 2, 3]] * 2
    assert len(axes.collections) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_a_figure_is_saved_with_its_data(tmp_path):
    save_figure(
        heatmap(LINES, metric="normalised_logit_difference", panel="component"),
        tmp_path / "map",
        LINES,
    )
    assert {path.name for path in tmp_path.iterdir()} == {"map.png", "map.svg", "map.csv"}
    with (tmp_path / "map.csv").open(newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [0.1, -0.7, 0.4, 0.3]


def test_what_cannot_be_shown():
    with pytest.raises(ValueError, match="No line has the metric 'iia'"):
        heatmap(LINES, metric="iia")
    with pytest.raises(ValueError, match="Several lines stand for layer=0, position=s2"):
        heatmap([*LINES, LINES[0]], metric="normalised_logit_difference", panel="component")
    with pytest.raises(ValueError, match="No line has the metric 'iia'"):
        curves(LINES, x="layer", metrics=["iia"])


def test_what_has_no_layer_stands_at_its_name():
    table = [
        line(None, "last", 0.2, "embedding_output"),
        *(line(layer, "last", 0.1 * layer) for layer in range(3)),
    ]
    axes = map_figure(table, metric="normalised_logit_difference", labels={"last": " to"}).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "embedding\noutput",
        "0",
        "1",
        "2",
    ]
    heat = map_figure([*table, line(1, "s2", 0.3)], metric="normalised_logit_difference").axes[0]
    assert [tick.get_text() for tick in heat.get_yticklabels()] == [
        "embedding_output",
        "0",
        "1",
        "2",
    ]


def test_each_series_of_units_has_its_own_look_and_name():
    table = [
        line(layer, "a", unit / 9, component, unit=unit)
        for component in ("m", "n")
        for layer in range(4)
        for unit in range(3)
    ]
    figure = map_figure(
        table, metric="normalised_logit_difference", labels={"a": " Mary"}, title="units"
    )
    drawn = figure.axes[0].lines
    assert len({(one.get_color(), one.get_linestyle()) for one in drawn}) == len(drawn) == 8
    assert drawn[0].get_label() == "component m, layer 0"
    assert all(len(one.get_xdata()) == 3 for one in drawn)
    assert figure.get_suptitle() == "units @ a ' Mary'"
    heads = [
        line(layer, p, 0.1, head=head)
        for layer in range(2)
        for head in range(2)
        for p in ("a", "b")
    ]
    titles = [
        axes.get_title()
        for axes in map_figure(
            heads, metric="normalised_logit_difference", labels={"b": " to"}
        ).axes
    ]
    assert titles[:2] == ["a", "b\n' to'"]
