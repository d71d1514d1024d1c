"""The figures of a page: well-formed SVG, figures as they were measured, and extremes."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from iit.report import write_page
from iit.report.html import figures
from iit.report.html.folder import open_folder
from iit.report.html.page import TEMPLATES
from iit.result import Cell, write_metrics
from iit.result.record import write_record
from tests.result.test_result import ROW

LONG = "a_very_long_name_of_a_variable_that_no_column_has_room_for+another_one"
WORDS = {"id": "f", "title": "A title", "text": "What is shown <here>."}
TRAINED = replace(ROW, method="LowRankRotatedSpaceIntervention", control=None, draw=None)

FIGURE = "{% import 'figures.html.j2' as figures %}{{ figures[macro](data) }}"


def drawn(macro, **data):
    """The figure as an XML tree, and its text."""
    text = TEMPLATES.from_string(FIGURE).render(macro=macro, data=WORDS | data)
    # An attribute without a value is HTML, but not XML.
    return ET.fromstring(text.replace("<table data-sortable>", "<table>")), text


def numbers_of(tree):
    """The numbers in the table of values, in full."""
    return [float(cell.get("data-value")) for cell in tree.iter() if cell.get("data-value")]


def line(value, **others):
    return {"name": "one", "value": value, "low": value - 0.1, "high": value + 0.1, "n": 7} | others


def check(tree, text, values):
    """What holds for every figure: a name, a description, its values, places that are numbers."""
    svg = tree.find(".//svg[@role='img']")
    names = svg.get("aria-labelledby").split()
    described = {element.get("id"): element.text for element in svg.iter() if element.get("id")}
    assert all(described[name].strip() for name in names)
    assert not re.search(r"\b(nan|inf)\b", text.lower())
    assert tree.find("figcaption/strong").text
    assert set(values) <= set(numbers_of(tree))
    # One mark for each figure; the keyboard reaches the first, and the arrow keys the others.
    marks = [mark for mark in svg.iter("g") if "mark" in mark.get("class", "").split()]
    assert [mark.get("tabindex") for mark in marks].count("0") == 1
    assert all(mark.find("title").text.strip() for mark in marks)
    width, height = map(float, svg.get("viewBox").split()[2:])
    for rect in svg.iter("rect"):
        x, y, w, h = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
        assert w >= 0
        assert h >= 0
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 1
        assert y + h <= height + 1
    return marks


STRIPS = {
    "one": [line(0.5)],
    "all equal": [line(0.5)] * 4,
    "from 0 to 1": [line(0.0, low=0.0), line(1.0, high=1.0)],
    "negative": [line(-3.5, low=-4.0, high=-3.0), line(2.0)],
    "zero": [line(0.0, low=0.0, high=0.0)],
    "large": [line(12345.678, low=12000.0, high=13000.0)],
    "long names": [line(0.25, name=LONG), line(0.5, name="a word " * 12)],
    "escaped": [line(0.5, name="<script>&</script>")],
    "without an interval": [{"name": "one", "value": 0.3}],
}


@pytest.mark.parametrize("lines", STRIPS.values(), ids=STRIPS)
@pytest.mark.parametrize("macro", ["bar", "dots"])
def test_bars_and_dots(macro, lines):
    metric = "iia" if all(0 <= line["value"] <= 1 for line in lines) else "logit_difference"
    tree, text = drawn(macro, lines=lines, metric=metric)
    marks = check(tree, text, [line["value"] for line in lines])
    assert len(marks) == len(lines)
    assert "<script>" not in text


def test_what_is_reported_is_marked_by_more_than_colour():
    lines = [line(0.9, standing="trained"), line(0.1, standing="floor")]
    tree, _ = drawn("bar", lines=lines)
    trained, floor = (mark for mark in tree.iter("g") if "mark" in mark.get("class"))
    assert "chosen" in trained.get("class")
    assert "chosen" not in floor.get("class")
    (guide,) = (path for path in tree.iter("path") if path.get("class") == "guide")
    # The guide stands where the bar ends.
    bar = trained.find("rect[@class='bar']")
    end = float(bar.get("x")) + float(bar.get("width"))
    assert float(guide.get("d").split()[0][1:]) == pytest.approx(end, abs=0.2)


def test_no_lines_no_figure():
    for macro in ("bar", "dots", "lines", "heatmap"):
        assert TEMPLATES.from_string(FIGURE).render(macro=macro, data={"lines": []}).strip() == ""


def curve(n, series=1, low=0.0):
    return [
        line(low + (x + s) / (n + series), rank=x, arm=f"arm {s}")
        for s in range(series)
        for x in range(n)
    ]


@pytest.mark.parametrize(("n", "series", "low"), [(1, 1, 0), (3, 2, 0), (5, 8, -3), (30, 1, 0)])
def test_curves(n, series, low):
    lines = curve(n, series, low)
    data = {"x": "rank", "series": "arm", "label": "IIA", "metric": "logit_difference"}
    tree, text = drawn("lines", lines=lines[::-1], **data)
    marks = check(tree, text, [line["value"] for line in lines])
    assert len(marks) == n * series
    paths = [path for path in tree.iter("path") if path.get("class") == "curve"]
    drawn_paths = [path for path in paths if "L" in path.get("d")]
    assert len(drawn_paths) == (series if n > 1 else 0)
    for path in drawn_paths:
        x = [float(point.split()[0]) for point in path.get("d")[1:].split("L")]
        assert x == sorted(x)
    # Colours repeat; then the dashes differ.
    styles = {(path.get("stroke-dasharray"), i % 6) for i, path in enumerate(drawn_paths)}
    assert len(styles) == len(drawn_paths)


def test_a_curve_over_names_and_a_chosen_point():
    lines = [line(0.2, x="first", s="a"), line(0.4, x="second", s="a", chosen=True)]
    tree, text = drawn("lines", lines=lines, x="x", series="s", label="IIA", metric="iia")
    marks = check(tree, text, [0.2, 0.4])
    assert ["chosen" in mark.get("class") for mark in marks] == [False, True]
    assert marks[1].find("circle[@class='ring']") is not None
    assert marks[1].find("title").text.endswith("chosen")


def test_a_long_training_is_thinned_and_keeps_its_mark():
    lines = [{"step": step, "value": 1 / (1 + step), "s": "loss"} for step in range(9000)]
    data = {
        "x": "step",
        "series": "s",
        "label": "loss",
        "metric": "loss",
        "mark": 4500,
        "mark_text": "kept",
    }
    tree, text = drawn("lines", lines=lines, **data)
    check(tree, text, [1.0])
    assert len(text) < 100_000
    assert "kept" in text


def grid(columns, rows, **others):
    return [
        line(column / columns - row / rows, layer=row, position=column, **others)
        for row in range(rows)
        for column in range(columns)
    ]


HEATMAPS = {
    "one cell": grid(1, 1),
    "missing": grid(4, 4)[:-3],
    "all equal": [cell | {"value": 0.25} for cell in grid(3, 3)],
    "no effect": [cell | {"value": 0.0} for cell in grid(3, 3)],
    "names": [line(0.5, layer="embedding", position=LONG), line(1.5, layer=3, position="s2")],
}


@pytest.mark.parametrize("lines", HEATMAPS.values(), ids=HEATMAPS)
@pytest.mark.parametrize("metric", ["iia", "normalised_logit_difference", "logit_difference"])
def test_heatmaps(lines, metric):
    data = {"x": "position", "y": "layer", "panel": None, "metric": metric, "label": metric}
    tree, text = drawn("heatmap", lines=lines, **data)
    marks = check(tree, text, [line["value"] for line in lines])
    cells = {(mark.find("rect").get("x"), mark.find("rect").get("y")) for mark in marks}
    assert len(cells) == len(lines)


def test_a_large_heatmap():
    lines = grid(100, 40)
    data = {"x": "position", "y": "layer", "panel": None, "metric": "other", "label": "other"}
    tree, text = drawn("heatmap", lines=lines, **data)
    assert len(check(tree, text, [line["value"] for line in lines])) == 4000
    assert len(text) < 2_500_000


def test_panels_and_the_chosen_cell():
    lines = grid(2, 2, panel="whole vector") + grid(2, 2, panel="trained")
    lines[-1]["chosen"] = "chosen"
    lines[0]["chosen"] = "1"
    data = {"x": "position", "y": "layer", "panel": "panel", "metric": "iia", "label": "IIA"}
    tree, text = drawn("heatmap", lines=lines, **data)
    marks = check(tree, text, [line["value"] for line in lines])
    assert [mark.get("class").split()[1:2] == ["chosen"] for mark in marks] == [
        "chosen" in line for line in lines
    ]
    shown = [element.text for element in tree.iter("text")]
    assert "chosen" in shown
    assert "1" in shown
    # Layer 0 stands at the bottom.
    heights = [float(mark.find("rect").get("y")) for mark in marks[:4]]
    assert heights[0] > heights[2]


GRAPH = {
    "name": "t",
    "nodes": [
        {"name": "unused", "kind": "input", "depth": 0, "place": None},
        {"name": "x", "kind": "input", "depth": 0, "place": None},
        {"name": LONG, "kind": "computed", "depth": 1, "place": "block_output[3] @ s2"},
        {"name": "answer", "kind": "output", "depth": 2, "place": None},
    ],
    "edges": [["x", LONG], [LONG, "answer"], ["x", "answer"]],
}


def test_the_causal_model(tmp_path):
    write_metrics(tmp_path, [TRAINED], meanings={"x": "what is given"})
    assert figures.causal_model(open_folder(tmp_path)) is None
    (tmp_path / "causal_model.json").write_text(json.dumps(GRAPH))
    data = figures.causal_model(open_folder(tmp_path))
    tree, text = drawn("causal_model", **data)
    marks = check(tree, text, [])
    assert len(marks) == 3
    assert "unused" in text
    (aligned,) = (mark for mark in marks if "chosen" in mark.get("class"))
    assert aligned.find("title").text.startswith(LONG)
    assert "block_output[3] @ s2" in aligned.find("title").text
    assert "x (input): what is given" in text
    edges = [path for path in tree.iter("path") if path.get("class") == "edge"]
    assert len(edges) == 3


def test_the_axis_holds_its_values():
    for values in ([0.0], [5.0, 5.0], [-2.0, 3.0], [1e-9], [1e6]):
        axis = figures.axis(values)
        assert axis["low"] <= min(0, *values)
        assert axis["high"] >= max(0, *values)
        assert axis["low"] < axis["high"]
    assert figures.axis([0.3], "iia") | {"ticks": 0} == {"low": 0, "high": 1, "ticks": 0}


def test_a_mean_over_seeds_counts_pairs():
    lines = [line(0.4, rank=1, seed=0), line(0.6, rank=1, seed=1), line(0.9, rank=2, seed=0)]
    first, second = figures.means(lines, "rank")
    assert first["value"] == pytest.approx(0.5)
    assert first["n"] == 7
    assert second | {"name": 0} == lines[2] | {"name": 0}


def test_iia_against_rank_leaves_other_sites_and_single_draws_out():
    rows = [replace(TRAINED, split="test", rank=4, value=0.5)]
    rows += [replace(rows[0], control="lower_rank", draw=2, value=0.3)]
    rows += [replace(rows[0], control="random_subspace", value=0.1)]
    rows += [replace(rows[0], control="random_subspace", draw=0, value=0.2)]
    rows += [replace(rows[0], layer=99, rank=8)]
    lines = figures.by_rank(rows, Cell.of(rows[0]), "test")
    assert [(line["control"], line["rank"], line["value"]) for line in lines] == [
        (None, 4, 0.5),
        (None, 2, 0.3),
        ("random_subspace", 4, 0.1),
    ]


def sweep(folder, ranks, seeds):
    """A sweep in which job NUMBER has a rank and a seed; higher ranks are better."""
    jobs = [(rank, seed) for rank in ranks for seed in seeds]
    record = {"overrides": ["x"], "swept": ["rank", "seed"], "jobs": len(jobs) + 1}
    write_record(folder / "sweep.yaml", record)
    for number, (rank, seed) in enumerate(jobs):
        job = folder / str(number)
        (job / "alignment").mkdir(parents=True)
        overrides = {"rank": rank, "seed": seed}
        write_record(job / "job.yaml", {"status": "done", "overrides": overrides})
        row = replace(TRAINED, split="validation", rank=rank, seed=seed, value=rank / 100)
        row = replace(row, subset="changing", metric="iia")
        vanilla = replace(row, control="vanilla", value=0.77)
        write_metrics(job, [row, vanilla, replace(row, split="test", value=0.4321)])
        # The frame's columns are the first directions; each seed begins one later.
        frame = np.roll(np.eye(8, 2, dtype=np.float32), seed, 0) * 3
        save_file({"0.basis.weight": frame}, job / "alignment/interventions.safetensors")
        part = {"basis": {"type": "Frame"}, "gate": {"type": "All"}}
        config = {"interventions": [part]}
        (job / "alignment/config.json").write_text(json.dumps(config))
    failed = folder / "failed"
    failed.mkdir()
    problem = {"status": "failed", "error": "no <memory>", "log": "run.log"}
    write_record(failed / "job.yaml", problem | {"overrides": {"rank": 99, "seed": 0}})


def test_the_page_of_a_sweep(tmp_path):
    sweep(tmp_path, [4, 32], [0, 1])
    write_page(tmp_path / "2")
    page = write_page(tmp_path).read_text()
    assert 'href="1/report.html"' not in page
    assert "rank = 32" in page
    assert "0.432" in page
    assert 'href="2/report.html"' in page
    assert "no &lt;memory&gt;" in page
    assert "rank = 99" not in page
    for name in ('id="rank"', 'id="seeds"', 'id="angles"', 'id="jobs"'):
        assert name in page
    assert "0.77" in page
    # The two planes share one of two directions: 0° and 90°.
    assert "seed 0 and seed 1: 45.0" in page


def test_angles_of_other_alignments_are_not_shown(tmp_path):
    sweep(tmp_path, [4], [0, 1])
    part = {"basis": {"type": "Frame"}, "gate": {"type": "Boundary"}}
    config = tmp_path / "1/alignment/config.json"
    config.write_text(json.dumps({"interventions": [part]}))
    folder = open_folder(tmp_path)
    assert list(figures.angles(folder, {"seed 0": "0", "seed 1": "1"})) == []


def test_a_sweep_in_which_all_jobs_failed(tmp_path):
    sweep(tmp_path, [], [])
    page = write_page(tmp_path).read_text()
    assert "No job of this sweep has a validation figure" in page
    assert "no &lt;memory&gt;" in page


def map_rows():
    common = replace(TRAINED, experiment="e/residual", metric="iia", subset="changing")
    cells = [
        replace(common, split=split, layer=layer, position=position, value=layer / 10)
        for split in ("validation", "test")
        for layer in range(3)
        for position in ("s2", "last")
    ]
    return [*cells, replace(cells[0], control="no_intervention", value=0.05)]


def test_the_page_of_maps(tmp_path):
    rows = map_rows()
    best = rows[4].site_text()
    about = {"metric": "iia", "n_cells": 6, "seconds": 1.0, "top": [best]}
    write_metrics(tmp_path, rows, maps={"residual": about}, estimates={})
    page = write_page(tmp_path).read_text()
    assert "Of the 6 cells of the map “residual”" in page
    assert "number 1" in page
    lines = figures.map_lines(rows, "residual", about)
    assert [line["value"] for line in lines] == [row.value for row in rows[:6]]
    assert [line.get("chosen") for line in lines] == [None] * 4 + ["1", None]
    assert figures.map_lines(rows, "another", about) == []


def test_the_page_of_steering(tmp_path):
    base = replace(TRAINED, metric="about", subset="all", method=None, control="no_intervention")
    rows = []
    for split in ("validation", "test"):
        rows.append(replace(base, split=split, value=0.0, low=0.0, high=0.1))
        for strength, value in ((0.5, 0.25), (1.0, 0.625)):
            if split == "test" and strength != 1.0:
                continue
            steered = replace(base, split=split, method="das", control=None, draw=strength)
            rows.append(replace(steered, value=value, low=value, high=value))
    example = {"method": "das", "strength": 1.0, "prompt": "I saw", "text": " a <ship>"}
    facts = {"chosen": {"das": 1.0}, "max_ratio": 2.0, "metrics": ["about"], "examples": [example]}
    write_metrics(tmp_path, rows, steering=facts)
    page = write_page(tmp_path).read_text()
    assert "Das at strength 1" in page
    assert "0.625" in page
    assert "a &lt;ship&gt;" in page
    assert "Two test prompts" in page
    (tmp_path / "generations.json").write_text(json.dumps({"test": [example]}))
    assert "All test prompts" in write_page(tmp_path).read_text()
