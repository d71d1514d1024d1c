import json
import re
import runpy
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iit.report import save_page, write_page
from iit.report.html.folder import open_folder
from iit.result import write_metrics
from iit.result.record import write_record
from tests.result.test_result import ROW

VOID = {"meta", "link", "br", "hr", "img", "input"}
TEST = replace(ROW, split="test", value=0.75, method="LowRankRotatedSpaceIntervention")
ROWS = [
    replace(ROW, method=TEST.method),
    TEST,
    replace(TEST, control="vanilla", value=0.7123456),
    replace(TEST, control="pca_subspace", value=0.6),
    replace(TEST, control="random_subspace", value=0.01),
    replace(TEST, control="random_subspace", draw=0, value=0.02),
    replace(TEST, control="no_intervention", value=0.0),
    replace(TEST, control="vanilla", metric="iia_difference", value=0.05),
]
FINDING = {"criterion": "accuracy", "outcome": "pass", "reason": "IIA <b>0.750</b>"}
FINDING |= {"value": 0.75, "low": 0.4, "high": 0.6, "n": 10}
OPEN = FINDING | {"criterion": "illusion", "outcome": "open", "reason": "0.75 against 0.5"}
FACTS = {
    "command": ["train.py", "+experiment=das_ioi", "data.words=[a, b]"],
    "git": {"revision": "abc123", "dirty": True},
    "versions": {"torch": "2.13.0"},
    "processor": "a processor",
    "threads": 2,
    "data": {"fingerprint": "data-fingerprint"},
    "network": {"name": "n", "revision": None, "fingerprint": "weights"},
    "meanings": {"v": "which <name> is repeated", "s2": "the second subject"},
    "config_changes": [{"key": "rank", "default": 16, "value": 4}],
}
CAUSAL_MODEL = {
    "name": "t",
    "nodes": [
        {"name": "x", "kind": "input", "depth": 0, "place": None},
        {"name": "v", "kind": "computed", "depth": 1, "place": "block_output[3] @ s2"},
        {"name": "answer", "kind": "output", "depth": 2, "place": None},
    ],
    "edges": [["x", "v"], ["v", "answer"]],
}


def verdict(outcome):
    findings = [FINDING, OPEN | {"outcome": outcome}]
    rest = {"findings": findings, "not_run": ["cut"], "cannot_fail": ["majority"]}
    return {"variable": "v", "outcome": outcome, **rest}


def pair(number, *, right=True, **columns):
    top = [{"text": " Mary", "logit": 17.25}, {"text": " the", "logit": 3.0}]
    return {
        "split": "test",
        "pair": number,
        "variables": ["v"],
        "kind": "v",
        "changing": True,
        "base": f"When Mary and John met, Mary gave {number} to",
        "base_roles": {"s2": [23, 28], "last": None},
        "sources": [{"variable": "v", "text": "<script>alert(1)</script>", "roles": None}],
        "label": " John",
        "base_answer": " Mary",
        "before": " Mary",
        "after": " John" if right else " Mary",
        "right": right,
        "before_top": top,
        "after_top": [],
    } | columns


def write_run(folder, rows=ROWS, *, pairs=(), **facts):
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder, rows, **facts)
    if pairs:
        table = pa.Table.from_pylist(list(pairs))
        table = table.replace_schema_metadata({"iit.schema": "iit.outcomes/1"})
        pq.write_table(table, folder / "outcomes.parquet")
        (folder / "causal_model.json").write_text(json.dumps(CAUSAL_MODEL))
        gpus = {"cuda:0, NVIDIA H200": 4_000_000_000, "cuda:1, NVIDIA H200": 0}
        cost = {"seconds": 75.0, "peak_memory_bytes": 2_500_000_000, "gpu_peak_memory_bytes": gpus}
        record = {"status": "done", "overrides": {}, "cost": cost}
        write_record(folder / "job.yaml", record)
        (folder / "config.yaml").write_text("network: {device: auto, dtype: bf16}")
    return folder


