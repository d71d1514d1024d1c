"""Pairs from files keep what the file says."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iit.data import Pairs
from iit.tasks import equality


def row(number=0, **columns):
    base, source = f"base {number}", f"source {number}"
    roles = {"base_roles": {"noun": [0, 4]}, "source_roles": {"noun": [0, 6]}}
    return {"base": base, "source": source, "label": " a", "base_answer": " b", **roles} | columns


def without(columns, *names):
    return {name: value for name, value in columns.items() if name not in names}


SPLITS = ("train", "train", "validation", "validation", "test", "test")
ROWS = [row(number, split=split) for number, split in enumerate(SPLITS)]


def load_text(folder, text, name="pairs.jsonl", encoding="utf-8", **options):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return Pairs.load(path, **options)


def lines(rows):
    return "\n".join(json.dumps(columns, ensure_ascii=False) for columns in rows)


def columns_of(pairs):
    return {name: pairs.dataset[name] for name in ("base", "label", "split")}


EXPECTED = {"base": [f"base {n}" for n in range(6)], "label": [" a"] * 6, "split": list(SPLITS)}
LEGAL = {
    "a byte-order mark": (lines(ROWS), "pairs.jsonl", "utf-8-sig"),
    "Windows line ends": (lines(ROWS).replace("\n", "\r\n"), "pairs.jsonl", "utf-8"),
    "blank lines": ("\n" + lines(ROWS).replace("\n", "\n\n") + "\n", "pairs.jsonl", "utf-8"),
    "an array": (json.dumps(ROWS), "pairs.json", "utf-8"),
    "an indented array": (json.dumps(ROWS, indent=2), "pairs.jsonl", "utf-8-sig"),
    "lines named json": (lines(ROWS), "pairs.json", "utf-8"),
}


@pytest.mark.parametrize(("text", "name", "encoding"), LEGAL.values(), ids=LEGAL)
def test_ways_to_write_the_same_rows(tmp_path, text, name, encoding):
    assert columns_of(load_text(tmp_path, text, name, encoding)) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_named_with_its_file(tmp_path, encoding):
    text = lines([row(0, base="Zürich 0", split="train"), *ROWS[1:]])
    with pytest.raises(ValueError, match=r"pairs\.jsonl is not UTF-8"):
        load_text(tmp_path, text, encoding=encoding)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_marks_that_are_no_line_ends_may_stand_in_a_text(tmp_path, mark):
    rows = [
        row(number, base=f"base{mark}{number}", split=split) for number, split in enumerate(SPLITS)
    ]
    text = "\n".join(json.dumps(columns, ensure_ascii=mark < " ") for columns in rows)
    assert load_text(tmp_path, text).dataset["base"] == [
        f"base{mark}{number}" for number in range(6)
    ]


def test_a_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pairs = load_text(tmp_path, lines(ROWS))
    pairs.save("~/saved.parquet")
    assert columns_of(Pairs.load("~/saved.parquet")) == EXPECTED


OWN = {
    "numbers": [1.5, None, 2.0, 3.0, 4.0, 5.0],
    "words": ["a", "b", None, "d", "e", "f"],
    "several types": [1, "a", None, [2], {"b": 3}, 2.5],
    "spans": [[0, 1], [1], [], None, [2], [3]],
    "huge": [2**70, 1, 2, 3, 4, 5],
    "empty objects": [{}, {}, None, {}, {}, {}],
    "empty objects inside": [{"a": {}}, {"a": {}, "b": [{}]}, None, {"b": []}, {}, {"a": None}],
}


@pytest.mark.parametrize("name", OWN)
def test_columns_of_ones_own_are_kept_and_change_nothing(tmp_path, name):
    rows = [columns | {name: value} for columns, value in zip(ROWS, OWN[name], strict=True)]
    pairs = load_text(tmp_path, lines(rows))
    assert columns_of(pairs) == EXPECTED
    kept = pairs.dataset[name]
    if kept != OWN[name]:
        assert [json.loads(value) for value in kept] == OWN[name]
    pairs.save(tmp_path / "again.parquet")
    assert Pairs.load(tmp_path / "again.parquet").fingerprint == pairs.fingerprint


def test_an_index_of_pandas_is_a_column_of_ones_own(tmp_path):
    table = pa.table({name: [columns[name] for columns in ROWS] for name in ROWS[0]})
    table = table.append_column("__index_level_0__", pa.array(range(6)))
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert columns_of(Pairs.load(tmp_path / "pairs.parquet")) == EXPECTED


def test_a_label_stays_whole_beside_a_list_of_labels(tmp_path):
    rows = [
        columns | {"label": [" a", " c"] if number == 0 else " a"}
        for number, columns in enumerate(ROWS)
    ]
    assert load_text(tmp_path, lines(rows)).dataset["label"] == [[" a", " c"], *[[" a"]] * 5]


WRONG = {
    "a split in some rows": (
        [*ROWS[:4], without(ROWS[4], "split"), ROWS[5]],
        r"row 4: \['split'\] missing",
    ),
    "a split from the third row": (
        [*(without(r, "split") for r in ROWS[:2]), *ROWS[2:]],
        r"row 0: \['split'\] missing",
    ),
    "a split that is null": ([ROWS[0], ROWS[1] | {"split": None}], r"row 1: \['split'\] missing"),
    "a base answer in some rows": (
        [ROWS[0], without(ROWS[1], "base_answer")],
        r"row 1: \['base_answer'\] missing",
    ),
    "another split": (
        [ROWS[0], ROWS[1] | {"split": "dev"}],
        "row 1: split='dev' cannot be.*train . validation . test",
    ),
    "a label that is a number": ([ROWS[0], ROWS[1] | {"label": 5}], "row 1: label=5 cannot be"),
    "a label that is NaN": ([ROWS[0] | {"label": float("nan")}], "row 0: label=nan cannot be"),
    "a case that is a fraction": (
        [ROWS[0] | {"case": 1.5}],
        "row 0: case=1.5 cannot be",
    ),
    "a case that is a list": (
        [ROWS[0] | {"case": ["a"]}],
        r"row 0: case=\['a'\] cannot be",
    ),
    "cases of two types": (
        [ROWS[0] | {"case": 1}, ROWS[1] | {"case": "a"}],
        "row 1: case='a' cannot be",
    ),
    "a kind that is a number": ([ROWS[0] | {"kind": 1.5}], "row 0: kind=1.5 cannot be"),
    "a label that is null": ([ROWS[0], ROWS[1] | {"label": None}], r"row 1: \['label'\] missing"),
    "an empty label": ([ROWS[0] | {"label": ""}], "row 0: label='' cannot be"),
    "no label of several": ([ROWS[0] | {"label": []}], r"row 0: label=\[\] cannot be"),
    "labels that are numbers": ([ROWS[0] | {"label": [1, 2]}], r"row 0: label=\[1, 2\] cannot be"),
    "a base answer that is NaN": (
        [ROWS[0] | {"base_answer": float("nan")}],
        "row 0: base_answer=nan cannot be",
    ),
    "a role that is a word": (
        [ROWS[0], row(1, split="train", base_roles={"noun": "base"})],
        "row 1: base_roles=.*'base'",
    ),
    "a role that is a place": (
        [ROWS[0] | {"source_roles": {"noun": 2}}],
        "row 0: source_roles=.*cannot be",
    ),
    "a role of words": (
        [ROWS[0] | {"base_roles": {"noun": ["0", "4"]}}],
        "row 0: base_roles=.*cannot be",
    ),
    "a role of fractions": (
        [ROWS[0] | {"base_roles": {"noun": [0, 4.0]}}],
        "row 0: base_roles=.*cannot be",
    ),
    "roles that are a list": (
        [ROWS[0] | {"base_roles": ["noun"]}],
        "row 0: base_roles=.*cannot be",
    ),
    "a base that is numbers": ([ROWS[0], ROWS[1] | {"base": [1.0]}], "row 1: base=.*cannot be"),
    "a source that is a number": ([ROWS[0] | {"source": 5}], "row 0: source=5 cannot be"),
    "a role beyond the text": (
        [ROWS[0], ROWS[1] | {"base_roles": {"noun": [0, 7]}}],
        r"row 1: base_roles=.*\[0, 7\].* cannot be.*stop beyond start",
    ),
    "a source's role beyond its text": (
        [ROWS[0] | {"source_roles": {"noun": [3, 9]}}],
        "row 0: source_roles=.*cannot be",
    ),
    "a role that ends where it begins": (
        [ROWS[0] | {"base_roles": {"noun": [2, 2]}}],
        "row 0: base_roles=.*cannot be",
    ),
    "a role that ends before it begins": (
        [ROWS[0] | {"base_roles": {"noun": [4, 0]}}],
        "row 0: base_roles=.*cannot be",
    ),
    "a role before the text": (
        [ROWS[0] | {"base_roles": {"noun": [-4, 2]}}],
        "row 0: base_roles=.*cannot be",
    ),
    "a row that is no object": ([ROWS[0], "base"], "row 1 is 'base'"),
}


@pytest.mark.parametrize(("rows", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_named_by_file_row_and_column(tmp_path, rows, message):
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, {message}"):
        load_text(tmp_path, lines(rows))


TENSORS = {"base": [0.0, 1.0], "source": [1.0, 1.0], "label": 1, "split": "train"}


BAD_TENSORS = {
    "another length": [0.0, 1.0, 2.0],
    "another depth": [[0.0, 1.0]],
    "ragged": [0.0, [1.0]],
    "NaN": [0.0, float("nan")],
    "infinity": [float("-inf"), 0.0],
    "a text inside": [0.0, "a"],
    "null inside": [0.0, None],
    "named inputs": {"x": [0.0, 1.0], "y": [1.0, 1.0]},
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
@pytest.mark.parametrize(
    ("number", "column"), [(0, "base"), (0, "source"), (1, "base"), (1, "source")]
)
def test_tensors_that_cannot_be(tmp_path, number, column, kind):
    rows = [TENSORS, TENSORS]
    rows[number] = TENSORS | {column: BAD_TENSORS[kind]}
    if (number, column) == (0, "base") and kind.startswith("another"):
        column = "source"  # the first base says what shape the tensors have
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, row {number}: {column}=.* cannot be"):
        load_text(tmp_path, lines(rows))


def test_tensors_of_one_shape_are_read_as_they_are(tmp_path):
    rows = [
        TENSORS | {"base": [[number, 0.5]], "source": [[1, 2]], "base_answer": 0}
        for number in range(3)
    ]
    assert load_text(tmp_path, lines(rows)).dataset["base"] == [
        [[0.0, 0.5]],
        [[1.0, 0.5]],
        [[2.0, 0.5]],
    ]


def test_a_task_that_writes_named_inputs_is_refused():
    task = equality(n_objects=40)
    task = replace(task, write=lambda inputs: {"x": inputs["a"]})
    with pytest.raises(
        TypeError, match=r"'equality' writes a dict: write a Prompt, or several inputs as one array"
    ):
        Pairs.sample(task, n_train=8, n_val=4, n_test=4)


@pytest.mark.parametrize("label", ["1", 1.0, True, [1]])
def test_a_class_is_a_whole_number(tmp_path, label):
    with pytest.raises(ValueError, match=r"row 1: label=.*cannot be"):
        load_text(tmp_path, lines([TENSORS, TENSORS | {"label": label}]))


def test_pairs_for_several_variables_name_those_that_are_swapped(tmp_path):
    both = without(ROWS[0], "source", "source_roles") | {
        "interchanged": ["v"],
        "source[v]": "source 0",
        "source_roles[v]": {},
    }
    assert load_text(tmp_path, lines([both]), variable=["v", "w"]).dataset["interchanged"] == [
        ["v"]
    ]
    with pytest.raises(ValueError, match=r"row 0: \['source\[w\]', 'source_roles\[w\]'\] missing"):
        load_text(tmp_path, lines([both | {"interchanged": ["v", "w"]}]), variable=["v", "w"])
    more = both | {"interchanged": ["v", "u"], "source[u]": "source 0", "source_roles[u]": {}}
    with pytest.raises(ValueError, match=r"row 0: interchanged=.*cannot be"):
        load_text(tmp_path, lines([more]), variable=["v", "w"])


@pytest.mark.parametrize(
    ("column", "value"),
    [("split", ["test"]), ("split", []), ("base_roles", [0, 4])],
)
def test_a_value_of_another_kind_is_named(tmp_path, column, value):
    rows = [*ROWS[:5], ROWS[5] | {column: value}]
    with pytest.raises(ValueError, match=rf"row 5: {column}=.* cannot be"):
        load_text(tmp_path, lines(rows))


@pytest.mark.parametrize(
    ("column", "value"), [("case", 1.5), ("kind", ["a"]), ("has_natural", "no")]
)
def test_columns_of_sampled_pairs_hold_what_sampling_writes(tmp_path, column, value):
    with pytest.raises(ValueError, match=rf"row 0: {column}=.* cannot be"):
        load_text(tmp_path, lines([columns | {column: value} for columns in ROWS]))


def test_older_files_call_the_case_template(tmp_path):
    rows = [columns | {"template": 3} for columns in ROWS]
    read = load_text(tmp_path, lines(rows)).dataset
    assert "template" not in read.column_names
    assert set(read["case"]) == {3}


def test_an_answer_of_one_source_is_the_answer_of_every_source(tmp_path):
    with pytest.raises(ValueError, match=r"row 0: \['source_answer'\] missing"):
        load_text(tmp_path, lines([*ROWS[:5], ROWS[5] | {"source_answer": " c"}]))


def test_only_a_network_can_tell_which_pairs_without_a_base_answer_change(tmp_path):
    """Also where the file says of the same prompt, as a source, that the label is its answer."""
    rows = [
        without(columns, "base_answer") | {"source": columns["base"], "source_answer": " a"}
        for columns in ROWS
    ]
    rows = [columns | {"source_roles": {"noun": [0, 4]}} for columns in rows]
    with pytest.raises(ValueError, match="base_answer need a network"):
        load_text(tmp_path, lines(rows))


def test_a_name_in_place_of_the_variables_that_are_swapped_is_refused(tmp_path):
    both = without(ROWS[0], "source", "source_roles")
    both |= {f"{name}[{v}]": ROWS[0][name] for name in ("source", "source_roles") for v in "vw"}
    with pytest.raises(ValueError, match="row 0: interchanged=5 cannot be"):
        load_text(tmp_path, lines([both | {"interchanged": 5}]), variable=["v", "w"])
