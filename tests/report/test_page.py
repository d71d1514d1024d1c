import json
from dataclasses import replace

import pytest

from iit.report.page import END, START, main
from iit.result import write_metrics
from tests.report.test_report import CONTROLS, TEST

CLEAN = {"revision": "abc", "dirty": False}


def test_a_page_shows_what_its_result_holds(tmp_path, capsys):
    folder = tmp_path / "das"
    folder.mkdir()
    write_metrics(folder, CONTROLS, git=CLEAN).rename(folder / "result.json")
    (folder / "README.md").write_text(f"# Question\n{START}\nold\n{END}\nWhat it does not show.\n")
    assert main([str(tmp_path)]) == 1
    assert "--write" in capsys.readouterr().out
    assert main(["--write", str(tmp_path)]) == 0
    text = (folder / "README.md").read_text()
    assert "| trained intervention | changing | 0.750 | 0.400 to 0.600 | 10 |" in text
    assert "old" not in text
    assert text.endswith("What it does not show.\n")
    assert main([str(tmp_path)]) == 0
    (folder / "README.md").write_text("no marks")
    with pytest.raises(ValueError, match="needs the marks"):
        main([str(tmp_path)])


def test_a_page_tells_the_shares_of_changing_and_separating_pairs(tmp_path):
    (tmp_path / "das").mkdir()
    page = tmp_path / "das" / "README.md"
    n = 10
    data = {"changing": {"test": n // 2}, "separating": {"test": {"copy": n, "first": 0}}}
    rows = [*CONTROLS, replace(TEST, subset="all", n=n)]
    metrics = write_metrics(tmp_path / "das", rows, data=data, git=CLEAN)
    metrics.rename(tmp_path / "das" / "result.json")
    page.write_text(f"{START}\n{END}\n")
    main(["--write", str(tmp_path)])
    expected = (
        f"Of the {n} test pairs, 50% are changing; 100% tell the hypothesis from the rival `copy`; "
        "0% tell the hypothesis from the rival `first`."
    )
    assert expected in page.read_text()


def test_a_script_brings_its_own_table(tmp_path):
    table = {
        "schema": "iit.table/1",
        "facts": {"git": CLEAN},
        "columns": ["head", "change"],
        "lines": [["1.2", "−0.5"], ["3.4", "0.1"]],
    }
    (tmp_path / "heads").mkdir()
    result, page = tmp_path / "heads" / "result.json", tmp_path / "heads" / "README.md"
    result.write_text(json.dumps(table))
    page.write_text(f"{START}\n{END}\n")
    assert main([str(tmp_path)]) == 1
    assert main(["--write", str(tmp_path)]) == 0
    assert (
        page.read_text()
        == f"{START}\n| head | change |\n| --- | ---: |\n| 1.2 | −0.5 |\n| 3.4 | 0.1 |\n{END}\n"
    )
    assert main([str(tmp_path)]) == 0
    result.write_text(json.dumps({**table, "lines": [["1.2"]]}))
    with pytest.raises(ValueError, match="other cells"):
        main([str(tmp_path)])
    result.write_text(json.dumps({**table, "schema": "iit.table/2"}))
    with pytest.raises(ValueError, match="does not fit the schema"):
        main([str(tmp_path)])


@pytest.mark.parametrize(
    ("git", "reason"),
    [
        (CLEAN, None),
        ({"revision": "abc", "dirty": True}, "is from a tree with uncommitted changes"),
        ({"revision": None, "dirty": False}, "names no revision"),
        (None, "names no revision"),
    ],
)
def test_a_result_that_cannot_be_traced_is_refused(tmp_path, capsys, git, reason):
    (tmp_path / "das").mkdir()
    facts = {} if git is None else {"git": git}
    write_metrics(tmp_path / "das", CONTROLS, **facts).rename(tmp_path / "das" / "result.json")
    (tmp_path / "das" / "README.md").write_text(f"{START}\n{END}\n")
    assert main(["--write", str(tmp_path)]) == 0
    when_written = capsys.readouterr().out
    assert main([str(tmp_path)]) == (0 if reason is None else 1)
    when_checked = capsys.readouterr().out
    assert when_written == when_checked
    if reason is None:
        assert when_checked == ""
    else:
        assert f"{tmp_path}/das/result.json {reason}; run" in when_checked
