"""How much there is to read: ceilings that only come down."""

import ast
import re
import tokenize
from configparser import ConfigParser
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

TOKENS = 183_200  # the aim: 125,000
CORE_TOKENS = 91_100  # the aim: 57,000
TOKENS_A_LINE = 8.9  # the aim: 9.0
DENSE = 5.0  # comprehensions and ternaries in 100 code lines; the aim: 6
WIDE_LINES = 0  # of more than 100 columns; the aim: none
ARGUMENTS = 10  # of the longest signature
CONFIGS = 105  # YAML files of conf/; the aim: 90

ROOT = Path(__file__).parent.parent
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
FSTRING = tuple(getattr(tokenize, f"FSTRING_{part}", None) for part in ("START", "END"))
SHORTHAND = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)


@dataclass
class Size:
    """What a file has; added up, what several files have."""

    tokens: int = 0
    code_lines: int = 0
    shorthands: int = 0
    wide_lines: int = 0
    longest_signature: int = 0

    def __add__(self, other):
        sums = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in sums:
            sums[name] += getattr(other, name)
        sums["longest_signature"] = max(self.longest_signature, other.longest_signature)
        return Size(**sums)


def size_of(path):
    """Comments, docstrings and layout are no tokens, and no code."""
    text = path.read_text(encoding="utf-8")
    size = Size(wide_lines=sum(len(line) > 100 for line in text.splitlines()))
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        size.shorthands += isinstance(node, SHORTHAND)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n_arguments = len(node.args.args) + len(node.args.kwonlyargs)
            size.longest_signature = max(size.longest_signature, n_arguments)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.lineno)
    lines = set()
    for token in tokens_of(path):
        is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        if token.type in (tokenize.COMMENT, *LAYOUT) or is_docstring:
            continue
        size.tokens += 1
        lines.update(range(token.start[0], token.end[0] + 1))
    size.code_lines = len(lines)
    return size


def tokens_of(path):
    """An f-string is one token, as it was before Python 3.12."""
    start, end = FSTRING
    depth = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            depth -= token.type == end
            if depth == 0 and token.type not in (end, tokenize.ENCODING):
                yield token
            depth += token.type == start


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {
    module_name(path): path
    for path in sorted((ROOT / "iit").rglob("*.py"))
    if "conf" not in path.parts
}


@pytest.fixture(scope="module")
def contract():
    """The contract that names the core, the wings and the doors between them."""
    parser = ConfigParser()
    parser.read(ROOT / ".importlinter")
    core = parser["importlinter:contract:core"]
    names = ("source_modules", "forbidden_modules", "ignore_imports")
    return [core[name].split("\n")[1:] for name in names]


@pytest.fixture(scope="module")
def house():
    return sum(map(size_of, FILES.values()), Size())


def test_tokens(house):
    assert house.tokens <= TOKENS


def test_tokens_of_the_core(contract):
    core, _, _ = contract
    assert sum(size_of(FILES[name]).tokens for name in core) <= CORE_TOKENS


def test_density(house):
    assert house.tokens / house.code_lines <= TOKENS_A_LINE
    assert 100 * house.shorthands / house.code_lines <= DENSE


def test_lines_and_signatures(house):
    assert house.wide_lines <= WIDE_LINES
    assert house.longest_signature <= ARGUMENTS


def test_configs():
    files = sorted((ROOT / "conf").rglob("*.yaml"))
    assert len(files) <= CONFIGS
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert max(map(len, lines)) <= 100, file


def test_every_module_is_in_the_core_or_in_a_wing(contract):
    core, wings, _ = contract
    for name, path in FILES.items():
        in_wing = any(name == wing or name.startswith(f"{wing}.") for wing in wings)
        if path.name != "__init__.py":
            assert (name in core) != in_wing, f"{name}: .importlinter says where it belongs"


def test_the_core_takes_nothing_from_a_wing_through_the_init_of_a_room(contract):
    core, _, doors = contract
    for importer in core:
        for room, name in names_of_rooms(importer):
            source = defining_module(room, name)
            is_listed = f"{importer} -> {source}" in doors or f"{importer} -> {room}" in doors
            assert source in core or is_listed, f"{importer} takes {name} of {source} from {room}"


def test_the_reading_order_names_files_of_the_core(contract):
    core, _, _ = contract
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    order = re.search(r"\| file \| concept \|\n(.+?)\n\n", page, re.DOTALL)
    names = re.findall(r"`([a-z_/]+)\.py`", order[1])
    assert {f"iit.{name.replace('/', '.')}" for name in names} <= set(core)
    assert len(names) == len(set(names)) > 50


def imported_names(module):
    """(module, name) of each `from iit.… import …`."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("iit"):
            for alias in node.names:
                yield node.module, alias.name


def names_of_rooms(module):
    for source, name in imported_names(module):
        if FILES[source].name == "__init__.py":
            yield source, name


def defining_module(room, name):
    for source, known in imported_names(room):
        if known == name:
            return source
    return f"{room}.{name}"


def test_counting(tmp_path):
    file = tmp_path / "file.py"
    lines = ['"""Docs."""', "", "# a comment", "def f(a, *, b):", '    """Docs."""']
    lines += ["    return [x for x in a if b]", "x = 1 if f else f'{f:>3}'  # " + "y" * 100]
    file.write_text("\n".join(lines) + "\n")
    assert size_of(file) == Size(27, 3, 2, 1, 2)
    assert size_of(file) + Size(1, 1, 1, 1, 5) == Size(28, 4, 3, 2, 5)
