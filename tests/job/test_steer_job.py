"""Steering from the command line: strengths are chosen on validation prompts, measured on others,
and every text is kept.
"""

import json

import pytest

import iit
from iit.data import Pairs
from iit.report import print_results
from iit.report.page import END, START, page_with_table
from iit.result import read_metrics
from iit.run import run
from tests.conftest import SMALL, composing

FEW = [
    *SMALL,
    "trainer.max_epochs=1",
    (
        "job.towards=[The ship sailed the sea, Waves hit the beach, The boat was old, "
        "Seals swam there]"
    ),
    "job.away=[The man opened the door, Cars pass the house, The desk was old, Cats slept there]",
    (
        "job.prompts={validation: [The best part of the holiday was, We talked about], test: [From "
        "the window you could see, The song is about]}"
    ),
    "job.strengths={difference_of_means: [1, 2], das: [1], loreft: [1], random: [1]}",
    "job.n_random=2",
    "score.max_new_tokens=6",
]


@pytest.mark.filterwarnings("ignore")
def test_strengths_are_chosen_on_validation(configured_on_either, tmp_path, capsys, studied):
    run(configured_on_either("+experiment=steering", *FEW, "job.max_ratio=1000"))
    folder, metrics = tmp_path / "run", read_metrics(tmp_path / "run")
    chosen = json.loads((folder / "choice.json").read_text())["strengths"]
    assert set(chosen) == {"difference_of_means", "das", "loreft", "random"}
    assert {(r.method, r.draw) for r in metrics.rows if r.split == "test"} == {
        (None, None),
        *chosen.items(),
    }
    assert sum(r.split == "validation" and r.metric == "about" for r in metrics.rows) == 1 + 5
    told = json.loads((folder / "generations.json").read_text())
    assert {line["prompt"] for line in told["test"]} == {
        "From the window you could see",
        "The song is about",
    }
    assert len(told["validation"]) == 2 * 6
    assert {path.suffix for path in folder.glob("steering.*")} == {".png", ".svg", ".csv"}
    for name, position in (("das", "last"), ("loreft", None)):
        back = iit.Alignment.from_pretrained(folder / name, studied)
        assert back.edits[name].sites[0] == iit.Site("block_output", layer=10, position=position)
    print_results(folder)
    shown = capsys.readouterr().out
    assert "steering: test prompts" in shown
    assert "- no intervention (0): …" in shown
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "README.md").write_text(f"# Page\n{START}\n{END}\n")
    (folder / "metrics.json").rename(tmp_path / "page" / "result.json")
    page = page_with_table(tmp_path / "page")
    assert f"| difference of means | {chosen['difference_of_means']:g} |" in page
    assert page.count("- das (1): …") == 2


@pytest.mark.filterwarnings("ignore")
def test_where_no_strength_is_fluent_validation_is_kept(configured_on_either, tmp_path):
    run(
        configured_on_either(
            "+experiment=steering", *FEW, "job.max_ratio=0.001", "job.strengths={random: [4]}"
        )
    )
    assert {r.split for r in read_metrics(tmp_path / "run").rows} == {"validation"}
    print_results(tmp_path / "run")


def test_what_is_refused(configured):
    with pytest.raises(ValueError, match="both for validation and for test: 'A'"):
        run(
            configured(
                "+experiment=steering", *SMALL, "job.prompts={validation: [A, B], test: [A]}"
            )
        )
    with pytest.raises(ValueError, match="a decoder that writes text"):
        run(configured("+experiment=steering", *SMALL, "network=equality_by_hand"))


def test_pairs_that_are_written_down():
    rows = [
        {"split": "train", "base": "a b", "source": "c d", "label": " e"},
        {"split": "test", "base": "f", "source": "g", "label": " h"},
    ]
    pairs = Pairs.of(rows, "topic")
    assert pairs.variables == ("topic",)
    assert pairs.split("test").to_list() == [{**rows[1], "changing": True}]
    assert (
        Pairs.of([{k: v for k, v in row.items() if k != "source"} for row in rows]).variables == ()
    )


@pytest.mark.filterwarnings("ignore")
def test_in_a_chat_the_network_replies(narrow, tmp_path, monkeypatch):
    configured = composing(narrow, tmp_path, monkeypatch)
    run(configured("+experiment=steering_chat", *FEW, "job.max_ratio=1000", "site.layer=1"))
    texts = json.loads((tmp_path / "run" / "generations.json").read_text())["test"]
    (unedited,) = [
        line["text"]
        for line in texts
        if line["strength"] == 0 and line["prompt"] == "The song is about"
    ]
    chat = narrow.encode([[{"role": "user", "content": "The song is about"}]])
    model = iit.IntervenedModel(narrow, {})
    _, (reply,) = iit.Score("generated", "contains", 6).written(model, chat)
    assert unedited == reply
    _, (text,) = iit.Score("generated", "contains", 6).written(
        model, narrow.encode(["The song is about"])
    )
    assert text != reply
