"""The table of docs/limits.md tells what the code refuses, in the words of its errors."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def said_by_the_code():
    """Every text of the package, with {} where something is filled in."""
    texts = []
    for path in sorted((ROOT / "iit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_every_limit_is_an_error_of_the_code():
    lines = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8").splitlines()
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    header, _, *rows = rows
    assert header == ["what is refused", "why", "what to do instead", "the error says"]
    assert len(rows) >= 20
    texts = said_by_the_code()
    for row in rows:
        assert len(row) == 4, row
        (excerpt,) = re.findall(r"`(.+)`$", row[3])
        assert any(excerpt in text for text in texts), f"no error says {excerpt!r}"
