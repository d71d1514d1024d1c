"""The table of docs/limits.md tells what the code refuses, in the words of its errors."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


LOGS = {"debug", "info", "warning", "error"}
REASONS = {"refusal", "refuses"}
"""Methods that say why the whole network runs, which the log repeats."""


def text_of(node):
    """The text of a string, with {} where something is filled in; None for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def said_by(tree, *, logs=False):
    """The strings in the `raise` statements of a file (or in its calls of the log), and in what
    these name: variables and functions.
    """
    nodes = list(ast.walk(tree))
    if logs:
        saying = [
            n
            for n in nodes
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in LOGS
        ]
    else:
        saying = [node for node in nodes if isinstance(node, ast.Raise)]
    names = {
        node.id
        for statement in saying
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    }
    names |= REASONS if logs else set()
    for node in nodes:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id in names for target in node.targets
        ):
            saying.append(node.value)
        elif isinstance(node, ast.FunctionDef) and node.name in names:
            saying += [inner for inner in ast.walk(node) if isinstance(inner, ast.Return)]
    return [
        text_of(node)
        for statement in saying
        for node in ast.walk(statement)
        if text_of(node) is not None
    ]


def said_by_the_code(**options):
    trees = [
        ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "iit").rglob("*.py"))
    ]
    return [text for tree in trees for text in said_by(tree, **options)]


def test_only_what_is_raised_counts():
    tree = ast.parse(
        '''
def _advice():
    """A docstring."""
    return "from a function"

def check(value):
    """It cannot be."""
    unused = "never said"
    what = "from a variable"
    log.warning("logged")
    if value == "compared":
        raise ValueError(f"{value} and {what}" "and more" + _advice())
'''
    )
    raised = said_by(tree)
    assert {"{} and {}and more", "from a function", "from a variable"} <= set(raised)
    assert not {"A docstring.", "It cannot be.", "never said", "compared", "logged"} & set(raised)
    assert said_by(tree, logs=True) == ["logged"]


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
    last_row = max(number for number, line in enumerate(lines) if line.startswith("| "))
    logged = re.findall(r"`(.+?)`", " ".join(lines[last_row + 1 :]))
    assert logged
    for excerpt in logged:
        assert any(excerpt in text for text in said_by_the_code(logs=True)), (
            f"no log says {excerpt!r}"
        )
