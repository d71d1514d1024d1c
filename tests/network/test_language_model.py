import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from iit.network import LanguageModel
from tests.families import make

WORDS = ["[UNK]", "[END]", "[START]", "Ann", "met", "Bo", "Cy", "and"]


def tokenizer(**kwargs):
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="[END]", unk_token="[UNK]", **kwargs
    )


@pytest.fixture
def network():
    return LanguageModel(make("llama"), tokenizer(), "toy")


def test_it_freezes_the_model_and_pads_with_the_end_of_text():
    model, own = make("llama").train().requires_grad_(True), tokenizer()
    network = LanguageModel(model, own)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert own.pad_token == "[END]"
    assert (network.device, network.dtype, network.name) == (
        torch.device("cpu"),
        torch.float32,
        "LlamaForCausalLM",
    )
    ids = network.encode(["Ann met Bo", "Ann"])["input_ids"]
    assert ids.tolist() == [[3, 4, 5], [3, 1, 1]]


def test_a_padding_token_stays_and_the_side_is_right_whatever_the_tokenizer_says():
    own = tokenizer(pad_token="[START]", padding_side="left")
    batch = LanguageModel(make("llama"), own).encode(["Ann met Bo", "Ann"])
    assert own.pad_token == "[START]"
    assert batch["input_ids"].tolist() == [[3, 4, 5], [3, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert own.padding_side == "left", "the tokenizer is the user's"


def test_tokens_are_counted_with_the_start_token(network):
    from tokenizers.processors import TemplateProcessing

    network.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "[START] $A", special_tokens=[("[START]", 2)]
    )
    batch = network.encode(
        ["Ann met Bo", "Cy"],
        {"index": [1, 0], "word": ["Bo", "Cy"], "span": [slice(0, 3), slice(0, 2)]},
        [" Cy", " Bo"],
    )
    assert batch["input_ids"].tolist() == [[2, 3, 4, 5], [2, 6, 1, 1]]
    assert batch["positions"]["index"].tolist() == [[1], [0]]
    assert batch["positions"]["word"].tolist() == [[3], [1]]
    assert batch["positions"]["span"].tolist() == [[1], [1]]
    assert batch["positions"]["last"].tolist() == [[3], [1]]
    assert batch["answer"].tolist() == [[6], [5]], "an answer continues the prompt: no start token"


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("met", [1]),
        (" met ", [1]),
        ("Ann and Ann", [2, 3, 4]),
        ("Ann", [4]),
        (-5, [0]),
        (np.int64(2), [2]),
        ([[0, -1]], [0, 4]),
        (slice(None, 3), [0]),
        (slice(16, None), [4]),
        (slice(3, 8), [1]),
        (slice(None), [0, 1, 2, 3, 4]),
        (torch.tensor([[1, 3]]), [1, 3]),
        (None, [-100]),
    ],
)
def test_a_place_in_a_single_text(network, place, found):
    text = "Ann met Ann and Ann"
    assert network.encode(text, positions={"x": place})["positions"]["x"].tolist() == [found]


def test_a_single_text_and_answer_may_stand_alone(network):
    alone, listed = (
        network.encode("Ann met", answers=" Bo"),
        network.encode(["Ann met"], answers=[" Bo"]),
    )
    assert alone["input_ids"].tolist() == listed["input_ids"].tolist() == [[3, 4]]
    assert alone["answer"].tolist() == listed["answer"].tolist() == [[5]]


def test_answers_of_different_length_are_padded(network):
    assert network.encode(["Ann", "Bo"], answers=[" met Bo", " met"])["answer"].tolist() == [
        [4, 5],
        [4, -100],
    ]


def test_characters_of_several_tokens_and_emoji_make_one_role(smollm2):
    text = "one 🎉🏳️‍🌈 two 🎉 three"
    batch = smollm2.encode(text, positions={"flag": "🏳️‍🌈", "party": "🎉"})
    ids, found = batch["input_ids"][0], batch["positions"]
    assert smollm2.tokenizer.decode(ids[found["flag"][0]]) == "🏳️‍🌈"
    assert smollm2.tokenizer.decode(ids[found["party"][0]]) == " 🎉"
    assert found["party"].min() > found["flag"].max(), "the last occurrence"


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"texts": []}, "no texts"),
        (
            {"texts": ["Ann", "Bo"], "positions": {"x": "Ann"}},
            r"Role 'x' needs one place for each of the 2 texts; got 'Ann'",
        ),
        ({"texts": ["Ann", "Bo"], "positions": {"x": [0]}}, r"for each of the 2 texts; got \[0\]"),
        (
            {"texts": ["Ann"], "positions": {"last": [0]}},
            "'last' has its own token",
        ),
        (
            {"texts": ["Ann met"], "positions": {"x": [slice(0, 7, 2)]}},
            "a slice of characters has no step",
        ),
        (
            {"texts": ["Ann met"], "positions": {"x": [slice(4, 9)]}},
            r"characters 4:9 hold no text\.\n  Ann met\n      \^",
        ),
        (
            {"texts": ["Ann met"], "positions": {"x": [slice(-3, None)]}},
            "characters -3:7 hold no text",
        ),
        (
            {"texts": ["Ann met"], "positions": {"x": [-3]}},
            "token -3 is outside the prompt's 2 tokens",
        ),
        (
            {"texts": ["Ann\nmet"], "positions": {"x": ["me"]}},
            r"whole tokens \(they also hold 't'\)\.\n  Ann↵met\n      \^\^$",
        ),
        ({"texts": ["Ann"], "answers": [""]}, "any answer has one at least; '' has 0"),
        ({"texts": ["Ann", "Bo"], "answers": "Cy"}, "2 texts need as many answers; got 1"),
    ],
)
def test_errors(network, kwargs, said):
    with pytest.raises(ValueError, match=said):
        network.encode(**kwargs)


def test_a_tokenizer_that_loses_its_characters_is_refused():
    slow = type("Slow", (PreTrainedTokenizerFast,), {"is_fast": False})
    with pytest.raises(ValueError, match="Slow does not tell which characters"):
        LanguageModel(make("llama"), slow(tokenizer_object=tokenizer().backend_tokenizer))


def test_answers_right_does_not_depend_on_the_batch(network):
    texts, answers = ["Ann met Bo and", "Ann", "Cy and Bo", "Bo met"], []
    for text in texts:
        with torch.no_grad():
            answers.append(
                network.model(input_ids=network.encode(text)["input_ids"]).logits[0, -1].argmax()
            )
    words = [WORDS[int(a)] if int(a) < len(WORDS) else None for a in answers]
    given = [f" {word or 'Ann'}" for word in words]
    right = [word is not None for word in words]
    for size in (1, 3, 64):
        assert network.answers_right(texts, given, batch_size=size).tolist() == right
