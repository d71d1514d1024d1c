import json
import re
from pathlib import Path

from iit import tasks

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def test_the_python_examples_run(capsys):
    for code in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, {})
    assert capsys.readouterr().out.split() == ["Mary", "11"]


def test_the_table_of_alignments_holds_the_pages_figures():
    rows = re.findall(
        r"^\| \[(\w+)\]\(experiments/(\w+)/README.md\) \|(.*?)\| (.*?) \| (.*?) \| (.*?) \|$",
        README.read_text("utf-8"),
        re.MULTILINE,
    )
    assert {name for name, *_ in rows} == {
        path.stem for path in (ROOT / "conf" / "experiment").glob("das_*.yaml")
    }
    for name, folder, what, trained, whole, verdict in rows:
        assert folder == name
        result = json.loads(
            (ROOT / "experiments" / name / "result.json").read_text(encoding="utf-8")
        )
        facts = result["facts"]
        variable = next(iter(re.findall(r"`(\w+)`", what)), result["rows"][0]["variable"])
        figures = {
            row["control"]: row
            for row in result["rows"]
            if (row["split"], row["subset"], row["metric"]) == ("test", "changing", "iia")
            and row["variable"] == variable
        }
        alignment = figures[None]
        low, high = alignment["low"], alignment["high"]
        assert trained == f"{alignment['value']:.3f} ({low:.3f} to {high:.3f})"
        assert whole == f"{figures['vanilla']['value']:.3f}"
        (outcome,) = (v["outcome"] for v in facts["verdict"] if v["variable"] == variable)
        level = "full" if "trust=full" in facts["command"] else "quick"
        assert verdict == f"{outcome}, {level}"


def test_the_examples_of_the_documentation_run():
    for page in sorted((ROOT / "docs").glob("*.md")):
        names = {}
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            exec(code, names)


def test_the_table_of_tasks_names_their_variables():
    lines = re.findall(
        r"^\| `(\w+)` \| (.*?) \|",
        (ROOT / "docs" / "hypotheses.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert {path.stem for path in (ROOT / "conf" / "causal").glob("*.yaml")} == {
        name for name, _ in lines
    }
    for name, variables in lines:
        told = re.findall(r"`(\w+)`", variables)
        assert told == list(getattr(tasks, name)().variables)[: len(told)]
