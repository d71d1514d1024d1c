import re
from pathlib import Path

from iit import causal

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def test_the_python_example_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL).group(1)
    exec(code, {})
    assert capsys.readouterr().out.strip() == "Mary"


def test_the_examples_of_the_documentation_run():
    for page in sorted((ROOT / "docs").glob("*.md")):
        names = {}
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            exec(code, names)


def test_the_table_of_tasks_names_their_variables():
    lines = re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs" / "hypotheses.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {path.stem for path in (ROOT / "conf" / "causal").glob("*.yaml")} == {name for name, _ in lines}
    for name, variables in lines:
        told = re.findall(r"`(\w+)`", variables)
        assert told == list(getattr(causal, name)().variables)[: len(told)]
