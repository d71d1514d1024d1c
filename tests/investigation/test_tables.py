"""A result keeps its tables, and they say what its rows say."""

import json
from pathlib import Path

import pytest

from iit.investigation.tables import main, tables_of
from iit.report.results import tables
from iit.result import read_metrics

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("name", ["ground_truth", "ladder_ioi"])
def test_a_pages_tables_are_those_of_its_rows(name):
    metrics = read_metrics(EXPERIMENTS / name / "result.json")
    fresh = [table.markdown() for table in tables_of(metrics)]
    assert [table.markdown() for table in tables(metrics, brief=False)] == fresh


def test_a_result_without_tables_is_given_them(tmp_path):
    kept = EXPERIMENTS / "ladder_ioi" / "result.json"
    content = json.loads(kept.read_text())
    del content["facts"]["tables"]
    older = tmp_path / "result.json"
    older.write_text(json.dumps(content))
    assert len(read_metrics(older).rows) == len(content["rows"])
    main([str(older)])
    assert older.read_text() == kept.read_text()
