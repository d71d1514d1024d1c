import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from iit.report import save_figure, training_curve, write_summary
from iit.report.curves import read_log
from iit.report.results import results_table, tables
from iit.report.summary import read_jobs, summary, summary_table
from iit.result import Metrics, read_metrics, write_metrics
from iit.result.record import write_record
from iit.result.verdict_table import verdict_table
from tests.result.test_result import ROW

TEST = replace(ROW, split="test", value=0.75)
CONTROLS = [
    TEST,
    replace(TEST, control="vanilla", value=0.7),
    replace(TEST, control="random_subspace", value=0.01),
    replace(TEST, control="random_subspace", draw=0, value=0.02),
    replace(TEST, control="vanilla", metric="iia_difference", value=0.05),
]


def test_the_table_has_each_figure_once_with_interval_and_n():
    table = results_table([ROW, *CONTROLS], "")
    text = table.markdown()
    assert [line[0] for line in table.lines] == [
        "trained intervention",
        "vanilla patching (whole vector)",
        "random subspaces of equal rank",
        "trained − vanilla, paired",
    ]
    assert "| 0.750 | 0.400 to 0.600 | 10 |" in text
    assert "0.500 |" not in text, "validation figures do not stand among test figures"


def test_every_control_has_its_line():
    others = [replace(TEST, control="majority_answer"), replace(TEST, metric="kept_share")]
    told = [replace(TEST, metric="task_accuracy", subset="all"), replace(TEST, subset="all")]
    told.append(replace(TEST, subset="unchanging/another_asked"))
    table = results_table(
        [*others, *told, TEST, replace(TEST, control="no_intervention", metric="iia_difference")],
        "",
    )
    assert [line[:2] for line in table.lines] == [
        ("trained intervention", "changing"),
        ("trained intervention", "unchanging, another variable asked for"),
        ("trained intervention", "all"),
        ("trained − no intervention, paired", "changing"),
        ("task accuracy, before filtering", "prompts"),
        ("iia, majority_answer", "changing"),
        ("kept_share, trained", "changing"),
    ]


def test_figures_of_two_cells_say_whose_they_are():
    rows = [
        replace(TEST, variable="a", head=[1, 2]),
        replace(TEST, variable="b", layer=None, position=None, rank=None),
    ]
    assert [line[0] for line in results_table(rows, "").lines] == [
        "a at block_output[3].head[1, 2] @ s2, rank 4: trained intervention",
        "b at block_output: trained intervention",
    ]
    rows = [replace(TEST, variable="a"), replace(TEST, variable="b")]
    names = [line[0] for line in results_table(rows, "").lines]
    assert names == ["a: trained intervention", "b: trained intervention"], (
        "at one place only the variable differs"
    )


def test_the_terminal_has_the_rows_that_matter_and_a_heading_for_each_variable():
    rows = [
        *CONTROLS,
        replace(TEST, subset="unchanging"),
        replace(TEST, subset="all"),
        replace(TEST, subset="kind/a"),
        replace(TEST, control="rival", draw="other"),
        replace(TEST, metric="iia_forced"),
        replace(TEST, metric="task_accuracy", subset="all"),
    ]
    shown = [
        ("trained intervention", "changing"),
        ("trained intervention", "unchanging"),
        ("vanilla patching (whole vector)", "changing"),
        ("random subspaces of equal rank", "changing"),
        ("task accuracy, before filtering", "prompts"),
    ]
    table = results_table(rows, "", brief=True)
    assert [line[:2] for line in table.lines] == shown
    assert list(table.bold) == [0, 1]

    two = [replace(row, variable=name) for name in ("a", "b") for row in rows]
    lines = results_table(two, "", brief=True).lines
    assert [line[:2] for line in lines] == [("a", ""), *shown, ("b", ""), *shown]


