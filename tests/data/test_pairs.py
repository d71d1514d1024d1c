import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from iit.data import COLUMNS, EncodedPairs, Pairs, draw_prompts
from iit.tasks import ioi
from tests.seeds import shifted


class Words:
    """A network of words: one token a word, right about every prompt unless told otherwise."""

    def __init__(self, wrong=lambda text, answer: False):
        self.wrong, self.tokenizer, self.asked = wrong, self, []

    def answer_tokens(self, texts, answers):
        return [[hash(word) for word in answer.split()] for answer in answers]

    def answers_right(self, texts, answers):
        self.asked += list(texts)
        return np.array([not self.wrong(t, a) for t, a in zip(texts, answers, strict=True)])


@pytest.fixture(scope="module")
def pairs():
    return Pairs.sample(ioi(), Words(), n_train=40, n_val=20, n_test=30, seed=3)


def test_columns_sizes_and_balance(pairs):
    absent = ("interchanged", "asked", "base_image", "source_image")
    assert pairs.dataset.column_names == [
        name for name in COLUMNS if name not in absent and "natural" not in name
    ]
    for split, n in (("train", 40), ("validation", 20), ("test", 30)):
        part = pairs.split(split)
        assert len(part) == n
        assert sum(part["changing"]) == n // 2
        assert len(set(part["base"])) == n
    assert pairs.facts["right"] == pairs.facts["drawn"]


def test_changing_means_that_the_label_differs_from_the_base_answer(pairs):
    for row in pairs.dataset:
        assert row["changing"] == (row["label"] != row["base_answer"])
        names = {row["base"][slice(*row["base_roles"][role])] for role in ("s1", "io")}
        # for the position of the subject the label is one of the base's own names
        assert row["label"].strip() in names


def test_splits_share_no_name_and_no_template(pairs):
    def words(split):
        found = set()
        for row in pairs.split(split):
            for side in ("base", "source"):
                found |= {row[side][slice(*row[f"{side}_roles"][role])] for role in ("s1", "io")}
        return found

    def skeletons(split):
        found = set()
        for row in pairs.split(split):
            text = row["base"]
            for span in sorted((s for s in row["base_roles"].values() if s), reverse=True):
                text = text[: span[0]] + "_" + text[span[1] :]
            found.add(text)
        return found

    for of in (words, skeletons):
        train, validation, test = (of(split) for split in ("train", "validation", "test"))
        assert not train & validation
        assert not train & test
        assert not validation & test


def test_io_name_takes_the_label_of_the_source():
    found = Pairs.sample(ioi(), Words(), 30, variable="io_name", changing_share=1.0, seed=1)
    assert all(row["label"] == row["source_answer"] for row in found.dataset)


def test_a_seed_fixes_everything():
    same = [Pairs.sample(ioi(), Words(), 45, seed=5).fingerprint for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != Pairs.sample(ioi(), Words(), 45, seed=6).fingerprint


def test_prompts_answered_wrongly_are_left_out_and_counted():
    network = Words(wrong=lambda text, answer: len(text) % 3 == 0)
    found = Pairs.sample(ioi(), network, 45, seed=0)
    texts = set(found.dataset["base"]) | set(found.dataset["source"])
    assert all(len(text) % 3 for text in texts)
    assert found.facts["right"]["train"] < found.facts["drawn"]["train"]


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match=r"No prompts left.*train.*answers 0"):
        Pairs.sample(ioi(), Words(wrong=lambda text, answer: True), 10)


def test_an_unknown_variable_names_the_choices():
    with pytest.raises(ValueError, match=r"'object'.*subject_position.*io_name"):
        Pairs.sample(ioi(), Words(), 10, variable="object")


def test_draw_prompts_gives_distinct_prompts():
    task = ioi()
    kept = draw_prompts(
        task,
        task.pools,
        25,
        Words().answers_right,
        rng=np.random.default_rng(shifted(0)),
        split="train",
    )
    assert len(set(kept.prompts.keys)) == 25


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_own_pairs_come_back(pairs, tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".parquet":
        pairs.save(path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in pairs.dataset), encoding="utf-8")
    back = Pairs.load(path, variable=pairs.variable)
    assert back.task is None
    assert back.fingerprint == pairs.fingerprint


