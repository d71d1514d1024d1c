"""An answer is tokenized as it continues the prompt, on tokenizers of every kind."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import transformers as t

from iit.data import EncodedPairs, Pairs
from iit.data.prompts import one_token_words
from iit.network import LanguageModel
from iit.network.spans import last_mention
from iit.tasks import ioi
from tests.families import SIZES
from tests.made_tokenizers import KINDS, byte_level, prepend, word_piece

PROMPT = "When John and Mary left John gave milk to"


def network(tokenizer):
    """A random network that has an embedding for every token."""
    torch.manual_seed(0)
    config = t.LlamaConfig(**SIZES | {"vocab_size": len(tokenizer)})
    return LanguageModel(t.LlamaForCausalLM(config), tokenizer, "toy")


def named(network, ids):
    return network.tokenizer.convert_ids_to_tokens([int(i) for i in ids if i != -100])


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_word_that_follows(kind):
    lm = network(KINDS[kind]())
    batch = lm.encode([PROMPT, "Mary gave John milk to"], answers=[" Mary", " John"])
    whole = [
        named(lm, lm.encode(PROMPT + " Mary")["input_ids"][0]),
        named(lm, lm.encode("Mary gave John milk to John")["input_ids"][0]),
    ]
    for row in range(2):
        prompt = named(lm, batch["input_ids"][row][: int(batch["attention_mask"][row].sum())])
        assert prompt + named(lm, batch["answer"][row]) == whole[row]
        assert prompt[-1].strip("▁Ġ").lower() == "to", "no end of the text stands where it goes on"
    assert batch["answer"].shape == (2, 1), "no space mark of its own"
    assert (
        batch["positions"]["last"].flatten().tolist()
        == (batch["attention_mask"].sum(1) - 1).tolist()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_several_tokens_and_several_right_ones(kind):
    lm = network(KINDS[kind]())
    assert [
        t.strip("▁Ġ").lower()
        for t in named(lm, lm.encode(PROMPT, answers=" New York")["answer"][0])
    ] == ["new", "york"]
    right = lm.encode([PROMPT, PROMPT], answers=[(" Mary", " John"), (" Mary",)])["answer"]
    assert right.shape == (2, 1, 2)
    assert right[0, 0, 0] == right[1, 0, 0] == lm.encode(PROMPT, answers=" Mary")["answer"]
    assert right[1, 0, 1] == -100


@pytest.mark.parametrize("kind", KINDS)
def test_the_argmax_is_right(kind):
    """A network that says " Mary" is right where the answer is " Mary"."""
    lm = network(KINDS[kind]())
    encoded = lm.encode(PROMPT, answers=" Mary")
    ids, mary = encoded["input_ids"], int(encoded["answer"])
    last = lm.model.model(input_ids=ids).last_hidden_state[0, -1]
    head = lm.model.get_output_embeddings()
    head.weight.zero_()[mary] = last
    assert lm.answers_right([PROMPT, PROMPT], [" Mary", " John"]).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["mistral", "gemma", "llama 2", "gpt2"])
def test_words_of_one_token_are_found(kind):
    lm, task = network(KINDS[kind]()), ioi()
    pools = dict.fromkeys(task.words, ("milk", "left")) | {"name": ("Mary", "John", "Zoe")}
    task = replace(task, pools={**task.pools, **pools})
    pools, dropped = one_token_words(task, lm)
    assert pools["name"] == ("Mary", "John")
    assert dropped["name"] == 1


@pytest.mark.parametrize(
    ("kind", "prompt", "answer"),
    [
        ("mistral", PROMPT + " ", "Mary"),
        ("llama 2", PROMPT + " ", "Mary"),
        ("gemma", PROMPT + " ", "Mary"),
        ("gpt2", PROMPT + " ", "Mary"),
        ("gpt2", "gave Mar", "y"),
        ("mistral", "milk to New Yo", "rk"),
        ("bert, as a decoder", "milk to New Y", "ork"),
    ],
)
def test_a_prompt_whose_tokens_change_says_so(kind, prompt, answer):
    with pytest.raises(ValueError, match=r"changes the tokens of its prompt.*begin with one"):
        network(KINDS[kind]()).encode(prompt, answers=answer)


@pytest.mark.parametrize("kind", ["mistral", "llama 2", "gemma", "gpt2", "llama 3"])
def test_a_lacking_space_is_warned_of(kind):
    lm = network(KINDS[kind]())
    with pytest.warns(UserWarning, match="probably ' Mary' is meant, not 'Mary'"):
        lm.encode([PROMPT], answers=["Mary"])


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("to 17", "4"),
        ("gave to:\n", "Mary"),
        ("to", " Mary"),
        ("left (", "Mary"),
        ("JohnMary", "left"),
    ],
)
def test_no_space_is_asked_for_where_none_belongs(prompt, answer):
    tokenizer = byte_level()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(tokenizer).encode(prompt, answers=answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rendered_chat_gets_no_second_beginning(kind):
    lm = network(KINDS[kind]())
    tokens = named(lm, lm.encode("<s>" + PROMPT)["input_ids"][0])
    assert tokens.count("<s>") == 1
    assert "</s>" not in tokens
    batch = lm.encode("<s>" + PROMPT, positions={"s": "Mary"}, answers=" Mary")
    assert (
        named(lm, batch["input_ids"][0, batch["positions"]["s"][0]])[0].strip("▁Ġ").lower()
        == "mary"
    )
    assert named(lm, batch["answer"][0]) == named(
        lm, lm.encode(PROMPT, answers=" Mary")["answer"][0]
    )
    turns = named(lm, lm.encode("<s>to</s><s>to")["input_ids"][0])
    assert turns.count("<s>") == 2, "those inside of the text stay"
    assert turns.count("</s>") == 1


def test_special_tokens_can_be_asked_for_and_left_out():
    lm = network(prepend("<s> $A </s>"))
    assert named(lm, lm.encode("to", special_tokens=True)["input_ids"][0]) == ["<s>", "▁to", "</s>"]
    assert named(lm, lm.encode("<s>to", special_tokens=True)["input_ids"][0])[:2] == ["<s>", "<s>"]
    assert named(lm, lm.encode("to", special_tokens=False)["input_ids"][0]) == ["▁to"]
    assert named(lm, lm.encode("to")["input_ids"][0]) == ["<s>", "▁to"]
    ended = lm.encode("milk to", special_tokens=True, answers=" Mary")
    assert ended["positions"]["last"].tolist() == [[2]], "the last token of the text"
    assert named(lm, ended["answer"][0]) == ["▁Mary"]


def count_readings(lm, monkeypatch):
    """The texts of each call of the tokenizer."""
    calls = []
    kind = type(lm.tokenizer)
    read = kind.__call__

    def counted(self, texts, **options):
        calls.append(list(texts))
        return read(self, texts, **options)

    monkeypatch.setattr(kind, "__call__", counted)
    return calls


def test_equal_texts_are_read_once_and_lists_at_once(monkeypatch):
    lm = network(prepend("<s> $A"))
    calls = count_readings(lm, monkeypatch)
    first = lm.encode([PROMPT, "John left to", PROMPT], answers=[" Mary", " John", " Mary"])
    assert calls == [[PROMPT, "John left to"], [PROMPT + " Mary", "John left to John"]]
    again = lm.encode([PROMPT, "milk to"], answers=[" Mary", " John"])
    assert calls[2:] == [["milk to"], ["milk to John"]]
    assert torch.equal(again["input_ids"][0], first["input_ids"][0])
    assert torch.equal(again["answer"][0], first["answer"][0])


def test_a_tokenizer_that_changed_reads_again(monkeypatch):
    lm = network(prepend("<s> $A"))
    calls = count_readings(lm, monkeypatch)
    assert named(lm, lm.encode("milk to")["input_ids"][0]) == ["<s>", "▁milk", "▁to"]
    backend = lm.tokenizer.backend_tokenizer
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
    assert named(lm, lm.encode("milk to")["input_ids"][0]) == ["▁milk", "▁to"]
    backend.normalizer = tokenizers.normalizers.Replace("milk", "left")
    assert "▁milk" not in named(lm, lm.encode("milk to")["input_ids"][0])
    backend.normalizer = None
    lm.tokenizer.add_tokens(["milk to"])
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    assert "milk to" in named(lm, lm.encode("milk to")["input_ids"][0])
    assert calls == [["milk to"]] * 4
    # A word of the vocabulary that is added adds no token, and yet splits texts in another way.
    n_tokens = len(lm.tokenizer)
    lm.tokenizer.add_tokens(["▁to"])
    assert len(lm.tokenizer) == n_tokens
    lm.encode("milk to")
    lm.tokenizer.split_special_tokens = True
    assert "<s>" not in named(lm, lm.encode("milk <s> to")["input_ids"][0])
    assert len(calls) == 6


def test_no_more_tokens_are_kept_than_the_limit(monkeypatch):
    lm = network(prepend("<s> $A"))
    calls = count_readings(lm, monkeypatch)
    monkeypatch.setattr("iit.network.tokens.MOST_TOKENS", 4)
    texts = ["milk to", "John left to"]
    for text in (*texts, *texts):
        lm.encode(text)
    assert calls == [["milk to"], ["John left to"], ["milk to"], ["John left to"]]


@pytest.mark.parametrize(
    ("label", "own", "changing"),
    [
        (" Mary", " Mary", False),
        (" mary", " Mary", False),
        (" Mary", "  MARY", False),
        (" Mary", [" Mary"], False),
        ([" Mary", " John"], [" John", " Mary"], False),
        ([" Mary", " Mary"], " Mary", False),
        (" Mary", " John", True),
        ([" Mary", " John"], [" Mary"], True),
        (" New York", " New", True),
        (" York New", " New York", True),
        (" Mary", " Márý", False),
    ],
)
def test_changing_is_decided_by_tokens(tmp_path, label, own, changing):
    lm = network(word_piece())
    lm.answers_right = lambda texts, answers: np.ones(len(texts), dtype=bool)
    row = {"base": "Mary left to", "source": "John left to", "label": label, "base_answer": own}
    row |= {"base_roles": {"s": [0, 4]}, "source_roles": {"s": [0, 4]}, "split": "train"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    pairs = Pairs.load(path, lm)
    assert pairs.dataset["changing"] == [changing]
    assert pairs.facts["changing"]["train"] == changing
    # Without a network the column says how the file writes the answers; what is measured follows
    # their tokens.
    assert EncodedPairs(Pairs.load(path).dataset, "variable", lm).changing.tolist() == [changing]


@pytest.mark.parametrize(
    ("text", "wanted", "start"),
    [
        ("Min asked Minnie", "Min", 0),
        ("Ann and Joanna met Hannah", "Ann", 0),
        ("the other theme", "the", 0),
        ("Min-ji and Min asked Minnie", "Min", 11),
        ("Min asked Min's Minnie", "Min", 10),
        ("cat, concat: cats", "cat", 0),
        ("7 of 17 and 70", "7", 0),
        ("Élise asked Élisea", "Élise", 0),
        ("to Ann Ann Anne", "Ann Ann", 3),
        ("aa aa aa", "aa aa", 3),
        ("Min asked Minnie", " Minn", 9),
        ("snake_case snake", "snake", 11),
        ("我在北京住", "北京", 2),
        ("北京和北京大", "北京", 3),
        ("(Min) or Mind", "(Min)", 0),
        ("Minnie", "Min", 0),
    ],
)
def test_a_role_is_the_last_mention_that_is_whole_words(text, wanted, start):
    assert last_mention(text, wanted) == (start, start + len(wanted))


def test_words_are_counted_behind_a_word_also_where_an_answer_stands_at_a_mask():
    torch.manual_seed(0)
    tokenizer = word_piece()
    bert = LanguageModel(
        t.BertForMaskedLM(t.BertConfig(**SIZES | {"vocab_size": len(tokenizer)})), tokenizer
    )
    words = [" John", " Mary"]
    assert [
        len(tokens) for tokens in bert.answer_tokens([f"John {tokenizer.mask_token}"] * 2, words)
    ] == [1, 1]
    assert len(Pairs.sample(ioi(), bert, n=12, right_only=False).split("train")) == 12


def test_the_role_mask_is_free_where_nothing_fills_it_in():
    batch = network(byte_level()).encode(["When John left"], positions={"mask": " John"})
    assert batch["positions"]["mask"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("text", "word", "start"), [("北京，我在北京住", "北京", 5), ("Min asked Minnie", "Min", 0)]
)
def test_scripts_without_spaces_have_no_whole_words(text, word, start):
    assert last_mention(text, word) == (start, start + len(word))
