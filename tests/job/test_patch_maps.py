"""Maps from the command line: validation ranks, test is opened for what was frozen, and nothing is
trained.
"""

import json
from functools import partial

import numpy as np
import pytest

from iit.patching import patch
from iit.report import print_results
from iit.report.page import END, START, page_with_table
from iit.result import read_metrics
from iit.run import run
from tests.conftest import SMALL
from tests.patching.contrasts import contrast

FEW = [*SMALL, "data.n_train=4", "data.n_val=6", "data.n_test=6", "job.top=2"]


@pytest.mark.filterwarnings("ignore")
def test_maps_of_patches(configured_on_either, tmp_path, capsys):
    layers, heads = (
        [f"job.maps.{name}.layers=[5,17]" for name in ("residual_stream", "heads")],
        "job.maps.heads.heads=[0,3]",
    )
    overrides = [f"+job.maps.{o.removeprefix('job.maps.')}" for o in layers]
    value = run(
        configured_on_either(
            "+experiment=patching_ioi",
            *FEW,
            *overrides,
            heads,
            "~job.maps.residual_stream_denoising",
        )
    )
    folder = tmp_path / "run"
    metrics = read_metrics(folder)
    cells = {
        (r.component, r.layer, r.head, r.position)
        for r in metrics.rows
        if r.split == "validation" and r.control is None
    }
    residual = {
        (c, layer, None, p)
        for c in ("block_output", "attention_output", "mlp_output")
        for layer in (5, 17)
        for p in ("s2", -3, -2, "last")
    }
    assert cells == residual | {
        ("attention_value_output", layer, h, p)
        for layer in (5, 17)
        for h in (0, 3)
        for p in ("s2", "last")
    }
    frozen = json.loads((folder / "choice.json").read_text())["cells"]
    test = [
        r
        for r in metrics.rows
        if r.split == "test" and r.control is None and r.metric == "normalised_logit_difference"
    ]
    assert len(test) == 4 == sum(map(len, frozen.values()))
    assert {r.n for r in test} <= set(range(1, 7))
    assert value == max(
        r.value
        for r in metrics.rows
        if (r.split, r.metric, r.control) == ("validation", "iia", None)
    )
    for name in ("residual_stream", "heads"):
        assert {path.suffix for path in folder.glob(f"{name}.*")} == {".png", ".svg", ".csv"}
    assert (folder / "causal_model.png").is_file()
    print_results(folder)
    assert "residual_stream: the strongest cells" in capsys.readouterr().out
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "README.md").write_text(f"# Page\n{START}\n{END}\n")
    (folder / "metrics.json").rename(tmp_path / "page" / "result.json")
    page = page_with_table(tmp_path / "page")
    assert page.count("| heads |") == page.count("| residual_stream |") == 2
    shown = [float(line.split("|")[4]) for line in page.splitlines() if line.startswith("| heads")]
    # Three digits are shown.
    np.testing.assert_allclose(
        sorted(shown), sorted(r.value for r in test if r.head is not None), atol=5.1e-4
    )


def test_frozen_cells_are_measured_and_no_others():
    """Of units, too: the strongest cells are no product of sites and units."""
    found = contrast("llama")
    run = partial(patch, components="mlp_activation", units=range(6), positions=["a", "last"])
    whole = run(found.network, found)
    best = [whole.cells[i] for i in whole.top(3, "logit_difference")]
    assert len({cell.unit for cell in best}) * len({cell.site for cell in best}) > 3, (
        "the product has others"
    )
    again = run(found.network, found, cells=best)
    assert sorted(map(str, again.cells)) == sorted(map(str, best))
    at = [whole.cells.index(cell) for cell in again.cells]
    np.testing.assert_allclose(
        again.of("logit_difference"), whole.of("logit_difference")[at], atol=1e-5
    )


@pytest.mark.filterwarnings("ignore")
def test_maps_of_paths(configured_on_either, tmp_path):
    maps = [
        "direct_to_logits",
        "to_name_mover_queries",
        "to_name_mover_queries_by_mlps",
        "to_inhibition_values",
    ]
    few = [f"+job.maps.{name}.layers=[{14 if name.endswith('values') else 20}]" for name in maps]
    run(
        configured_on_either(
            "+experiment=path_patching_ioi",
            *FEW,
            *few,
            *(f"+job.maps.{name}.heads=[0,2]" for name in maps),
        )
    )
    rows = read_metrics(tmp_path / "run").rows
    told = {
        (r.experiment, r.layer, r.head, r.position)
        for r in rows
        if r.split == "test" and r.control is None
    }
    assert told == {
        (
            f"path_patching_ioi/{name}",
            14 if name.endswith("values") else 20,
            head,
            "s2" if name.endswith("values") else "last",
        )
        for name in maps
        for head in (0, 2)
    }