def test_own_pairs_without_answers_ask_the_network(pairs, tmp_path):
    path = tmp_path / "mine.parquet"
    pq.write_table(
        pairs.dataset.remove_columns(
            ["base_answer", "source_answer", "changing", "split"]
        ).data.table,
        path,
    )
    with pytest.raises(ValueError, match=r"base_answer need a network"):
        Pairs.load(path)
    truth = {(row["base"], row["base_answer"]) for row in pairs.dataset}
    found = Pairs.load(path, Words(wrong=lambda text, answer: (text, answer) not in truth))
    changing = {(row["base"], row["source"]): row["changing"] for row in pairs.dataset}
    assert {(row["base"], row["source"]): row["changing"] for row in found.dataset} == changing
    assert {row["split"] for row in found.dataset} == {"train", "validation", "test"}
    bases = [set(found.split(split)["base"]) for split in ("train", "validation", "test")]
    assert not bases[0] & bases[1]
    assert not bases[0] & bases[2]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"base": "a", "source": "b", "label": "c", "base_roles": {}}, "source_roles"),
        ({"base": "a", "source": "b", "lable": "c", "base_roles": {}, "source_roles": {}}, "label"),
    ],
)
def test_bad_files_name_row_and_column(tmp_path, row, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"row 0.*{said}"):
        Pairs.load(path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.path"):
        Pairs.load(tmp_path / "none.parquet")
    (tmp_path / "broken.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        Pairs.load(tmp_path / "broken.jsonl")
    (tmp_path / "twice.jsonl").write_text(
        '{"base": "a", "label": "b", "label": "c"}', encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"line 1.*\['label'\] more than once"):
        Pairs.load(tmp_path / "twice.jsonl")
    (tmp_path / "pairs.csv").write_text("a", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\.parquet or \.jsonl"):
        Pairs.load(tmp_path / "pairs.csv")


def test_batches_hold_every_pair_once_and_are_cut_to_length(pairs, smollm2):
    encoded = EncodedPairs(pairs.split("test"), pairs.variable, smollm2)
    rows = []
    for batch in encoded.batches(8):
        rows += batch["row"].tolist()
        mask = batch["base"]["attention_mask"]
        assert mask.shape[1] == mask.sum(1).max()
        source = batch["sources"]["subject_position"]
        for i, row in enumerate(batch["row"].tolist()):
            pair = pairs.split("test")[row]
            start, stop = pair["source_roles"]["s2"]
            position = source["positions"]["s2"][i]
            word = smollm2.tokenizer.decode(source["input_ids"][i][position[position >= 0]]).strip()
            assert word == pair["source"][start:stop]
            label = batch["base"]["answer"][i]
            assert smollm2.tokenizer.decode(label[label >= 0]) == pair["label"]
    assert sorted(rows) == list(range(30))


class Letters:
    """A network with a token for each letter, as far as encoding goes."""

    def encode(self, texts, positions=None, answers=None):
        lengths = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        answer = torch.zeros(len(texts), 1, dtype=torch.long)
        return {"attention_mask": mask, "positions": {}, "answer": answer}


@pytest.mark.parametrize("n_variables", [1, 7])
def test_pairs_are_sorted_by_the_lengths_of_the_base_and_then_of_the_sources(n_variables):
    variables = [f"v{i}" for i in range(n_variables)]
    names = ["source"] if n_variables == 1 else [f"source[{v}]" for v in variables]
    rng = np.random.default_rng(shifted(0))
    lengths = rng.integers(1, 3, size=(40, n_variables + 1)).tolist()
    rows = []
    for row in lengths:
        base, *sources = ("a" * length for length in row)
        rows.append({"split": "train", "base": base, "label": "b", "interchanged": variables})
        rows[-1] |= dict(zip(names, sources, strict=True))
    encoded = EncodedPairs(Pairs.of(rows, variables).split("train"), variables, Letters())
    order = encoded.costs(None).argsort(stable=True).tolist()
    assert order == sorted(range(40), key=lengths.__getitem__)
    same = [lengths.index(row) for row in lengths]
    assert torch.equal(encoded.costs(None), encoded.costs(None)[same])
