"""`outcomes.parquet` in a run's folder, against the rows of the same run, and files beside it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import iit
from iit.data import Pairs
from iit.evaluation import Scoring, scored_rows
from iit.job.outcome_file import save_outcomes
from iit.result import read_metrics, where
from iit.run import run
from tests.conftest import SMALL, composing
from tests.job.test_scores import TINY, WRITES

TEXTS = ("Mary and John met, and James went", "John and Mary met, and James went")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def tiny(toy, tmp_path, monkeypatch):
    return composing(toy[0], tmp_path, monkeypatch)


def lines_of(folder):
    table = pq.read_table(folder / "outcomes.parquet")
    assert table.schema.metadata[b"iit.schema"] == b"iit.outcomes/1"
    assert not list(folder.glob(".outcomes*"))
    return table.to_pylist()


def checked_lines(folder, metric="iia"):
    """The lines, whose share of right pairs is exactly that of the rows on both splits."""
    lines, compared = lines_of(folder), set()
    for row in where(read_metrics(folder).rows, metric=metric, control=None):
        if row.split == "train" or row.subset not in ("all", "changing", "unchanging"):
            continue
        right = []
        for line in lines:
            subset = "changing" if line["changing"] else "unchanging"
            same = line["split"] == row.split and "+".join(line["variables"]) == row.variable
            if same and row.subset in ("all", subset) and line["right"] is not None:
                right.append(line["right"])
        assert (len(right), np.mean(right)) == (row.n, row.value)
        compared.add((row.split, row.subset))
    assert {("validation", "changing"), ("test", "changing")} <= compared
    return lines


@pytest.mark.parametrize(
    ("metric", "overrides"),
    [
        ("iia", ["data.right_only=false"]),
        ("iia_forced", ["score=forced"]),
        ("iia_generated", [*WRITES, "score.compare='^ *{label}'"]),
    ],
)
def test_the_share_of_right_pairs_is_the_row(tiny, tmp_path, metric, overrides):
    run(tiny(*TINY, *overrides))
    lines = checked_lines(tmp_path / "run", metric)
    assert [line["pair"] for line in lines] == [*range(16), *range(16)]
    for line in lines:
        assert line["changing"] == (line["label"] != line["base_answer"])
        (source,) = line["sources"]
        assert source["variable"] == "subject_position"
        for text, roles in ((line["base"], line["base_roles"]), (source["text"], source["roles"])):
            name = text[slice(*roles["s2"])]
            assert name.isalpha()
            assert text.count(name) == 2
        for name in ("before", "after"):
            logits = [token["logit"] for token in line[f"{name}_top"]]
            assert len(logits) == 3
            assert logits == sorted(logits, reverse=True)
        if metric == "iia":
            assert line["right"] == (line["after"] == line["label"])
            assert line["after"] == line["after_top"][0]["text"]
    assert any(line["before"] != line["after"] for line in lines)


def test_answers_of_several_tokens_and_several_right_answers(toy, tmp_path):
    network, _ = toy
    one, other = ({"s2": [text.index("James"), text.index("James") + 5]} for text in TEXTS)
    columns = {"base": TEXTS[0], "source": TEXTS[1], "base_roles": one, "source_roles": other}
    texts = {}
    for name, label in (("several", [" Mary", " John"]), ("long", " Mary John")):
        rows = [columns | {"split": "test", "label": label, "base_answer": " James"}] * 2
        pairs = Pairs.of(rows, "v")
        site = iit.Site("block_output", layer=0, position="s2")
        alignment = iit.Alignment(network, {"v": iit.Edit(site, iit.VanillaIntervention())})
        scoring = Scoring(alignment, pairs, "test")
        scored_rows(scoring, with_controls=False)
        save_outcomes(tmp_path, scoring, scoring)
        texts[name] = lines_of(tmp_path)[0]
        assert len(texts[name]["after_top"]) == 3
    assert texts["several"]["label"] == "[' Mary', ' John']"
    assert texts["long"]["label"] == " Mary John"
    for line in texts.values():
        assert line["after"] == line["after_top"][0]["text"]
        assert not line["right"]
    # No causal model stands behind pairs of one's own.
    assert not (tmp_path / "causal_model.json").exists()


def test_two_variables_and_tensors(tiny, tmp_path):
    run(tiny("+experiment=das_equality_by_hand", *SMALL, "data.n_train=16", "data.n_val=16"))
    folder = tmp_path / "run"
    lines = checked_lines(folder)
    for line in lines:
        assert line["base"].startswith("[")
        assert len(line["base"]) <= 120
        assert line["base_roles"] is None
        assert {line["label"], line["before"], line["after"]} <= {"0", "1"}
        assert len(line["before_top"]) == 2
    model = json.loads((folder / "causal_model.json").read_text())
    assert model["name"] == "equality"
    places = {node["name"]: node["place"] for node in model["nodes"] if node["place"]}
    assert places
    assert set(map(tuple, model["edges"])) >= {("a", "left_equal"), ("left_equal", "answer")}
    kinds = {node["name"]: (node["kind"], node["depth"]) for node in model["nodes"]}
    assert kinds["a"] == ("input", 0)
    assert kinds["answer"] == ("output", 2)
    facts = read_metrics(folder).facts
    assert facts["meanings"]["left_equal"] == "whether the left two objects are equal"
    changes = {change["key"]: change for change in facts["config_changes"]}
    assert changes["data.n_train"] == {"key": "data.n_train", "default": 640, "value": 16}
    assert changes["causal._target_"]["value"] == "iit.tasks.equality"
    assert not {"seed", "intervention.rank", "data.variable"} & set(changes)


def test_a_trained_network_has_outcomes_where_it_interchanges(tiny, tmp_path):
    sizes = ("data.n_train=64", "data.n_val=32", "data.n_test=32")
    run(tiny("+experiment=iit_equality", *SMALL, *sizes))
    lines = checked_lines(tmp_path / "run")
    assert {tuple(line["variables"]) for line in lines} == {("left_equal",), ("right_equal",)}
    for line in lines:
        assert [source["variable"] for source in line["sources"]] == line["variables"]
        assert line["sources"][0]["text"] != line["base"]