# The tables of an investigation have more columns than a terminal of this width.
RUNS = [
    path
    for path in sorted(Path("experiments").glob("*/result.json"))
    if "tables" not in json.loads(path.read_text())["facts"]
]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_a_terminal_of_80_columns_cuts_no_word(path):
    console = Console(record=True, width=80)
    for table in tables(read_metrics(path), brief=True):
        console.print(table.rich())
        text = console.export_text()
        # Reasons of a verdict are sentences; they go on in the next line.
        n_whole = 2 if table.header[-1] == "why" else len(table.header)
        for line in table.lines:
            assert all(cell in text for cell in line[:n_whole]), line
        if n_whole == 2:
            assert {word for line in table.lines for word in line[2].split()} <= {*text.split()}


def test_the_terminal_shows_the_site_and_leaves_brackets_alone():
    console = Console(record=True, width=200)
    (table,) = tables(
        Metrics((replace(TEST, component="h[a].mlp:output", layer=None),), {}), brief=True
    )
    console.print(table.rich())
    text = console.export_text()
    assert "e: v at h[a].mlp:output @ s2, rank 4 in n" in text
    assert "0.750" in text
    with pytest.raises(ValueError, match="no row"):
        tables(Metrics((), {}), brief=True)


def _job(sweep, name, validation, test, layer, **overrides):
    rows = [replace(ROW, layer=layer, value=validation), replace(TEST, layer=layer, value=test)]
    seed = overrides.get("seed", ROW.seed)
    _job_of(sweep, name, [replace(row, seed=seed) for row in rows], **overrides)


def _job_of(sweep, name, rows, **overrides):
    folder = sweep / name
    folder.mkdir()
    _record(folder, overrides, "done")
    write_metrics(folder, rows)


def _record(folder, overrides, status, **more):
    folder.mkdir(exist_ok=True)
    write_record(folder / "job.yaml", {"status": status, "overrides": overrides} | more)


def _sweep(folder, *swept, jobs=1):
    write_record(folder / "sweep.yaml", {"overrides": [], "swept": list(swept), "jobs": jobs})


def _summarised(sweep, *swept):
    return summary(read_jobs(sweep), swept)


def test_a_summary_chooses_on_validation_and_shows_test_of_the_chosen_only(tmp_path):
    for name, validation, test, layer in (
        ("0", 0.3, 0.91, 9),
        ("1", 0.6, 0.52, 13),
        ("2", 0.5, 0.93, 17),
    ):
        _job(tmp_path, name, validation, test, layer, **{"site.layer": layer, "lr": 0.1})
    swept = {"site.layer": 21, "lr": 0.1}
    _record(tmp_path / "10", swept, "running")
    _record(tmp_path / "11", swept, "failed", error="rank=9 is too high", log="11/train.log")
    _sweep(tmp_path, "site.layer", "lr", jobs=6)
    console = Console(record=True, width=80)
    assert not write_summary(tmp_path, console)
    text = console.export_text()
    assert "0.520" in text
    assert "0.910" not in text
    assert "0.930" not in text
    assert "Job 10 failed: did not finish" in text
    assert "Job 11 failed: rank=9 is too high (log: 11/train.log)" in text
    assert "1 of 6 jobs have not started" in text
    assert "…" not in text, "nothing is cut off in a narrow terminal"
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert lines[0].startswith("job,site.layer,lr,network,")
    assert [line.split(",")[:3] for line in lines[1:]] == [
        ["0", "9", "0.1"],
        ["1", "13", "0.1"],
        ["2", "17", "0.1"],
        ["10", "21", "0.1"],
        ["11", "21", "0.1"],
    ]
    assert [line.rsplit(",", 1)[1] for line in lines[1:]] == ["False", "True"] + ["False"] * 3
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert [(job["job"], job["chosen"]) for job in kept["jobs"]] == [
        ("0", False),
        ("1", True),
        ("2", False),
        ("10", False),
        ("11", False),
    ]
    assert [(row["split"], row["layer"], row["value"]) for row in kept["test"]] == [
        ("test", 13, 0.52)
    ]