class Page(HTMLParser):
    """What stands in a page: its tags, its tables, its texts; a tag that is not closed fails."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open, self.tags, self.words, self.tables = [], [], [], {}
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "div" and attributes.get("class") == "table":
            self.rows = self.tables[attributes["id"]] = []
        if tag == "tr" and "tables" in vars(self) and hasattr(self, "rows"):
            self.rows.append([])
        if tag in ("td", "th") and hasattr(self, "rows"):
            self.rows[-1].append(attributes.get("data-value", ""))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID or (self.open and self.open[-1] == tag):
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
            is_cell = {"td", "th"} & set(self.open[-3:])
            if is_cell and getattr(self, "rows", None) and not self.rows[-1][-1]:
                self.rows[-1][-1] = data.strip()

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())

    def having(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def check(path):
    """What holds for every page."""
    page = Page(path)
    ids = page.having("id")
    assert Counter(ids).most_common(1)[0][1] == 1, "ids are unique"
    for name in ("aria-labelledby", "aria-describedby", "for", "data-for"):
        for value in page.having(name):
            assert set(value.split()) <= set(ids), (name, value)
    for name in ("src", "href", "xlink:href"):
        # A page of a sweep links to those of its jobs.
        assert not [value for value in page.having(name) if re.match(r"(?!data:)\w+:|//", value)]
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", page.text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert sum(tag == "caption" for tag, _ in page.tags) == tables, "each table has a caption"
    for tag, attributes in page.tags:
        # The marks of a legend stand beside their words.
        if tag == "svg" and "aria-hidden" not in attributes:
            assert attributes["role"] == "img"
            assert attributes["aria-labelledby"]
    assert [tag for tag, _ in page.tags if tag in ("main", "nav", "header", "footer")] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pairs = [pair(n, right=n != 2) for n in range(4)]
    folder = tmp_path_factory.mktemp("run")
    return write_run(folder, pairs=pairs, verdict=[verdict("open")], **FACTS)


@pytest.fixture(scope="module")
def page(run):
    return check(write_page(run))


def test_the_first_screen_claims_no_more_than_the_verdict(page, tmp_path):
    claim = "A rank-4 subspace of the residual stream after block 3, at the second subject, {}"
    endings = {
        "pass": "carries which <name> is repeated.",
        "open": "seems to carry which <name> is repeated; some checks are open.",
        "fail": "is claimed to carry which <name> is repeated; the checks failed.",
    }
    assert claim.format(endings["open"]) in page.said
    assert "Downstream reads the subspace" in page.said
    assert "Not run: cut." in page.said
    for outcome in ("pass", "fail"):
        folder = write_run(tmp_path / outcome, verdict=[verdict(outcome)], **FACTS)
        assert claim.format(endings[outcome]) in check(write_page(folder)).said
    unknown = verdict("open") | {"findings": [FINDING | {"outcome": "open"}]}
    folder = write_run(tmp_path / "unknown", verdict=[unknown], **FACTS)
    assert "is not shown to carry which <name>" in check(write_page(folder)).said


def test_the_bar_has_floors_and_references_with_interval_n_and_split(page):
    assert "On 10 changing test pairs" in page.said
    assert "75.0% (95% interval 40.0% to 60.0%)" in page.said
    for name in ("whole vector", "principal components", "random subspace", "no intervention"):
        assert name in page.said


def test_every_row_stands_in_the_table_with_all_of_its_digits(page):
    header, *lines = page.tables["rows"]
    assert header[:6] == ["figure", "pairs", "value", "low", "high", "n"]
    figures = sorted(
        (float(v), float(low), float(high), int(n)) for _, _, v, low, high, n, *_ in lines
    )
    assert figures == sorted((row.value, row.low, row.high, row.n) for row in ROWS)
    assert {line[header.index("split")] for line in lines} == {"test", "validation"}


def test_failures_come_first_and_roles_are_marked(page):
    right = page.having("data-right")
    assert right == ["wrong", "right", "right", "right"]
    assert re.search(r'<mark class="site">Mary<sub>s2</sub></mark>', page.text)
    assert page.said.index("test pair 2") < page.said.index("test pair 0")
    assert "4 of 4 pairs" in page.said
    assert "17.2" in page.said
    assert set(page.having("data-filter")) == {"right", "split", "kind", "changing"}


def test_text_of_pairs_is_text(page):
    assert "<script>alert(1)</script>" in page.said
    assert page.text.count("<script>") == 1, "the page's own"


def test_how_to_repeat_it(page):
    for words in (
        "python train.py +experiment=das_ioi 'data.words=[a, b]'",
        "The checkout had changes",
        "abc123",
        "1 min 15 s",
        "2.5 GB at most, 4.0 GB on cuda:0, NVIDIA H200",
        "auto, bf16",
        "data-fingerprint",
        "weights",
        "torch 2.13.0",
    ):
        assert words in page.said.replace("\xa0", " "), words
    assert page.tables["changes"][1] == ["rank", "16", "4"]


def test_many_pairs_are_cut_and_the_page_says_so(tmp_path):
    pairs = [pair(n, right=n > 210, split="validation") for n in range(400)]
    page = check(write_page(write_run(tmp_path, pairs=pairs)))
    assert "300 of 400 pairs" in page.said
    assert "211 of all are wrong" in page.said
    assert Counter(page.having("data-right")) == {"wrong": 200, "right": 100}


def test_a_pair_that_was_not_judged_is_no_failure(tmp_path):
    pairs = [pair(0, right=None, kind=None, before=None, changing=None)]
    pairs += [pair(1, right=False, split="validation"), pair(2, right=False)]
    page = check(write_page(write_run(tmp_path, pairs=pairs)))
    assert page.having("data-right") == ["wrong", "wrong", "not judged"]
    assert page.having("data-split") == ["test", "validation", "test"], "test pairs first"


def test_an_older_run_says_what_its_page_lacks(tmp_path):
    page = check(write_page(write_run(tmp_path)))
    assert "There is no outcomes.parquet. The page shows no examples." in page.said
    assert "The run has no verdict." in page.said
    assert "not recorded" in page.said


def test_the_metric_is_that_of_the_score(tmp_path):
    written = [replace(row, metric=row.metric.replace("iia", "iia_generated")) for row in ROWS[1:]]
    written[0] = replace(written[0], value=0.8)
    page = check(write_page(write_run(tmp_path, [*ROWS, *written])))
    assert "gives the label in 80.0%" in page.said


def test_a_run_without_a_claim_shows_its_tables(tmp_path):
    row = replace(TEST, metric="task_accuracy", variable=None, subset="all")
    assert "task accuracy" in check(write_page(write_run(tmp_path / "a", [row]))).said
    table = {"title": "Steps on `x`", "header": ["step", "n"], "lines": [["one", "7"]]}
    page = check(write_page(write_run(tmp_path / "b", [row], tables=[table])))
    assert "Steps on x" in page.said


@pytest.mark.parametrize("name", ["outcomes.parquet", "causal_model.json", "config.yaml"])
def test_a_half_written_file_is_named(tmp_path, name):
    write_run(tmp_path, pairs=[pair(0)])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    page = check(write_page(tmp_path))
    assert f"{name} is damaged" in page.said


def test_a_parquet_file_of_another_tool_is_not_read(tmp_path):
    write_run(tmp_path)
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "outcomes.parquet")
    assert "outcomes.parquet is damaged" in check(write_page(tmp_path)).said


def test_the_log_of_a_training_is_drawn(tmp_path):
    folder = write_run(tmp_path)
    (folder / "csv").mkdir()
    text = "epoch,step,train/loss,val/loss\n0,0,3.25,\n0,1,,2.5\n1,2,1.5,\n"
    (folder / "csv/metrics.csv").write_text(text)
    page = check(write_page(folder))
    assert "The loss in training" in page.said
    values = [line[2] for line in page.tables["training-loss-values"][1:]]
    assert list(map(float, values)) == [3.25, 1.5, 2.5], "training, then validation"


def test_what_a_figure_finds_damaged_is_named(tmp_path):
    folder = write_run(tmp_path)
    (folder / "csv").mkdir()
    (folder / "csv/metrics.csv").write_text("")
    assert "csv/metrics.csv is damaged" in check(write_page(folder)).said


def test_many_cells_are_not_claimed_one_by_one(tmp_path):
    cells = [replace(TEST, layer=layer) for layer in range(9)]
    page = check(write_page(write_run(tmp_path, cells, tables=[])))
    assert "The run scores 9 cells" in page.said
    assert "gives the label" not in page.said


def test_kinds(tmp_path):
    def kind(name, rows=ROWS, **facts):
        return open_folder(write_run(tmp_path / name, rows, **facts)).kind

    cells = [*ROWS, replace(ROWS[0], layer=4)]
    assert kind("run") == "run"
    assert kind("two", [*ROWS, replace(ROWS[0], variable="w", layer=4)]) == "run"
    assert kind("atlas", cells) == "atlas"
    assert kind("ladder", cells, tables=[]) == "run"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no"),
        ('{"loss": 0.5}', "does not fit the schema"),
        ('{"schema": "iit.metrics/9", "facts": {}, "rows": []}', "iit.metrics/9"),
        ('{"schema": "iit.metr', "is damaged"),
        ("[1, 2]", "does not fit the schema"),
        ("\x00\x01", "is damaged"),
        (
            '{"schema": "iit.metrics/2", "facts": {"verdict": [1]}, "rows": []}',
            "facts.verdict",
        ),
        ('{"schema": "iit.metrics/2", "facts": {"maps": [1]}, "rows": []}', "facts.maps"),
    ],
)
def test_what_is_no_result_is_refused_in_words(tmp_path, content, words):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises((ValueError, OSError), match=words):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["overrides: [", "method: bayes", "- 1"])
def test_the_sweep_of_another_tool_is_refused(tmp_path, content):
    (tmp_path / "sweep.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.yaml is damaged"):
        write_page(tmp_path)


def test_the_command_writes_the_page_or_ends_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["iit.report", str(tmp_path), "--html"])
    with pytest.raises(SystemExit, match=r"There is no .*metrics\.json") as end:
        runpy.run_module("iit.report", run_name="__main__")
    assert isinstance(end.value.code, str), "status 1, and the text on stderr"
    write_run(tmp_path)
    runpy.run_module("iit.report", run_name="__main__")
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"


def test_a_page_that_fails_costs_nothing(tmp_path, caplog, capsys):
    save_page(tmp_path)
    assert "There is no page of" in caplog.text
    assert capsys.readouterr().out == ""
    save_page(write_run(tmp_path))
    assert capsys.readouterr().out == f"Page: {tmp_path}/report.html\n"


def sweep_of(folder, *jobs):
    record = {"overrides": ["seed=0,1"], "swept": ["seed"], "jobs": len(jobs), "launcher": "basic"}
    write_record(folder / "sweep.yaml", record)
    for number, status in enumerate(jobs):
        job = folder / str(number)
        job.mkdir()
        cost = {"seconds": 3.5, "peak_memory_bytes": 10**9, "gpu_peak_memory_bytes": {}}
        record = {
            "status": status,
            "cost": cost,
            "overrides": {"seed": number},
            "error": "It <broke>",
            "log": "l",
        }
        if status == "done":
            write_run(job, pairs=[pair(0)], verdict=[verdict("open")], **FACTS)
        write_record(job / "job.yaml", record)
    return folder


def test_a_sweep_has_the_examples_of_its_chosen_job(tmp_path):
    page = check(write_page(sweep_of(tmp_path, "done", "failed")))
    assert page.having("data-right") == ["right"]
    assert "seems to carry which <name> is repeated" in page.said
    assert "It <broke>" in page.said


def test_a_sweep_in_which_all_jobs_failed_says_so(tmp_path):
    page = check(write_page(sweep_of(tmp_path, "failed", "failed")))
    assert "It <broke>" in page.said
