"""Maps from the command line: validation ranks, test is opened for what was frozen, and nothing is trained."""

import json

import numpy as np
import pytest

from iit.report import print_results
from iit.report.page import END, START, page_with_table
from iit.result import read_metrics
from iit.run import run
from tests.conftest import SMALL

FEW = [*SMALL, "data.n_train=4", "data.n_val=6", "data.n_test=6", "job.top=2"]


@pytest.mark.filterwarnings("ignore")
def test_maps_of_patches(configured, tmp_path, capsys):
    layers, heads = [f"job.maps.{name}.layers=[5,17]" for name in ("residual_stream", "heads")], "job.maps.heads.heads=[0,3]"
    overrides = [f"+job.maps.{o.removeprefix('job.maps.')}" for o in layers]
    value = run(configured("+experiment=patching_ioi", *FEW, *overrides, heads, "~job.maps.residual_stream_denoising"))
    folder = tmp_path / "run"
    metrics = read_metrics(folder)
    cells = {(r.component, r.layer, r.head, r.position) for r in metrics.rows if r.split == "validation" and r.control is None}
    residual = {
        (c, layer, None, p)
        for c in ("block_output", "attention_output", "mlp_output")
        for layer in (5, 17)
        for p in ("s2", -3, -2, "last")
    }
    assert cells == residual | {
        ("attention_value_output", layer, h, p) for layer in (5, 17) for h in (0, 3) for p in ("s2", "last")
    }
    frozen = json.loads((folder / "choice.json").read_text())["cells"]
    test = [r for r in metrics.rows if r.split == "test" and r.control is None and r.metric == "normalised_logit_difference"]
    assert len(test) == 4 == sum(map(len, frozen.values()))
    assert {r.n for r in test} <= set(range(1, 7))
    assert value == max(r.value for r in metrics.rows if (r.split, r.metric, r.control) == ("validation", "iia", None))
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
    np.testing.assert_allclose(sorted(shown), sorted(r.value for r in test if r.head is not None), atol=5e-4)