def test_equal_settings_are_chosen_once(tmp_path):
    _job(tmp_path, "0", 0.5, 0.1, 3, lr=0.1)
    _job(tmp_path, "1", 0.5, 0.2, 3, lr=0.2)
    records, test = _summarised(tmp_path, "lr")
    assert [record["chosen"] for record in records] == [True, False]
    assert [row.value for row in test] == [0.1]


def test_of_settings_that_share_a_cell_the_best_on_validation_is_chosen(tmp_path):
    for name, value, test in (("0", 0.2, 0.9), ("1", 0.8, 0.7), ("2", 0.5, 0.95)):
        _job(tmp_path, name, value, test, 3, objective=f"objective {name}")
    records, test = _summarised(tmp_path, "objective")
    assert [record["chosen"] for record in records] == [False, True, False]
    assert [record["objective"] for record in records] == [f"objective {n}" for n in range(3)]
    assert [row.value for row in test] == [0.7]
    table = summary_table(records, ["objective"])
    assert table.header == ["job", "objective", "IIA", "95% interval", "n"]


def test_a_job_with_two_variables_has_two_lines_and_is_chosen_by_their_mean(tmp_path):
    def job(name, **values):
        rows = [
            replace(base, variable=v, value=value)
            for v, value in values.items()
            for base in (ROW, TEST)
        ]
        _job_of(tmp_path, name, rows, lr=name)

    job("0", a=0.9, b=0.1)
    job("1", a=0.6, b=0.5)
    records, test = _summarised(tmp_path, "lr")
    assert [(r["job"], r["variable"], r["validation_iia"], r["chosen"]) for r in records] == [
        ("0", "a", 0.9, False),
        ("0", "b", 0.1, False),
        ("1", "a", 0.6, True),
        ("1", "b", 0.5, True),
    ]
    assert [(row.variable, row.value) for row in test] == [("a", 0.6), ("b", 0.5)]
    assert "variable" in summary_table(records, ["lr"]).header
    assert "variable" not in summary_table(records[:1], ["lr"]).header


def test_what_cannot_be_read_is_listed_and_spoils_nothing(tmp_path):
    for name in ("0", "1", "2"):
        _job(tmp_path, name, 0.5 + int(name) / 10, 0.4, 3, lr=int(name))
    (tmp_path / "1" / "metrics.json").write_text("{")
    (tmp_path / "2" / "job.yaml").write_text("- no record")
    _job_of(tmp_path, "3", [replace(ROW, subset="all", value=0.9)], lr=3)
    records, test = _summarised(tmp_path, "lr")
    assert [record["chosen"] for record in records] == [True, False, False, False]
    assert "metrics.json is damaged" in records[1]["failure"]
    assert "job.yaml is damaged" in records[2]["failure"]
    assert records[3]["failure"] is None, "a job without validation IIA has not failed"
    assert [row.value for row in test] == [0.4]
    (line,) = [line for line in summary_table(records, ["lr"]).lines if line[0] == "3"]
    assert line[:3] == ["3", "3", "none"]
    with pytest.raises(ValueError, match=r"no sweep\.yaml"):
        write_summary(tmp_path)


def test_settings_are_compared_by_their_mean_over_seeds(tmp_path):
    """The best seed is of another setting. That one's test figures are not shown."""
    for name, a, seed, validation, value in (
        ("0", 1, 0, 0.6, 0.50),
        ("1", 1, 1, 0.5, 0.60),
        ("2", 1, 2, 0.4, 0.70),
        ("3", 2, 0, 0.9, 0.93),
        ("4", 2, 1, 0.0, 0.94),
    ):
        _job(tmp_path, name, validation, value, 3, a=a, seed=seed)
    _record(tmp_path / "5", {"a": 2, "seed": 2}, "running")
    _sweep(tmp_path, "a", "seed", jobs=6)
    console = Console(record=True, width=100)
    write_summary(tmp_path, console)
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert [job["chosen"] for job in kept["jobs"]] == [True] * 3 + [False] * 3
    assert [job["seed_mean"] for job in kept["jobs"][:5]] == pytest.approx([0.5] * 3 + [0.45] * 2)
    (mean,) = kept["seeds"]
    reach = 4.302653 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    assert mean["values"] == {"0": 0.5, "1": 0.6, "2": 0.7}
    assert (mean["value"], mean["n"]) == (pytest.approx(0.6), 3)
    assert (mean["low"], mean["high"]) == (
        pytest.approx(0.6 - reach, abs=1e-6),
        pytest.approx(0.6 + reach, abs=1e-6),
    )
    text = console.export_text()
    assert "0.500, 0.600, 0.700" in text
    assert "mean over seeds" in text
    assert "0.930" not in text