@pytest.mark.filterwarnings("ignore")
def test_estimates_are_held_against_the_exact_map(configured_on_either, tmp_path, capsys):
    maps = ["exact", "attribution", "integrated_gradients"]
    few = [f"+job.maps.{name}.layers=[20,23]" for name in maps] + [
        f"job.maps.{name}.heads=[0,3]" for name in maps
    ]
    run(configured_on_either("+experiment=attribution_ioi", *FEW, *few))
    print_results(tmp_path / "run")
    told = " ".join(capsys.readouterr().out.split())
    for name, about in read_metrics(tmp_path / "run").facts["estimates"].items():
        assert (about["of"], about["n"]) == ("exact", 12)
        assert f"{name} in " in told
        assert f"rank correlation {about['rank_correlation']:.3f} over 12 cells" in told
    with pytest.raises(ValueError, match="'none'; the maps are"):
        run(
            configured_on_either(
                "+experiment=attribution_ioi", *FEW, "job.estimates={attribution: none}"
            )
        )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_facts_are_traced_and_one_of_them_drawn(configured, tmp_path):
    maps = ["hidden_states", "mlp", "attention"]
    few = [f"+job.maps.{name}.layers=[5]" for name in maps] + [
        f"job.maps.{name}.draws=1" for name in maps
    ]
    run(
        configured(
            "+experiment=causal_tracing",
            *FEW,
            *few,
            "+job.examples.one_fact.layers=[5,20]",
            "job.examples.one_fact={only: [1], draws: 1}",
        )
    )
    folder, rows = tmp_path / "run", read_metrics(tmp_path / "run").rows
    assert (folder / "one_fact.png").is_file()
    assert not any("one_fact" in r.experiment for r in rows)
    figures = {
        (r.split, r.control): r.value
        for r in rows
        if r.experiment.endswith("mlp") and r.metric == "probability" and r.control
    }
    for split in ("validation", "test"):
        assert figures[split, "no_intervention"] > 0.3 > figures[split, "corrupted"]


@pytest.mark.filterwarnings("ignore")
def test_ablations_from_the_command_line(configured_on_either, tmp_path):
    heads = [f"+job.maps.heads_{kind}.layers=[23]" for kind in ("mean", "zero", "resample")]
    run(
        configured_on_either(
            "+experiment=ablation_ioi",
            *FEW,
            *heads,
            "+job.maps.mlps_mean.layers=[0]",
            "job.maps.heads_resample.draws=1",
        )
    )
    rows = read_metrics(tmp_path / "run").rows
    told = {(r.experiment, r.method) for r in rows if r.split == "test" and r.control is None}
    assert {name for name, _ in told} == {
        f"ablation_ioi/{name}"
        for name in ("heads_mean", "heads_zero", "heads_resample", "mlps_mean")
    }


@pytest.mark.filterwarnings("ignore")
def test_captures_from_the_command_line(configured_on_either, tmp_path):
    run(configured_on_either("+experiment=lens_ioi", *FEW, "+job.maps.lens.layers=[5,29]"))
    rows = {
        (r.layer, r.control): r.value
        for r in read_metrics(tmp_path / "run").rows
        if r.split == "test"
    }
    assert rows[29, None] == pytest.approx(rows[None, "no_intervention"], abs=1e-5)
    assert rows[5, None] != pytest.approx(rows[29, None], abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_map_of_attention_from_the_command_line(configured_on_either, studied, tmp_path):
    run(
        configured_on_either(
            "+experiment=attention_ioi",
            *FEW,
            "+job.maps.from_last.layers=[20]",
            "+job.maps.from_s2.layers=[8]",
        )
    )
    test = [
        r for r in read_metrics(tmp_path / "run").rows if r.split == "test" and r.control is None
    ]
    assert {(r.experiment, r.layer) for r in test} == {
        ("attention_ioi/from_last", 20),
        ("attention_ioi/from_s2", 8),
    }
    if studied.name == "smollm2":
        heads = {("attention_ioi/from_last", 20, 0, "s2"), ("attention_ioi/from_s2", 8, 1, "s1")}
        assert {(r.experiment, r.layer, r.head, r.position) for r in test} >= heads
    assert all(0 <= r.value <= 1 for r in test)
