"""The heatmap and the table of many cells show each cell where it belongs."""

from dataclasses import replace

import numpy as np
import pytest

from iit.report.atlas import atlas_figure, atlas_tables
from iit.report.page import END, START, main
from iit.result import write_metrics
from tests.report.test_report import TEST

ROW = replace(
    TEST,
    split="validation",
    subset="changing",
    metric="iia",
    control=None,
    value=0.5,
    low=0.4,
    high=0.6,
    n=100,
)


def cell(layer, position, trained, whole, rank=4):
    beside = replace(
        ROW,
        layer=layer,
        position=position,
        rank=rank,
        control="vanilla",
        value=whole,
        low=whole,
        high=whole,
    )
    if trained is None:
        return [beside]
    return [beside, replace(beside, control=None, value=trained, low=trained, high=trained)]


ROWS = [
    *cell(3, "s2", 0.6, 0.5),
    *cell(3, "s2", 0.7, 0.5, rank=8),
    *cell(3, "last", None, 0.0),
    *cell(12, "s2", None, 0.01),
    *cell(12, "last", None, 0.02),
    *cell(1, "last", 0.125, 0.25),
    *cell(1, "s2", None, 0.0),
]


def test_the_table_has_a_line_for_each_layer_with_a_trained_cell():
    (table,) = atlas_tables(ROWS)
    assert table.header == ["layer", "s2", "last"]
    assert table.lines == [["1", "— (0.000)", "0.125 (0.250)"], ["3", "0.700 (0.500)", "— (0.000)"]]
    assert atlas_tables(cell(3, "s2", 0.6, 0.5)) == []


def test_the_figure_shows_both_grids_with_the_best_of_ranks_and_seeds():
    figure = atlas_figure(ROWS)
    whole, trained = (axes.images[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_array_equal(
        np.ma.filled(whole, np.nan), [[0.0, 0.25], [0.5, 0.0], [0.01, 0.02]]
    )
    np.testing.assert_array_equal(
        np.ma.filled(trained, np.nan), [[np.nan, 0.125], [0.7, np.nan], [np.nan, np.nan]]
    )
    assert [axes.get_title() for axes in figure.axes[:2]] == ["whole vector", "trained"]
    assert "n = 100" in figure.axes[-1].get_ylabel()
    with pytest.raises(ValueError, match="no validation row of a cell"):
        atlas_figure([replace(ROW, layer=None)])


def test_a_page_shows_the_table(tmp_path):
    (tmp_path / "atlas").mkdir()
    page = tmp_path / "atlas" / "README.md"
    write_metrics(tmp_path / "atlas", [*ROWS, replace(TEST, layer=3, position="s2")]).rename(
        tmp_path / "atlas" / "result.json"
    )
    page.write_text(f"{START}\n{END}\n")
    main(["--write", str(tmp_path)])
    assert (
        "by layer and position; the whole vector's in brackets:\n\n| layer | s2 | last |"
        in page.read_text()
    )