def test_the_summary_is_made_later_by_a_command(tmp_path, monkeypatch, capsys):
    _job(tmp_path, "0", 0.5, 0.4, 3)
    _sweep(tmp_path)
    monkeypatch.setattr("sys.argv", ["iit.report", str(tmp_path)])
    runpy.run_module("iit.report", run_name="__main__", alter_sys=False)
    assert f"Multirun folder: {tmp_path}" in capsys.readouterr().out
    assert (tmp_path / "summary.csv").is_file()
    monkeypatch.setattr("sys.argv", ["iit.report", str(tmp_path / "0")])
    with pytest.raises(SystemExit, match="is no folder of a sweep"):
        runpy.run_module("iit.report", run_name="__main__", alter_sys=False)


LOG = """epoch,step,train/loss,val/iia,val/iia_changing,val/loss
0,0,3.5,,,
0,1,2.5,,,
0,1,,0.5,0.25,2.0
1,3,,0.75,0.6,1.5
"""


def test_curves_show_what_was_logged(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    assert read_log(path)["val/iia"] == [(1, 0.5), (3, 0.75)]
    figure = training_curve(path)
    lines = {
        line.get_label(): line.get_ydata().tolist() for axes in figure.axes for line in axes.lines
    }
    assert lines == {
        "training, each step": [3.5, 2.5],
        "validation": [2.0, 1.5],
        "changing pairs": [0.25, 0.6],
        "all pairs": [0.5, 0.75],
    }
    path.write_text(
        LOG.replace(
            "val/loss\n", "val/loss,val/vanilla/iia_changing,val/random_subspace/iia\n"
        ).replace("2.0\n", "2.0,0.9,0.1\n")
    )
    figure = training_curve(path)
    references = {
        line.get_label(): (line.get_ydata().tolist(), line.get_linestyle())
        for line in figure.axes[1].lines
    }
    assert references["changing pairs, whole vector"] == ([0.9], "--")
    assert references["all pairs, random subspace"] == ([0.1], ":")
    assert len(references) == 4
    save_figure(figure, tmp_path / "curve")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    path.write_text("epoch,step,train/loss\n0,0,3.5\n")
    assert len(training_curve(path).axes) == 1
    path.write_text("epoch,step,x\n0,0,1\n")
    with pytest.raises(ValueError, match="no 'train/loss'"):
        training_curve(path)


def test_a_verdict_names_what_cannot_fail_and_older_ones_are_read():
    finding = {
        "criterion": "accuracy",
        "outcome": "not judged",
        "value": 1.0,
        "low": 0.8,
        "high": 1.0,
        "n": 3,
        "reason": "n = 3",
    }
    verdict = {
        "variable": "v",
        "outcome": "open",
        "findings": [finding],
        "not_run": [],
        "cannot_fail": ["majority"],
    }
    text = verdict_table(verdict).markdown()
    assert (
        "Verdict on `v`: **open**. Nothing was left out. Cannot fail, and not counted: majority."
        in text
    )
    assert "| accuracy | not judged | n = 3 |" in text
    older = {key: verdict[key] for key in ("variable", "findings", "not_run")} | {"outcome": "warn"}
    assert "**warn**. Nothing was left out.\n" in verdict_table(older).markdown()
    console = Console(record=True, force_terminal=True, width=80)
    console.print(verdict_table(older, brief=True).rich())
    text = console.export_text(styles=True)
    assert "\x1b[3;33mWARN" in text
    assert "Nothing was left out." in text
