from dataclasses import replace

import pytest
from rich.console import Console

from iit.report import markdown_table, save_figure, summary, training_curve, write_summary
from iit.report.curves import read_log
from iit.result import write_metrics
from tests.result.test_result import ROW

TEST = replace(ROW, split="test", value=0.75)
CONTROLS = [
    TEST,
    replace(TEST, control="vanilla", value=0.7),
    replace(TEST, control="random_subspace", value=0.01),
    replace(TEST, control="random_subspace/0", value=0.02),
    replace(TEST, control="vanilla", metric="iia_difference", value=0.05),
]


def test_the_table_has_each_figure_once_with_interval_and_n():
    text = markdown_table([ROW, *CONTROLS])
    lines = text.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        "trained intervention",
        "vanilla patching (whole vector)",
        "random subspaces of equal rank",
        "trained − vanilla, paired",
    ]
    assert "| 0.750 | 0.400 to 0.600 | 10 |" in text
    assert "0.500 |" not in text, "validation figures do not stand among test figures"


def _job(sweep, name, validation, test, layer):
    folder = sweep / name
    (folder / ".hydra").mkdir(parents=True)
    rows = [replace(ROW, layer=layer, value=validation), replace(TEST, layer=layer, value=test)]
    write_metrics(folder, rows)


def test_a_summary_chooses_on_validation_and_shows_test_of_the_chosen_only(tmp_path):
    for name, validation, test, layer in (("0", 0.3, 0.91, 9), ("1", 0.6, 0.52, 13), ("2", 0.5, 0.93, 17)):
        _job(tmp_path, name, validation, test, layer)
    (tmp_path / "10" / ".hydra").mkdir(parents=True)
    console = Console(record=True, width=200)
    write_summary(tmp_path, console)
    text = console.export_text()
    assert "0.520" in text
    assert "0.910" not in text
    assert "0.930" not in text
    assert "failed: no metrics.json" in text
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["job", "0", "1", "2", "10"]
    assert [line.rsplit(",", 1)[1] for line in lines[1:]] == ["False", "True", "False", "False"]


def test_equal_cells_are_chosen_once(tmp_path):
    _job(tmp_path, "0", 0.5, 0.1, 3)
    _job(tmp_path, "1", 0.5, 0.2, 3)
    records, test = summary([tmp_path / "0", tmp_path / "1"])
    assert [record["chosen"] for record in records] == [True, False]
    assert [row.value for row in test] == [0.1]


LOG = "epoch,step,train/loss,val/iia,val/iia_changing,val/loss\n0,0,3.5,,,\n0,1,2.5,,,\n0,1,,0.5,0.25,2.0\n1,3,,0.75,0.6,1.5\n"


def test_curves_show_what_was_logged(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    assert read_log(path)["val/iia"] == [(1, 0.5), (3, 0.75)]
    figure = training_curve(path)
    lines = {line.get_label(): line.get_ydata().tolist() for axes in figure.axes for line in axes.lines}
    assert lines == {"training, each step": [3.5, 2.5], "validation": [2.0, 1.5], "changing pairs": [0.25, 0.6], "all pairs": [0.5, 0.75]}
    save_figure(figure, tmp_path / "curve")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    path.write_text("epoch,step,x\n0,0,1\n")
    with pytest.raises(ValueError, match="no 'train/loss'"):
        training_curve(path)
